"""One layer's least squares, from moments that are summed over the batches."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.linalg import blas, cho_factor, cho_solve

from zipjax import hosts
from zipjax.batches import spread
from zipjax.calibration.passes import Pass
from zipjax.calibration.targets import Target
from zipjax.calibration.unit_statistics import num_samples
from zipjax.program.canonical import Keyed, keyed_layer
from zipjax.program.layers import Layer
from zipjax.program.rows import (
    example_axis,
    input_mean,
    input_rows,
    kernel_matrix,
    matrix_kernel,
    multiply,
    output_rows,
)
from zipjax.similarity.gram import gram
from zipjax.types import Array, Leaves

Matrix = Float[np.ndarray, "inputs units"]
Vector = Float[np.ndarray, "units"]
Inputs = Float[np.ndarray, "inputs"]
Second = Float[np.ndarray, "inputs inputs"]
Count = Float[np.ndarray, ""]

# A convolution's input rows, made for some examples at once, take no more bytes than
# this; and fewer if they are small, because what is still in the cache is read faster.
_MOST_BYTES, _FEW_BYTES = 1 << 26, 1 << 22


@dataclasses.dataclass(frozen=True)
class Affine:
    """The operations after a layer's product: slope * product + offset, by unit.

    ``step`` is how much the offset grows when 1 is added to the bias; None without one.
    """

    slope: Vector
    offset: Vector
    step: Vector | None


class _Solution(NamedTuple):
    """A layer's solution: rows @ weights + bias has the mean ``point``."""

    weights: Matrix
    bias: Vector
    point: Vector


@dataclasses.dataclass(frozen=True)
class _Equations:
    """Normal equations of the inputs x, for any targets y.

    Attributes:
      count: number of samples.
      total: the sum of x.
      mean: the mean of x; 0 without a bias, where the fit goes through the offset.
      factor: the Cholesky factor of the ridged sum of (x - mean)(x - mean)^T.
      pull: the ridge times the merged kernel.
    """

    count: Count
    total: Inputs
    mean: Inputs
    factor: Any
    pull: Matrix

    def solution(self, affine: Affine, y: Vector, xy: Matrix) -> _Solution:
        """Returns the solution for targets with these sums of y and x y^T."""
        point = affine.offset if affine.step is None else y / self.count
        cross = xy - np.outer(self.total, point) + self.pull
        weights = cho_solve(self.factor, cross)
        return _Solution(weights, point - self.mean @ weights, point)


def solve_layer(
    merged: Pass,
    models: Sequence[Pass],
    name: str,
    target: Target,
    *,
    ridge: float,
    sweeps: int,
) -> bool:
    """Replaces a layer's kernel and bias in ``merged.leaves``.

    Layers whose slope or offset differs from sample to sample stay as they are.

    Args:
      merged: the merged network; it is run up to the layer.
      models: the models whose values make the target; they are run through it.
      name: the layer's name.
      target: maps the models' rows to the layer's target; a pytree.
      ridge: see :func:`zipjax.refit`.
      sweeps: see :func:`zipjax.refit`.

    Returns:
      Whether they were replaced.
    """
    layer = merged.layers()[name]
    affine = measure_affine(merged, layer)
    if affine is None:
        return False
    merged.advance(name)
    for model in models:
        model.advance(name, after=True)
    read = functools.partial(_read, merged, models, name)
    count, x, xx, y, xy = _total(_first_sums(target, *own) for own in read())
    before = kernel_matrix(layer, layer.own_kernel(merged.leaves)) * affine.slope
    equations = _equations(count, x, xx, before, affine, ridge)
    solution = equations.solution(affine, y, xy)
    for _ in range(sweeps if layer.relu else 0):
        y, xy = _open_sums(target, read(), layer, solution)
        y, xy = y + count * solution.point, xy + np.outer(x, solution.point)
        solution = equations.solution(affine, y, xy)
    merged.leaves = _written(merged.leaves, layer, affine, solution)
    return True


def measure_affine(merged: Pass, layer: Layer) -> Affine | None:
    """Measures the operations after a layer; None if they differ between samples."""
    zero = _by_unit(merged, layer, 0.0, merged.leaves)
    one = _by_unit(merged, layer, 1.0, merged.leaves)
    if zero is None or one is None:
        return None
    # A unit without slope is dead with any kernel: it keeps its own.
    slope = one - zero
    slope = np.where(np.abs(slope) > 1e-6 * np.abs(slope).max(), slope, 0.0)
    if layer.bias is None:
        return Affine(slope, zero, None)
    kernel, bias = layer.own_kernel(merged.leaves), layer.own_bias(merged.leaves)
    shifted = layer.replaced(merged.leaves, kernel, bias + 1)
    moved = _by_unit(merged, layer, 0.0, shifted)
    return None if moved is None else Affine(slope, zero, moved - zero)


def _by_unit(merged: Pass, layer: Layer, fill: float, leaves: Leaves) -> Vector | None:
    value, alike = merged.probe(layer, fill, leaves)
    return np.asarray(value, np.float64) if alike else None


def _total(parts: Iterable[Sequence[Any]]) -> list[Any]:
    """Returns sums over the batches of all processes, in float64.

    Nothing else in a refit is summed over batches.
    """
    stream = iter(parts)
    totals = [np.require(x, np.float64, "W") for x in next(stream)]
    for part in stream:
        for number, x in enumerate(part):
            totals[number] += x
    return [hosts.summed(x) for x in totals]


class _Values(NamedTuple):
    """A batch's values that decide a layer.

    Attributes:
      inputs: what the kernel multiplies.
      rest: what is added after the layer, if anything is.
      totals: the models' values after the layer.
    """

    inputs: Any
    rest: list[Any]
    totals: list[Any]


def _read(
    merged: Pass, models: Sequence[Pass], name: str
) -> Iterator[tuple[Layer, _Values]]:
    """Yields every batch's values, and the layer as that batch sees it."""
    for number in range(len(merged)):
        layer = merged.layers(number)[name]
        added = () if layer.rest is None else (layer.rest,)
        x, *rest = merged.read(number, (layer.inputs, *added))
        wanted = [model.layers(number)[name].total for model in models]
        totals = [
            model.read(number, (value,))[0]
            for model, value in zip(models, wanted, strict=True)
        ]
        own = _Values(x, rest, totals)
        yield layer, jax.tree_util.tree_map(spread, own)


def _first_sums(target: Target, layer: Layer, own: _Values) -> Sequence[Any]:
    """Returns a batch's number of samples and sums of x, x x^T, y and x y^T.

    They are computed about the batch's means, so that no precision is lost in float32.
    In float64 products of means do no harm: sums about zero can be added without
    agreeing on constants.
    """
    found = jax.device_get(_moments(keyed_layer(layer), target, own, None))
    x0, y0, x, xx, y, xy = (np.array(part, np.float64, order="C") for part in found)
    count = num_samples(layer, own.totals[0].shape)
    x_total = x + count * x0
    xx = _add_outer(_add_outer(xx, x0, x_total), x, x0)
    xy = kernel_matrix(layer, xy) + np.outer(x_total, y0)
    return float(count), x_total, xx, y + count * y0, xy


def _open_sums(
    target: Target,
    batches: Iterable[tuple[Layer, _Values]],
    layer: Layer,
    solution: _Solution,
) -> tuple[Vector, Matrix]:
    """Returns the sums of y and x y^T for the targets that a ReLU leaves open.

    Both are about the solution's point.
    """
    like = jax.ShapeDtypeStruct(layer.shape, np.float32)
    kernel = matrix_kernel(layer, solution.weights, like)
    start = kernel, np.float32(solution.bias), np.float32(solution.point)
    y, xy = _total(
        jax.device_get(_moments(keyed_layer(own), target, values, start))
        for own, values in batches
    )
    return y, kernel_matrix(layer, xy)


@functools.partial(jax.jit, static_argnums=0)
def _moments(
    keyed: Keyed[Layer],
    target: Target,
    own: _Values,
    start: tuple[Array, Array, Array] | None,
) -> tuple[Array, ...]:
    """Returns a batch's moments about constants close to the means of x and y.

    Args:
      keyed: the layer.
      target: maps the models' rows to the layer's target.
      own: the batch's values.
      start: the kernel, the offset and the mean so far. With it, the targets are those
        that a ReLU leaves open.

    Returns:
      Without a start the constants x0 and y0, and the sums of x - x0, its product with
      itself, y - y0, and x (y - y0)^T as a kernel; else only the last two.
    """
    layer, x = keyed.value, _wide(jnp.asarray(own.inputs))
    wanted = target([_wide(output_rows(layer, y)) for y in own.totals])
    rest = sum(_wide(output_rows(layer, y)) for y in own.rest)

    def product(kernel: Array) -> Array:
        return output_rows(layer, multiply(layer, x, kernel))

    def target_moments(y: Array) -> tuple[Array, Array]:
        like = jax.ShapeDtypeStruct(layer.shape, y.dtype)
        return y.sum(0), jax.linear_transpose(product, like)(y)[0]

    if start is None:
        y0 = (wanted - rest).mean(0)
        x0, *moments = _input_moments(layer, x, len(wanted))
        return x0, y0, *moments, *target_moments(wanted - rest - y0)
    kernel, offset, y0 = start
    # Where a target is not positive, any value that is not will do.
    value = product(kernel) + offset + rest
    opened = jnp.where(wanted > 0, wanted, jnp.minimum(value, 0))
    return target_moments(opened - rest - y0)


def _input_moments(layer: Layer, x: Array, samples: int) -> tuple[Array, ...]:
    """Returns x0 and the sums of x - x0 and (x - x0)(x - x0)^T over a batch's rows.

    A convolution's rows are made for a slice of the examples at a time.
    """
    x0, axis = input_mean(layer, x), example_axis(layer)

    def moments(x: Array) -> tuple[Array, ...]:
        rows = input_rows(layer, x) - x0
        return rows.sum(0), gram(rows)

    if axis is None:
        return x0, *moments(x)
    # As many rows as inputs, so that adding a slice's second moments takes little time.
    most = min(max(4 * len(x0) ** 2, _FEW_BYTES), _MOST_BYTES)
    slices = min(x.shape[axis], math.ceil(4 * samples * len(x0) / most))
    return x0, *_sum_slices(moments, x, axis, slices)


def _sum_slices(
    function: Callable[[Array], tuple[Array, ...]], x: Array, axis: int, slices: int
) -> tuple[Array, ...]:
    """Sums a function over slices of an array along an axis.

    A slice takes every so manieth element, so that an array that is shared among
    devices along this axis stays where it is.
    """
    x = jnp.moveaxis(x, axis, 0)
    whole = len(x) - len(x) % slices
    parts = jnp.moveaxis(x[:whole].reshape(-1, slices, *x.shape[1:]), 1, 0)

    def own(part: Array) -> tuple[Array, ...]:
        return function(jnp.moveaxis(part, 0, axis))

    def step(total: Any, part: Array) -> tuple[Any, None]:
        return tuple(map(jnp.add, total, own(part))), None

    zeros = (jnp.zeros(y.shape, y.dtype) for y in jax.eval_shape(own, parts[0]))
    total, _ = jax.lax.scan(step, tuple(zeros), parts)
    return total if whole == len(x) else step(total, x[whole:])[0]


def _add_outer(matrix: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Adds an outer product to a matrix, in place: there may be no room for two."""
    return blas.dger(1.0, b, a, a=matrix.T, overwrite_a=True).T  # pyright: ignore[reportAttributeAccessIssue]


def _equations(
    count: Count, x: Inputs, xx: Second, before: Matrix, affine: Affine, ridge: float
) -> _Equations:
    """Returns the normal equations; the inputs' second moments are overwritten.

    Args:
      count: the number of samples.
      x: the sum of x.
      xx: the sum of x x^T.
      before: the merged kernel, times the slope.
      affine: the operations after the layer.
      ridge: see :func:`zipjax.refit`.
    """
    mean = np.zeros_like(x)
    if affine.step is not None:
        mean = x / count
        xx = _add_outer(xx, -x, mean)
    # Constant inputs alone leave nothing to solve for: any weight then keeps W*.
    weight = ridge * np.trace(xx) / len(xx) or 1.0
    xx[np.diag_indices_from(xx)] += weight
    return _Equations(
        count, x, mean, cho_factor(xx.T, overwrite_a=True), weight * before
    )


def _written(
    leaves: Leaves, layer: Layer, affine: Affine, solution: _Solution
) -> dict[str, Any]:
    """Returns parameters with the solution in them; dead units keep their own."""
    alive = affine.slope != 0
    old = layer.own_kernel(leaves)
    slope = np.where(alive, affine.slope, 1.0)
    kernel = np.where(alive, solution.weights / slope, kernel_matrix(layer, old))
    shifted = None
    if layer.bias is not None and affine.step is not None:
        moves = alive & (affine.step != 0)
        delta = (solution.bias - affine.offset) / np.where(moves, affine.step, 1.0)
        start = layer.own_bias(leaves)
        change = np.where(moves, delta, 0.0).reshape(start.shape)
        shifted = np.asarray(start, np.float64) + change
    return layer.replaced(leaves, matrix_kernel(layer, kernel, old), shifted)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
