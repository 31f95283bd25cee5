"""Linear layers found in small programs."""

import jax
import jax.numpy as jnp
import numpy as np

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


def transposed(params, x):
    heads = jnp.einsum("bi,ihd->bhd", x, params["heads"].transpose(2, 1, 0))
    return heads.reshape(len(x), -1) @ params["out"].T


def test_kernels_may_be_transposed_but_not_their_units():
    params = {"heads": jnp.ones((2, 4, 3)), "out": jnp.ones((5, 8))}
    layers = find_layers(trace(transposed, params, jnp.ones((2, 3))))
    # The units of "heads" come out in another order than the kernel has them.
    assert {path: layer.axes for path, layer in layers.items()} == {"out": (1, 0)}
    assert layers["out"].shape == (5, 8)


def parts(params, x):
    x = x @ params["w"][1] + params["b"][1]
    x = x @ params["w"][0].T + params["b"][0]
    return x @ params["heads"][0, :, 1] + params["w"][2].sum()


def test_parts_of_a_stack_are_layers():
    params = {"w": jnp.ones((3, 4, 4)), "b": jnp.ones((2, 4))}
    params["heads"] = jnp.ones((1, 4, 2, 5))
    layers = find_layers(trace(parts, params, jnp.ones((2, 4))))
    assert list(layers) == ["w[1]", "w[0]", "heads[0][1]"]
    assert [x.kernel for x in layers.values()] == ["w", "w", "heads"]
    assert [x.part for x in layers.values()] == [((0, 1),), ((0, 0),), ((0, 0), (2, 1))]
    assert [x.bias_part for x in layers.values()] == [((0, 1),), ((0, 0),), ()]
    assert [x.shape for x in layers.values()] == [(4, 4), (4, 4), (4, 5)]
    assert layers["w[0]"].axes == (1, 0)
    leaves = {"w": np.arange(48.0).reshape(3, 4, 4), "b": np.zeros((2, 4))}
    new = layers["w[0]"].replaced(leaves, np.full((4, 4), 7.0), np.full(4, 5.0))
    np.testing.assert_array_equal(new["w"][0], np.full((4, 4), 7))
    np.testing.assert_array_equal(new["w"][1:], leaves["w"][1:])
    np.testing.assert_array_equal(new["b"], [[5] * 4, [0] * 4])


def overlapping(params, x):
    return x @ params["w"][0] + jnp.tensordot(x, params["w"], 1).sum(1)


def test_parts_that_are_read_again_are_no_layers():
    params = {"w": jnp.ones((4, 4, 4))}
    assert not find_layers(trace(overlapping, params, jnp.ones((2, 4))))


def test_axes_of_size_1_may_be_dropped_and_broadcast():
    params = {"w": jnp.ones((1, 1, 3, 4)), "b": jnp.ones((1, 4))}
    program = trace(lambda p, x: x @ p["w"][0, 0] + p["b"], params, jnp.ones((2, 3)))
    (layer,) = find_layers(program).values()
    assert (layer.part, layer.shape) == (((0, 0), (1, 0)), (3, 4))
    assert layer.bias == "b"
