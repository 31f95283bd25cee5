"""Linear layers found in small programs."""

import jax
import jax.numpy as jnp

from zipjax.program.layers import find_layers
from zipjax.program.program import trace


def residual(params, x):
    stream = jax.nn.relu(x @ params["a"])
    branch = jax.nn.relu(stream @ params["b"] + 0.1) @ params["c"] + params["bias"]
    return jax.nn.relu(stream + branch) @ params["d"]


def test_layers_of_a_residual_block():
    shapes = {"a": (3, 4), "b": (4, 5), "bias": (4,), "c": (5, 4), "d": (4, 2)}
    params = {k: jnp.ones(shape) for k, shape in shapes.items()}
    layers = find_layers(trace(residual, params, jnp.ones((2, 3))))
    assert list(layers) == ["a", "b", "c", "d"]
    assert [layer.bias for layer in layers.values()] == [None, None, "bias", None]
    assert [layer.rest is not None for layer in layers.values()] == [0, 0, 1, 0]
    # The stream after its ReLU is read by the branch, too.
    assert [layer.relu for layer in layers.values()] == [True, True, True, False]


def shared(params, x):
    return (x @ params["a"]) @ params["a"] @ params["b"] + params["b"].sum()


def test_kernels_that_are_read_twice_are_no_layers():
    params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}
    assert not find_layers(trace(shared, params, jnp.ones((2, 3))))
