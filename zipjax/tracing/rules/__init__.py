"""Rules: what each JAX primitive means for the axes of its operands and results."""
