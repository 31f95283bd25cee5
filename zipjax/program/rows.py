"""A layer as a product of matrices, with a row per sample and a column per unit."""

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from zipjax.program.layers import Layer
from zipjax.types import AnyArray, Array


def input_rows(layer: Layer, x: Array) -> Float[Array, "samples inputs"]:
    """Returns a layer's inputs as a matrix, with one row per output position."""
    if _is_convolution(layer):
        return _patches(x, layer)
    axes = layer.equation.params["dimension_numbers"][0][1 - layer.side]
    moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
    columns = math.prod(x.shape[k] for k in axes)
    return moved.reshape(-1, columns)


def input_mean(layer: Layer, x: Array) -> Float[Array, "inputs"]:
    """Returns the mean of a layer's input rows, without making them all."""
    axis = example_axis(layer)
    if axis is not None:
        # A mean example's rows are the mean rows.
        x = x.mean(axis, keepdims=True)
    return input_rows(layer, x).mean(0)


def example_axis(layer: Layer) -> int | None:
    """Returns the axis of a convolution's input along which examples lie.

    None for other products, whose input rows are no larger than the input.
    """
    if not _is_convolution(layer):
        return None
    return layer.equation.params["dimension_numbers"].lhs_spec[0]


def multiply(layer: Layer, x: Array, kernel: AnyArray) -> Array:
    """Returns a layer's product with the given kernel, in the precision of ``x``."""
    eqn = layer.equation
    kernel = jnp.transpose(jnp.asarray(kernel, x.dtype), layer.axes)
    wide = {"precision": lax.Precision.HIGHEST, "preferred_element_type": x.dtype}
    params = eqn.primitive.get_bind_params({**eqn.params, **wide})
    operands = (x, kernel) if layer.side else (kernel, x)
    return eqn.primitive.bind(*operands, **params)


def output_rows(layer: Layer, y: Any) -> Float[Any, "samples units"]:
    """Returns a layer's product, or a value of that shape, with one column per unit."""
    axes = output_unit_axes(layer, y.ndim)
    space = jnp if isinstance(y, Array) else np
    columns = math.prod(y.shape[k] for k in axes)
    others = [k for k in range(y.ndim) if k not in axes]
    if _is_convolution(layer):
        # In the order of the input rows: examples first, whatever the layout.
        examples, _, *spatial = layer.equation.params["dimension_numbers"].out_spec
        others = [examples, *spatial]
    moved = space.transpose(y, [*others, *axes])
    return moved.reshape(-1, columns)


def output_unit_axes(layer: Layer, rank: int) -> list[int]:
    """Returns the axes of a layer's product that hold its units.

    Args:
      layer: the layer.
      rank: number of axes of its product.
    """
    if _is_convolution(layer):
        return [layer.equation.params["dimension_numbers"].out_spec[1]]
    contracted = layer.equation.params["dimension_numbers"][0][layer.side]
    count = layer.rank - len(contracted)
    return list(range(rank - count, rank) if layer.side else range(count))


def kernel_matrix(layer: Layer, kernel: AnyArray) -> Float[np.ndarray, "inputs units"]:
    """Returns the kernel as the matrix that multiplies the input rows, in float64."""
    consumed, produced = kernel_axes(layer)
    moved = np.transpose(np.asarray(kernel, np.float64), [*consumed, *produced])
    return moved.reshape(math.prod(moved.shape[: len(consumed)]), -1)


def matrix_kernel(
    layer: Layer, matrix: Float[np.ndarray, "inputs units"], like: Any
) -> np.ndarray:
    """Returns a matrix as a kernel, on the host; the inverse of :func:`kernel_matrix`.

    Args:
      layer: the layer.
      matrix: the kernel as a matrix.
      like: an array with the kernel's shape and dtype.
    """
    axes = [*itertools.chain(*kernel_axes(layer))]
    opened = matrix.reshape([like.shape[k] for k in axes])
    return np.asarray(np.transpose(opened, np.argsort(axes)), like.dtype)


def kernel_axes(layer: Layer) -> tuple[list[int], list[int]]:
    """Returns the kernel's consumed axes, as ordered in input rows, and the others."""
    numbers = layer.equation.params["dimension_numbers"]
    if _is_convolution(layer):
        produced, consumed, *window = (layer.axes[k] for k in numbers.rhs_spec)
        return [*window, consumed], [produced]
    consumed = [layer.axes[k] for k in numbers[0][layer.side]]
    return consumed, [k for k in layer.axes if k not in consumed]


def _is_convolution(layer: Layer) -> bool:
    return layer.equation.primitive.name == "conv_general_dilated"


def _patches(x: Array, layer: Layer) -> Float[Array, "samples inputs"]:
    """Returns the input windows of a convolution, one row per output position."""
    params = layer.equation.params
    batch, features, *spatial = params["dimension_numbers"].lhs_spec
    x = jnp.transpose(x, (batch, *spatial, features))
    edges = zip(params["padding"], params["lhs_dilation"], strict=True)
    config = [(low, high, dilation - 1) for (low, high), dilation in edges]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    places = params["dimension_numbers"].rhs_spec[2:]
    window = [layer.shape[layer.axes[k]] for k in places]
    steps = zip(window, params["window_strides"], params["rhs_dilation"], strict=True)
    # Axis by axis: a window of 7 x 7 takes 7 + 7 slices.
    for axis, (size, stride, dilation) in reversed([*enumerate(steps, 1)]):
        last = x.shape[axis] - (size - 1) * dilation
        pieces = [
            lax.slice_in_dim(x, start, start + last, stride, axis)
            for start in range(0, size * dilation, dilation)
        ]
        x = jnp.stack(pieces, axis - len(window) - 2)
    return x.reshape(-1, math.prod(window) * x.shape[-1])
