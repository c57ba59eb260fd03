"""Weights from and to other libraries' files: find, read, map, write."""
