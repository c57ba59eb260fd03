"""What is computed from predictions, and how fast they were made."""
