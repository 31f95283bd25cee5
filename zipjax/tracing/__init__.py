"""Inference of the permutation spec and the taps of a traced program."""
