"""Half of the products give the whole of a second moment."""

import jax.numpy as jnp
import numpy as np
import pytest

from zipjax.similarity.gram import gram


@pytest.mark.parametrize("units", [1, 7, 512, 513, 1100])
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
