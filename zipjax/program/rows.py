"""A layer as a product of matrices, with a row per sample and a column per unit."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from zipjax.program.layers import Layer
from zipjax.types import AnyArray, Array


def sample_shape(layer: Layer, shape: Sequence[int]) -> tuple[int, int]:
    """Returns how many examples a product of this shape has, and positions in each.

    Examples lie along a convolution's batch axis, and along the first of the axes of
    another product that are no units.
    """
    sizes = [shape[k] for k in _sample_axes(layer, len(shape))]
    return math.prod(sizes[:1]), math.prod(sizes[1:])


def input_rows(
    layer: Layer, x: Array, chosen: Int[AnyArray, "examples positions"]
) -> Float[Array, "samples inputs"]:
    """Returns a layer's inputs as a matrix, with one row per chosen output position.

    Args:
      layer: the layer.
      x: its input.
      chosen: positions of every example, as numbered by :func:`sample_shape`.
    """
    if _is_convolution(layer):
        return _windows(x, layer, chosen)
    axes = layer.equation.params["dimension_numbers"][0][1 - layer.side]
    moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
    columns = math.prod(x.shape[k] for k in axes)
    return _chosen_rows(moved.reshape(len(chosen), -1, columns), chosen)


def output_rows(
    layer: Layer, y: Array, chosen: Int[AnyArray, "examples positions"]
) -> Float[Array, "samples units"]:
    """Returns a layer's product, or a value of that shape, with one column per unit.

    Args:
      layer: the layer.
      y: the product.
      chosen: see :func:`input_rows`; the rows have the same order.
    """
    units = output_unit_axes(layer, y.ndim)
    moved = jnp.transpose(y, [*_sample_axes(layer, y.ndim), *units])
    columns = math.prod(y.shape[k] for k in units)
    return _chosen_rows(moved.reshape(len(chosen), -1, columns), chosen)


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


def _sample_axes(layer: Layer, rank: int) -> list[int]:
    """Returns the axes of a layer's product that hold no units, examples first."""
    if _is_convolution(layer):
        examples, _, *spatial = layer.equation.params["dimension_numbers"].out_spec
        return [examples, *spatial]
    units = output_unit_axes(layer, rank)
    return [k for k in range(rank) if k not in units]


def _chosen_rows(rows: Array, chosen: AnyArray) -> Array:
    """Returns the chosen of every example's rows, below each other."""
    found = jnp.take_along_axis(rows, jnp.asarray(chosen)[:, :, None], axis=1)
    return found.reshape(-1, rows.shape[-1])


def _windows(x: Array, layer: Layer, chosen: AnyArray) -> Array:
    """Returns a convolution's input windows at some positions of every example."""
    params = layer.equation.params
    batch, features, *spatial = params["dimension_numbers"].lhs_spec
    x = jnp.transpose(x, (batch, *spatial, features))
    edges = zip(params["padding"], params["lhs_dilation"], strict=True)
    config = [(low, high, dilation - 1) for (low, high), dilation in edges]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    window = [
        layer.shape[layer.axes[k]] for k in params["dimension_numbers"].rhs_spec[2:]
    ]
    strides, dilations = params["window_strides"], params["rhs_dilation"]
    reach = [d * (w - 1) + 1 for w, d in zip(window, dilations, strict=True)]
    sizes = x.shape[1:-1], reach, strides
    grid = [(n - r) // s + 1 for n, r, s in zip(*sizes, strict=True)]
    places = [
        (place * stride)[..., None] + dilation * jnp.arange(width)
        for place, stride, dilation, width in zip(
            jnp.unravel_index(jnp.asarray(chosen), grid),
            *(strides, dilations, window),
            strict=True,
        )
    ]
    # Every axis' places vary along an axis of the window of their own.
    count = len(window)
    opened = [
        jnp.expand_dims(own, [2 + k for k in range(count) if k != axis])
        for axis, own in enumerate(places)
    ]
    found = jax.vmap(lambda image, *at: image[at])(x, *opened)
    return found.reshape(-1, math.prod(window) * x.shape[-1])
