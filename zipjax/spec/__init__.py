"""The permutation spec: what may be reordered together.

Entries say what one axis is tied to. A PermutationSpec holds those of all parameters,
with their depths and the cuts where a partial zip may stop. Specs are verified with
random permutations.
"""
