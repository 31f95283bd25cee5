"""Means and deviations of a layer's units over all samples."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zipjax.program.layers import Layer, find_layers
from zipjax.program.program import compute_values, trace
from zipjax.program.rows import kernel_axes, output_unit_axes
from zipjax.spec.entries import Entries, indices_of, part_entries
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import path_leaves
from zipjax.types import ApplyFn, Array, PyTree

# A deviation of less than this of the mean is rounding: the unit is dead.
_ROUNDING = 1e-6


class Statistics(NamedTuple):
    """Statistics of units, of the layer's shape where consumed axes have size 1."""

    mean: Any
    deviation: Any


def model_statistics(
    apply_fn: ApplyFn, names: Iterable[str], params: PyTree, arrays: tuple[Any, ...]
) -> list[Statistics]:
    """Returns the statistics after a model's layers, by name."""
    program = trace(apply_fn, params, *arrays)
    layers = find_layers(program)
    chosen = [layers[name] for name in names]
    flat = jax.tree_util.tree_leaves(arrays)
    wanted = [layer.value for layer in chosen]
    values = compute_values(program, path_leaves(params), flat, wanted)
    return [layer_statistics(x, y) for x, y in zip(chosen, values, strict=True)]


def layer_statistics(layer: Layer, y: Array) -> Statistics:
    """Returns the statistics of a layer's value; 0 for dead deviations."""
    y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    units = output_unit_axes(layer, y.ndim)
    samples = tuple(k for k in range(y.ndim) if k not in units)
    # From the first sample on: constants have no deviation, exactly.
    first = y[tuple(slice(None) if k in units else slice(1) for k in range(y.ndim))]
    centred = y - first
    mean, std = centred.mean(samples), centred.std(samples)
    mean = mean + first.reshape(mean.shape)
    std = jnp.where(std > _ROUNDING * jnp.abs(mean), std, 0)
    shape = stat_shape(layer)
    return Statistics(mean.reshape(shape), std.reshape(shape))


def num_samples(layer: Layer, shape: Sequence[int]) -> int:
    """Returns the number of samples behind the statistics of a value of this shape."""
    units = output_unit_axes(layer, len(shape))
    return math.prod(size for k, size in enumerate(shape) if k not in units)


def unit_entries(layer: Layer, spec: PermutationSpec) -> Entries | None:
    """Returns a kernel's entries on the axes that produce units, None on the others.

    None if the layer's units have an order that other parts of a stack share in.
    """
    produced, entries = kernel_axes(layer)[1], spec.entries[layer.kernel]
    if any(True for axis, _ in layer.part for _ in indices_of(entries[axis])):
        return None
    own = part_entries(entries, dict(layer.part))
    return tuple(x if k in produced else None for k, x in enumerate(own))


def stat_shape(layer: Layer) -> list[int]:
    """Returns the shape of a layer's statistics."""
    consumed = kernel_axes(layer)[0]
    return [1 if k in consumed else size for k, size in enumerate(layer.shape)]
