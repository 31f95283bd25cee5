"""Layers as products of matrices, against the layers themselves."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from zipjax.program.layers import find_layers
from zipjax.program.program import trace
from zipjax.program.rows import (
    input_rows,
    kernel_matrix,
    matrix_kernel,
    output_rows,
    sample_shape,
)

CONVOLUTIONS = [
    ("NHWC", "HWIO", {"window_strides": (2, 1), "padding": "SAME"}),
    ("NCHW", "OIHW", {"window_strides": (1, 2), "padding": [(2, 0), (-1, 3)]}),
    (
        "NHWC",
        "HWIO",
        {
            "window_strides": (1, 1),
            "padding": [(0, 1), (0, 0)],
            "rhs_dilation": (2, 1),
            "lhs_dilation": (1, 2),
        },
    ),
]


@pytest.mark.parametrize(("data", "kernel", "options"), CONVOLUTIONS)
def test_rows_of_convolutions(data, kernel, options):
    sizes = {"N": 2, "C": 3, "O": 4, "I": 3}
    rng = np.random.default_rng(0)
    places = dict(zip("HW", (7, 6), strict=True)), dict(zip("HW", (3, 2), strict=True))
    x, w = (
        jnp.asarray(rng.normal(size=[(sizes | side)[k] for k in names]), jnp.float32)
        for names, side in zip((data, kernel), places, strict=True)
    )

    def apply_fn(params, x):
        return lax.conv_general_dilated(
            x, params["w"], dimension_numbers=(data, kernel, data), **options
        )

    check_rows(apply_fn, w, x)


CONTRACTIONS = [("bij,jk->bik", (4, 5)), ("bij,ijk->bk", (3, 4, 5)),
                ("kj,bj->kb", (5, 4))]  # fmt: skip


@pytest.mark.parametrize(("equation", "shape"), CONTRACTIONS)
def test_rows_of_products(equation, shape):
    rng = np.random.default_rng(0)
    data = (2, 4) if equation.startswith("k") else (2, 3, 4)
    x = jnp.asarray(rng.normal(size=data), jnp.float32)
    w = jnp.asarray(rng.normal(size=shape), jnp.float32)

    def apply_fn(params, x):
        operands = (params["w"], x) if equation.startswith("k") else (x, params["w"])
        return jnp.einsum(equation, *operands)

    check_rows(apply_fn, w, x)


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4)])
def test_rows_of_transposed_kernels(shape):
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, *shape[1:]), shape)
    )
    axes = [*range(1, x.ndim)]
    check_rows(
        lambda p, x: jnp.tensordot(x, p["w"].T, (axes, [k - 1 for k in axes[::-1]])),
        w,
        x,
    )


def check_rows(apply_fn, w, x):
    layer = find_layers(trace(apply_fn, {"w": w}, x))["w"]
    matrix = kernel_matrix(layer, w)
    product = trace_value(apply_fn, w, x, layer)
    examples, positions = sample_shape(layer, product.shape)
    assert examples == len(x)
    assert examples * positions * matrix.shape[1] == product.size
    # All positions, and every other one, beginning with another one in every example.
    every = np.broadcast_to(np.arange(positions), (examples, positions))
    some = (every[:, ::2] + np.arange(examples)[:, None]) % positions
    for chosen in (every, some):
        np.testing.assert_allclose(
            input_rows(layer, x, chosen) @ matrix,
            output_rows(layer, product, chosen),
            atol=1e-5,
        )
    np.testing.assert_array_equal(matrix_kernel(layer, matrix, w), w)


def trace_value(apply_fn, w, x, layer):
    """The product as the equation itself computes it: einsum may transpose after it."""
    w = w.transpose(layer.axes)
    operands = (w, x) if layer.side == 0 else (x, w)
    primitive = layer.equation.primitive
    return primitive.bind(*operands, **layer.equation.params)
