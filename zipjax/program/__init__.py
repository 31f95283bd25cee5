"""A JAX function as a flat list of equations, and the linear layers found in it."""
