"""Networks with declared permutation specs, to use and to read as examples.

Every module defines a Flax network and ``spec(model)``, which builds the spec from the
network's hyper-parameters. Nothing in the core imports this package.
"""
