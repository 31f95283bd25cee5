"""The permutation spec: what may be reordered together.

An entry says what one axis is tied to. A PermutationSpec holds the entries of all
parameters, their depths, and the cuts where a partial zip may stop. Specs are verified
with random permutations.
"""
