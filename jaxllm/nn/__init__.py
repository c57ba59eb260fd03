"""What modules are made of: layers, positions, pooling, and how arrays are spread over devices."""
