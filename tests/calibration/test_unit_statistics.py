"""Statistics of a layer's units, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import dense_apply, dense_params, images, relative_error
from zipjax.calibration.unit_statistics import (
    layer_statistics,
    model_statistics,
    stat_shape,
)
from zipjax.program.layers import find_layers
from zipjax.program.program import trace

X = images(50, (6,))


def test_statistics_after_every_layer():
    model = dense_params((6, 8, 3), 1)
    first, head = model_statistics(
        dense_apply, ["layers/0/w", "layers/1/w"], model, (X,)
    )
    hidden = np.float64(X) @ model["layers"][0]["w"] + model["layers"][0]["b"]
    output = np.maximum(hidden, 0) @ model["layers"][1]["w"] + model["layers"][1]["b"]
    for found, values in ((first, hidden), (head, output)):
        assert found.mean.shape == found.deviation.shape == (1, values.shape[1])
        assert relative_error(found.mean[0], values.mean(0)) < 1e-5
        assert relative_error(found.deviation[0], values.std(0)) < 1e-5


def heads_apply(params, x):
    return jnp.einsum("bi,ihd->bhd", x, params["w"])


@pytest.fixture
def heads_layer():
    params = {"w": jnp.ones((6, 2, 3))}
    return find_layers(trace(heads_apply, params, X))["w"]


def test_statistics_have_the_shape_of_the_kernels_units(heads_layer):
    assert stat_shape(heads_layer) == [1, 2, 3]
    values = np.random.default_rng(0).normal(size=(50, 2, 3))
    found = layer_statistics(heads_layer, jnp.asarray(values, jnp.float32))
    assert relative_error(found.mean, values.mean(0)[None]) < 1e-5
    assert relative_error(found.deviation, values.std(0)[None]) < 1e-5


def test_constants_and_rounding_have_no_deviation(heads_layer):
    values = np.random.default_rng(0).normal(size=(50, 2, 3)).astype(np.float32)
    values[:, 0, 0] = 0.1  # Whose float32 sum is not 50 times itself.
    values[:, 1, 2] = np.where(np.arange(50) % 2, 1000, np.nextafter(1000, 1001))
    found = layer_statistics(heads_layer, jnp.asarray(values))
    dead = np.zeros((1, 2, 3), bool)
    dead[0, [0, 1], [0, 2]] = True
    np.testing.assert_array_equal(np.asarray(found.deviation) == 0, dead)
