"""One layer's least squares, from moments that are summed over the batches."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.linalg import blas, cho_factor, cho_solve

from zipjax import hosts
from zipjax.calibration.passes import Pass
from zipjax.calibration.samples import LayerSamples, Rows, Sampling
from zipjax.calibration.targets import Target
from zipjax.program.layers import Layer
from zipjax.program.rows import kernel_matrix, matrix_kernel
from zipjax.similarity.gram import gram
from zipjax.types import Array, Leaves

Matrix = Float[np.ndarray, "inputs units"]
Vector = Float[np.ndarray, "units"]
Inputs = Float[np.ndarray, "inputs"]
Second = Float[np.ndarray, "inputs inputs"]
Count = Float[np.ndarray, ""]


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
    sampling: Sampling,
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
      sampling: which samples are read.
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
    sweeps = sweeps if layer.relu else 0
    samples = LayerSamples(merged, models, name, target, sampling)
    found = samples.moments(_moments, keep=sweeps > 0)
    count, x, xx, y, xy = _total(map(_about_zero, found))
    before = kernel_matrix(layer, layer.own_kernel(merged.leaves)) * affine.slope
    equations = _equations(count, x, xx, before, affine, ridge)
    solution = equations.solution(affine, y, xy)
    for _ in range(sweeps):
        found = samples.moments(_open_moments, *solution, keep=True)
        y, xy = _total(map(jax.device_get, found))
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


def _about_zero(found: Sequence[Any]) -> Sequence[Any]:
    """Returns some samples' number, and their sums of x, x x^T, y and x y^T.

    In float64 products of means do no harm: sums about zero can be added without
    agreeing on constants.

    Args:
      found: of these samples, see `_moments`.
    """
    count, *sums = jax.device_get(found)
    x0, y0, x, xx, y, xy = (np.array(part, np.float64, order="C") for part in sums)
    x_total = x + count * x0
    xx = _add_outer(_add_outer(xx, x0, x_total), x, x0)
    return count, x_total, xx, y + count * y0, xy + np.outer(x_total, y0)


def _moments(rows: Rows) -> tuple[Any, ...]:
    """Returns the number of samples, means x0 and y0, and moments about these.

    Here y is what is left of the target for the layer itself. The moments are the sums
    of x - x0, of its product with itself, of y - y0, and of x (y - y0)^T. They are
    taken about means so that no precision is lost in float32.
    """
    x, y = rows.x, rows.wanted - sum(rows.rest)
    x0, y0 = x.mean(0), y.mean(0)
    centred = x - x0
    about = x0, y0, centred.sum(0), gram(centred)
    return len(x), *about, *_target_moments(x, y - y0)


def _open_moments(
    rows: Rows, weights: Array, bias: Array, point: Array
) -> tuple[Array, Array]:
    """Returns the sums of y and x y^T for the targets that a ReLU leaves open.

    Both are about the solution's point.
    """
    rest = sum(rows.rest)
    value = jnp.matmul(rows.x, weights, precision="highest") + bias + rest
    # Where a target is not positive, any value that is not will do.
    opened = jnp.where(rows.wanted > 0, rows.wanted, jnp.minimum(value, 0))
    return _target_moments(rows.x, opened - rest - point)


def _target_moments(x: Array, y: Array) -> tuple[Array, Array]:
    return y.sum(0), jnp.matmul(x.T, y, precision="highest")


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
