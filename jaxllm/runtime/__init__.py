"""What must precede JAX, and what joins processes."""
