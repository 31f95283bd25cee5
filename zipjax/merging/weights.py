"""Merged weights W* = sum_i M_i W_i U_i, by einsum over the permutation spec."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.merging.each import OneOrEach, each
from zipjax.spec.blocks import map_atoms
from zipjax.spec.entries import Axis, Entries, atom_name
from zipjax.spec.permutation_spec import Perm, PermutationSpec
from zipjax.trees import is_weight, summary
from zipjax.types import AnyArray, Array, Leaves

Matrices = Mapping[str, tuple[Array, Array]]
"""M ``[models, *groups, units, n]`` and U ``[models, *groups, n, units]`` by perm.

Perms nested in others have one pair for each of the models' own groups.
"""

Weights: TypeAlias = Sequence[float] | Mapping[str, Sequence[float]]
"""Interpolation weights: one number per model, or such numbers by path or pattern."""


def merge_leaf(
    leaves: Array,
    entries: Entries,
    perms: Mapping[str, Perm],
    matrices: Matrices,
    shares: AnyArray,
) -> Array:
    """Merges one parameter of all models: sum_i M_i W_i U_i (ZipIt!, Appendix A).

    The rule is the same for every layer: kernel windows are batch axes, biases and
    norms have produced axes only. BatchNorm variances are averaged like everything
    else, where the paper squares M: averaging is right for units that are the same
    feature in several models, and :func:`zipjax.reset_batch_stats` measures what is
    right for the others. An axis without a perm is averaged.

    Args:
      leaves: the parameter of every model, ``[models, ...]``.
      entries: its axes' entries.
      perms: the spec's perms, with their sizes before merging.
      matrices: M and U of every perm that is merged.
      shares: N times the models' weights, ``[models]``.

    Returns:
      The merged parameter, computed in float32 or better, of the models' dtype.
    """
    num_models = leaves.shape[0]
    sizes = {name: perm.size for name, perm in perms.items()}

    def contribution(leaf: Array, own: Matrices) -> Array:
        def multiply(array: Array, axes: Entries) -> Array:
            merged = [x for x in axes if isinstance(x, Axis) and x.perm in own]
            produced = sum(axis.role == "out" for axis in merged)
            # Every M sums to 1 over the models; so must their product.
            scale = float(num_models) ** (produced - 1)
            return scale * multiply_axes(array, axes, perms, own)

        return map_atoms(leaf, entries, sizes, multiply)

    parts = jax.vmap(contribution)(leaves.astype(_wide(leaves)), matrices)
    total = jnp.tensordot(shares, parts, 1, precision=jax.lax.Precision.HIGHEST)
    return total.astype(leaves.dtype)


def unmerge_leaf(
    leaf: Array, entries: Entries, perms: Mapping[str, Perm], own: Matrices
) -> Array:
    """Makes a parameter that stays the model's own read merged units: W_i U_i.

    Args:
      leaf: the parameter of one model. What holds no floating-point numbers stays.
      entries: its axes' entries.
      perms: the spec's perms.
      own: M_i and U_i of this model.
    """
    if not is_weight(leaf):
        return leaf

    def multiply(array: Array, axes: Entries) -> Array:
        consumed = [k for k, x in enumerate(axes) if getattr(x, "role", "") == "in"]
        return multiply_axes(array, axes, perms, own, numbers=consumed)

    sizes = {name: perm.size for name, perm in perms.items()}
    out = map_atoms(leaf.astype(_wide(leaf)), entries, sizes, multiply)
    return out.astype(leaf.dtype)


def interpolation_shares(
    weights: Weights | None, paths: Iterable[str], num_models: int
) -> dict[str, np.ndarray]:
    """Returns N times the models' weights of every parameter: ``[models]`` by path.

    Args:
      weights: see :func:`zipjax.merge`; None for equal ones.
      paths: the parameters that are merged.
      num_models: number of models N.

    Raises:
      ValueError: if there is another number of weights, if they do not sum to 1, or if
        a pattern matches none of the parameters.
    """
    if not isinstance(weights, Mapping):
        return dict.fromkeys(paths, _row(weights, num_models))
    shares = dict.fromkeys(paths, _row(None, num_models))
    for pattern, own in weights.items():
        matched = [path for path in shares if _matches(path, pattern)]
        if not matched:
            raise ValueError(
                f"weights name {pattern!r}, which is no merged parameter, no folder "
                f"and no pattern of any. The parameters are {summary(shares)}"
            )
        shares.update(dict.fromkeys(matched, _row(own, num_models)))
    return shares


def fixed_weights(weights: Weights | None) -> Weights | None:
    """Returns a read-only copy of interpolation weights."""
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        rows = {pattern: tuple(map(float, own)) for pattern, own in weights.items()}
        return MappingProxyType(rows)
    return tuple(map(float, weights))


def _row(weights: Sequence[float] | None, num_models: int) -> np.ndarray:
    if weights is None:
        return np.ones(num_models, np.float32)
    shares = np.asarray(weights, np.float64)
    if shares.shape != (num_models,) or not np.isclose(shares.sum(), 1):
        raise ValueError(
            f"weights = {list(weights)} are not interpolation weights of {num_models} "
            "models: pass one number per model, with sum 1"
        )
    return (num_models * shares).astype(np.float32)


def _matches(path: str, pattern: str) -> bool:
    inside = path == pattern or path.startswith(f"{pattern.rstrip('/')}/")
    return inside or fnmatch.fnmatchcase(path, pattern)


@jax.jit(static_argnames=("spec", "trunk"))
def merge_all(
    models: Sequence[Leaves],
    heads: Sequence[Sequence[Leaves]],
    matrices: Matrices,
    shares: Mapping[str, Array],
    *,
    spec: OneOrEach[PermutationSpec],
    trunk: frozenset[str],
) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Merges all parameters in one compiled call.

    Args:
      models: every model's parameters by path, as far as they are averaged.
      heads: every model's own parameters, for each of its heads.
      matrices: M and U of the zipped perms.
      shares: see :func:`interpolation_shares`.
      spec: the permutation spec, or a tuple with one per model.
      trunk: the paths that are shared; the others stay each model's own.

    Returns:
      The trunk's leaves and every head's own leaves, by path.
    """
    specs = each(spec, len(models), "specs")
    first = specs[0]
    shared: dict[str, Array] = {}
    for path in (path for path in first.entries if path in models[0]):
        stacked = jnp.stack([model[path] for model in models])
        entries = first.entries[path]
        own_shares = shares[path]
        shared[path] = merge_leaf(stacked, entries, first.perms, matrices, own_shares)
    unmerged: list[dict[str, Array]] = []
    for k, (own_spec, of_model) in enumerate(zip(specs, heads, strict=True)):
        mine = {perm: (m[k], u[k]) for perm, (m, u) in matrices.items()}
        rest = {p: e for p, e in own_spec.entries.items() if p not in trunk}
        unmerged += [
            {p: unmerge_leaf(own[p], e, own_spec.perms, mine) for p, e in rest.items()}
            for own in of_model
        ]
    return shared, unmerged


def multiply_axes(
    array: Array,
    axes: Entries,
    perms: Mapping[str, Perm],
    own: Matrices,
    *,
    numbers: Collection[int] | None = None,
) -> Array:
    """Multiplies produced axes by one model's M and consumed axes by its U.

    Args:
      array: an array whose entries are atoms.
      axes: its entries; those without a merged perm stay as they are.
      perms: the spec's perms: units nested in groups have their own M and U in each.
      own: M_i ``[*groups, units, n]`` and U_i ``[*groups, n, units]`` by perm.
      numbers: numbers of the axes to multiply; by default all.
    """
    places = {atom_name(axis): k for k, axis in enumerate(axes)}
    operands: list[Any] = [array, list(range(array.ndim))]
    result = list(range(array.ndim))
    for number, axis in enumerate(axes):
        chosen = numbers is None or number in numbers
        if chosen and isinstance(axis, Axis) and axis.perm in own:
            groups = [places[group] for group in perms[axis.perm].groups]
            merge, unmerge = own[axis.perm]
            result[number] = array.ndim + number
            if axis.role == "out":
                operands += [merge, [*groups, result[number], number]]
            else:
                operands += [unmerge, [*groups, number, result[number]]]
    if len(operands) == 2:
        return array
    return jnp.einsum(*operands, result, precision=jax.lax.Precision.HIGHEST)


def _wide(leaf: Array) -> jnp.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)
