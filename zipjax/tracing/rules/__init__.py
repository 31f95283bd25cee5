"""What each JAX primitive says about the axes of its operands and results."""
