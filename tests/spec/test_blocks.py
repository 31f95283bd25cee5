"""Compound axes, opened and closed again."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from zipjax import Axis, Fixed, Index, Product, Sum
from zipjax.spec.blocks import map_atoms, unit_samples

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


def brute_force_samples(array, labels, perm, size):
    """Samples of a perm's units, from a table (perm, unit) of every coordinate."""
    samples = []
    for index in itertools.product(*map(range, array.shape)):
        here = [labels[k][i] for k, i in enumerate(index)]
        samples += [(unit, float(array[index])) for p, unit in here if p == perm]
    return [sorted(x for unit, x in samples if unit == u) for u in range(size)]


NOTHING = ("", 0)
A_UNITS, B_UNITS = [("a", 0), ("a", 1)], [("b", 0), ("b", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("perm", "last"),
    [("a", Sum((A, Fixed(1), A))), ("b", Sum((B, Fixed(1), B)))],
)
def test_samples_hold_every_value_of_a_unit_once(perm, last):
    # If a perm has several axes, every occurrence is a sample of its own.
    units = {"a": A_UNITS, "b": B_UNITS}[perm]
    entries = (None, Fixed(2), last)
    labels = [[NOTHING] * 4, [NOTHING] * 2, [*units, NOTHING, *units]]
    size = len(labels[2])
    array = jnp.arange(4 * 2 * size, dtype=jnp.float32).reshape(4, 2, size)
    found = list(unit_samples(array, entries, SIZES, perm))
    assert all(x.shape[:2] == (1, 1) for x in found)
    columns = np.concatenate([x[0, 0] for x in found]).T
    assert [sorted(map(float, column)) for column in columns] == brute_force_samples(
        array, labels, perm, SIZES[perm]
    )


def test_units_of_other_perms_are_no_samples():
    x = np.random.default_rng(0).normal(size=(4, 2, 5, 3))
    (found,) = unit_samples(jnp.asarray(x), (None, A, Fixed(5), B), SIZES, "b")
    samples = np.moveaxis(x, 1, 0)
    mean, square = samples.mean(0), (samples**2).mean(0)
    expected = np.stack([mean.reshape(20, 3), np.sqrt(square).reshape(20, 3)])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    # The order of the others does not show.
    (again,) = unit_samples(jnp.asarray(x[:, ::-1]), (None, A, None, B), SIZES, "b")
    np.testing.assert_allclose(found, again, rtol=1e-6)


def test_a_perm_twice_in_one_array_has_no_samples_of_its_own_units():
    x = np.random.default_rng(0).normal(size=(4, 3, 3))
    first, second = unit_samples(jnp.asarray(x), (None, B, B), SIZES, "b")
    np.testing.assert_allclose(first[0, 0], x.mean(2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second[0, 0], x.mean(1), rtol=1e-5, atol=1e-6)


def test_elements_groups_and_iterations():
    """Indices are elements, groups part of the units, other iterations places."""
    x = np.random.default_rng(0).normal(size=(3, 2, 5, 2, 3)).astype(np.float32)
    entries = (Index("i", 3), None, None, A, B)
    (found,) = unit_samples(jnp.asarray(x), entries, SIZES, "b", ("i", "a"), loops=2)
    np.testing.assert_array_equal(found, x.reshape(3, 2, 5, 6))
    (found,) = unit_samples(jnp.asarray(x), entries, SIZES, "b", ("a",), loops=1)
    np.testing.assert_array_equal(found, x.reshape(1, 3, 10, 6))
    (found,) = unit_samples(jnp.asarray(x), entries, SIZES, "b", ("a",))
    np.testing.assert_array_equal(found, x.reshape(1, 1, 30, 6))


def test_a_perm_that_does_not_occur_has_no_samples():
    assert list(unit_samples(jnp.ones((2, 3)), (A, B), SIZES, "c")) == []


def test_none_in_a_compound_names_the_remedy():
    with pytest.raises(ValueError, match=r"use Fixed\(size\) for None"):
        map_atoms(jnp.ones(6), (Product((None, B)),), SIZES, lambda x, _: x)
