"""Compound axes, opened and closed again."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from zipjax import Axis, Fixed, Product, Sum
from zipjax.spec.blocks import map_atoms, unit_views

A, B = Axis("a", "out"), Axis("b", "in")
SIZES = {"a": 2, "b": 3}
PRODUCT = Product((Fixed(2), B))
SUM = Sum((A, Fixed(1), B))
NESTED = Sum((Product((A, B)), A))
CASES = {
    "plain": (A, None, B),
    "product": (PRODUCT, A),
    "sum": (SUM, None),
    "both": (NESTED, SUM),
    "product of a sum": (Product((SUM, A)), B),
}


def array_of(entries):
    lengths = {PRODUCT: 6, SUM: 6, NESTED: 8, Product((SUM, A)): 12, None: 4}
    shape = [lengths.get(entry) or SIZES[entry.perm] for entry in entries]
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)


@pytest.mark.parametrize("entries", CASES.values(), ids=CASES.keys())
def test_opening_and_closing_changes_nothing(entries):
    array, seen = array_of(entries), []

    def remember(block, axes):
        seen.append((block.ndim, axes))
        return block

    out = map_atoms(array, entries, SIZES, remember)
    np.testing.assert_array_equal(out, array)
    for rank, axes in seen:
        assert rank == len(axes)
        assert not any(isinstance(axis, Product | Sum) for axis in axes)


def test_products_are_row_major():
    array = jnp.arange(6.0)

    def flip(block, axes):
        assert axes == (Fixed(2), B)
        return block[:, ::-1]

    out = map_atoms(array, (PRODUCT,), SIZES, flip)
    np.testing.assert_array_equal(out, [2, 1, 0, 5, 4, 3])


def test_parts_of_a_sum_may_change_their_sizes():
    def double(block, axes):
        return jnp.concatenate([block, block]) if axes == (A,) else block

    out = map_atoms(jnp.arange(6.0), (SUM,), SIZES, double)
    np.testing.assert_array_equal(out, [0, 1, 0, 1, 2, 3, 4, 5])


def brute_force_views(array, labels, perm, size):
    """Samples of a perm's units, from a table (perm, unit) of every coordinate."""
    samples = []
    for index in itertools.product(*map(range, array.shape)):
        here = [labels[k][i] for k, i in enumerate(index)]
        samples += [(unit, float(array[index])) for p, unit in here if p == perm]
    return [sorted(x for unit, x in samples if unit == u) for u in range(size)]


@pytest.mark.parametrize("perm", ["a", "b"])
def test_views_hold_every_sample_of_a_unit_once(perm):
    # If a perm has several axes, every occurrence is a sample of its own.
    entries = (None, Product((Fixed(2), B)), Sum((A, Fixed(1), B)))
    array = jnp.arange(4 * 6 * 6, dtype=jnp.float32).reshape(4, 6, 6)
    nothing = ("", 0)
    labels = [
        [nothing] * 4,
        [("b", 0), ("b", 1), ("b", 2)] * 2,
        [("a", 0), ("a", 1), nothing, ("b", 0), ("b", 1), ("b", 2)],
    ]
    views = list(unit_views(array, entries, SIZES, perm))
    units = np.concatenate(views)
    found = [sorted(map(float, column)) for column in units.T]
    assert found == brute_force_views(array, labels, perm, SIZES[perm])


def test_a_perm_that_does_not_occur_has_no_views():
    assert list(unit_views(jnp.ones((2, 3)), (A, B), SIZES, "c")) == []


def test_none_in_a_compound_names_the_remedy():
    with pytest.raises(ValueError, match=r"use Fixed\(size\) for None"):
        map_atoms(jnp.ones(6), (Product((None, B)),), SIZES, lambda x, _: x)
