"""The loop and what it leaves on disk."""
