"""About half of the products give the whole of a second moment."""

import jax.numpy as jnp
import numpy as np
import pytest

from zipjax.similarity.gram import gram, mirror, num_products, upper_tiles


@pytest.mark.parametrize("units", [1, 7, 512, 1025, 2100])
def test_equals_float64_and_is_symmetric_to_the_last_bit(units):
    x = np.random.default_rng(units).normal(size=(33, units)).astype(np.float32)
    found = np.asarray(gram(x))
    exact = x.astype(np.float64).T @ x.astype(np.float64)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-4)


def test_sums_half_precision_in_float32():
    x = jnp.full((4096, 3), 1.0, jnp.bfloat16)
    found = gram(x)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.full((3, 3), 4096.0))


@pytest.mark.parametrize("sizes", [[5], [3, 4], [2100], [1500, 1, 700]])
def test_tiles_hold_the_upper_triangle_once(sizes):
    units = sum(sizes)
    numbers = np.arange(units, dtype=np.float32)[None]
    blocks = np.split(numbers, np.cumsum(sizes)[:-1], axis=1)
    seen = np.zeros((units, units), int)
    for tile in upper_tiles(blocks):
        rows, columns = tile.left[0].astype(int), tile.right[0].astype(int)
        assert (rows[0], columns[0]) == (tile.row, tile.column)
        seen[np.ix_(rows, columns)] += 1
    assert seen.max() == 1
    assert np.triu(seen).sum() == units * (units + 1) // 2
    if len(sizes) == 1:
        assert seen.sum() == num_products(units)


@pytest.mark.parametrize("units", [1, 4, 1030])
def test_mirror(units):
    x = np.random.default_rng(0).normal(size=(2, units, units)).astype(np.float32)
    expected = np.where(np.tri(units, dtype=bool), np.swapaxes(x, 1, 2), x)
    mirror(x)
    np.testing.assert_array_equal(x, expected)
