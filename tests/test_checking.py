"""Shapes are checked wherever a function has arrays, and nothing else is slowed."""

import jaxtyping
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Float

from tests.checking import jaxtyped
from zipjax.similarity.gram import gram

checked = jaxtyped(typechecker=beartype)
Pair = tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]


def both(pair: Pair):
    return sum(pair)


def plain(number: int):
    return number


def test_the_packages_functions_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="samples units"):
        gram(np.zeros((2, 3, 4), np.float32))


def test_arrays_within_other_types_are_checked():
    x, y = np.ones(2, np.float32), np.ones(3, np.float32)
    assert checked(both)((x, x)).tolist() == [2, 2]
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(both)((x, y))


def test_what_has_no_arrays_is_left_as_it_is():
    assert checked(plain) is plain
