"""Networks with their declared permutation specs, to use and to read as examples.

Every module holds a Flax network and ``spec(model)``, built from the network's own
hyper-parameters. Nothing in the core imports this package.
"""
