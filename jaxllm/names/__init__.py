"""What parameters and config attributes are called elsewhere: one table a family."""
