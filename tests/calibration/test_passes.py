"""Passes over batches, layer by layer."""

import numpy as np

from tests.networks import dense_apply, dense_params, images
from zipjax.calibration.passes import Pass, traced_network

MODEL = dense_params((6, 8, 7, 3), 1)
X = images(120, (6,))
BATCHES = [X[:60], X[60:]]


def test_between_layers_values_are_on_the_host():
    network = traced_network(dense_apply, MODEL)
    current = Pass(network, MODEL, [(x,) for x in BATCHES])
    current.advance("layers/1/w")
    inputs = current.layers()["layers/1/w"].inputs
    layer = MODEL["layers"][0]
    expected = np.maximum(BATCHES[1] @ np.float64(layer["w"]) + layer["b"], 0)
    (value,) = current.read(1, (inputs,))
    assert isinstance(value, np.ndarray)
    np.testing.assert_allclose(value, expected, atol=1e-5)


def test_a_network_is_traced_once_for_parameters_of_the_same_shapes():
    other = dense_params((6, 8, 7, 3), 2)
    network = traced_network(dense_apply, MODEL)
    assert traced_network(dense_apply, other) is network
    wider = dense_params((6, 9, 7, 3), 2)
    assert traced_network(dense_apply, wider) is not network
