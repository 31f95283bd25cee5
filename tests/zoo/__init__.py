"""Networks of many kinds, with the number of perms that was derived by hand."""

from tests.zoo import convnets, sequences, stacks, vits

CASES = {**convnets.CASES, **vits.CASES, **sequences.CASES, **stacks.CASES}
