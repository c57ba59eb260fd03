"""Answers to rows of input."""
