"""Merged weights W* = sum_i M_i W_i U_i, by einsum over the permutation spec."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zipjax.compounds import map_leaf_axes
from zipjax.entries import Axis, Entries
from zipjax.types import Array, Leaves

Matrices = Mapping[str, tuple[Array, Array]]
"""M ``[models, units, n]`` and U ``[models, n, units]`` by perm."""


def merge_leaf(
    leaves: Sequence[Array],
    entries: Entries,
    sizes: Mapping[str, int],
    matrices: Matrices,
) -> Array:
    """Merges one parameter of all models: sum_i M_i W_i U_i (ZipIt!, Appendix A).

    The rule is the same for every layer: kernel windows are batch axes, biases and
    norms have produced axes only. BatchNorm variances are averaged like everything
    else, where the paper squares M: that is right for units that are one feature of
    several models, and what is right for the others is measured by
    :func:`zipjax.reset_batch_stats`. An axis without a perm is averaged.

    Args:
      leaves: the parameter of every model, of one shape.
      entries: its axes' entries.
      sizes: number of units of every perm before merging.
      matrices: M and U of every perm that is merged.

    Returns:
      The merged parameter, computed in float32 or better, of the models' dtype.
    """
    num_models = len(leaves)

    def contribution(model: int) -> Array:
        def multiply(array: Array, axes: Entries) -> Array:
            merged = [x for x in axes if isinstance(x, Axis) and x.perm in matrices]
            produced = sum(axis.role == "out" for axis in merged)
            # Every M sums to 1 over the models; so must their product.
            scale = float(num_models) ** (produced - 1)
            return scale * _multiply(array, axes, matrices, model)

        wide = leaves[model].astype(_wide(leaves[model]))
        return map_leaf_axes(wide, entries, sizes, multiply)

    total = functools.reduce(jnp.add, map(contribution, range(num_models)))
    return total.astype(leaves[0].dtype)


def unmerge_leaf(
    leaf: Array,
    model: int,
    entries: Entries,
    sizes: Mapping[str, int],
    matrices: Matrices,
) -> Array:
    """Lets a parameter that stays the model's own read merged units: W_i U_i."""

    def multiply(array: Array, axes: Entries) -> Array:
        consumed = tuple(axis if _role(axis) == "in" else None for axis in axes)
        return _multiply(array, consumed, matrices, model)

    out = map_leaf_axes(leaf.astype(_wide(leaf)), entries, sizes, multiply)
    return out.astype(leaf.dtype)


@jax.jit(static_argnames=("axes", "sizes", "trunk"))
def merge_all(
    models: Sequence[Leaves],
    matrices: Matrices,
    *,
    axes: tuple[tuple[str, Entries], ...],
    sizes: tuple[tuple[str, int], ...],
    trunk: frozenset[str],
) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Merges all parameters in one compiled call.

    Args:
      models: every model's parameters by path.
      matrices: M and U of the zipped perms.
      axes: the spec's entries, by path.
      sizes: number of units of every perm.
      trunk: the paths that are shared; the others stay each model's own.

    Returns:
      The trunk's leaves and every model's own leaves, by path.
    """
    units, shared = dict(sizes), {}
    heads: list[dict[str, Any]] = [{} for _ in models]
    for path, entries in axes:
        leaves = [model[path] for model in models]
        if path in trunk:
            shared[path] = merge_leaf(leaves, entries, units, matrices)
        else:
            for number, (head, leaf) in enumerate(zip(heads, leaves, strict=True)):
                head[path] = unmerge_leaf(leaf, number, entries, units, matrices)
    return shared, heads


def _multiply(array: Array, axes: Entries, matrices: Matrices, model: int) -> Array:
    """Multiplies M_i or U_i to every axis that has a merged perm."""
    operands: list[Any] = [array, list(range(array.ndim))]
    result = list(range(array.ndim))
    for number, axis in enumerate(axes):
        if isinstance(axis, Axis) and axis.perm in matrices:
            merge, unmerge = matrices[axis.perm]
            result[number] = array.ndim + number
            if axis.role == "out":
                operands += [merge[model], [result[number], number]]
            else:
                operands += [unmerge[model], [number, result[number]]]
    if len(operands) == 2:
        return array
    return jnp.einsum(*operands, result, precision=jax.lax.Precision.HIGHEST)


def _role(axis: Any) -> str | None:
    return axis.role if isinstance(axis, Axis) else None


def _wide(leaf: Array) -> jnp.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)
