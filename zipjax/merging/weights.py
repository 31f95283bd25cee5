"""Merged weights W* = sum_i M_i W_i U_i, by einsum over the permutation spec."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.arguments import is_number, wrong
from zipjax.spec.blocks import map_atoms
from zipjax.spec.entries import Axis, Entries, atom_name, entry_names, rename
from zipjax.spec.permutation_spec import Perm
from zipjax.trees import is_weight, summary
from zipjax.types import AnyArray, Array

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
    own = jnp.asarray(shares, parts.dtype)
    total = jnp.tensordot(own, parts, 1, precision=jax.lax.Precision.HIGHEST)
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
        return np.ones(num_models)
    if isinstance(weights, str | bytes) or not isinstance(weights, Iterable):
        raise wrong("weights", weights)
    given = list(weights)
    shares = np.array([x if is_number(x) else np.nan for x in given], np.float64)
    if shares.shape != (num_models,) or not np.isclose(shares.sum(), 1):
        raise ValueError(
            f"weights = {given} are not interpolation weights of {num_models} "
            "models: pass one number per model, with sum 1"
        )
    return num_models * shares


def _matches(path: str, pattern: str) -> bool:
    inside = path == pattern or path.startswith(f"{pattern.rstrip('/')}/")
    return inside or fnmatch.fnmatchcase(path, pattern)


def merged_parameter(
    leaves: Sequence[AnyArray],
    entries: Entries,
    perms: Mapping[str, Perm],
    matrices: Matrices,
    shares: AnyArray,
) -> Array:
    """Merges one parameter of all models in a compiled call; see :func:`merge_leaf`.

    Parameters of equal shapes with alike entries share the compiled program.

    Args:
      leaves: every model's parameter.
      entries: see :func:`merge_leaf`.
      perms: see :func:`merge_leaf`.
      matrices: see :func:`merge_leaf`.
      shares: see :func:`merge_leaf`.
    """
    own, tied = numbered(entries, perms, matrices)
    return _merged(tuple(leaves), own, shares, tied=tied)


def unmerged_parameter(
    leaf: Any,
    entries: Entries,
    perms: Mapping[str, Perm],
    matrices: Matrices,
    model: int,
) -> Any:
    """Unmerges one model's own parameter in a compiled call; see :func:`unmerge_leaf`.

    Args:
      leaf: the parameter.
      entries: see :func:`unmerge_leaf`.
      perms: see :func:`unmerge_leaf`.
      matrices: M and U of all models.
      model: the model's number.
    """
    own, tied = numbered(entries, perms, matrices)
    return _unmerged(leaf, own, model, tied=tied)


Tied: TypeAlias = tuple[Entries, tuple[tuple[str, Perm], ...]]
"""Entries, and ``(name, Perm)`` of every perm among them and of their groups."""


def numbered(
    entries: Entries, perms: Mapping[str, Perm], matrices: Matrices
) -> tuple[Matrices, Tied]:
    """Returns matrices, entries and perms with numbers for names, in their order.

    What is alike but for its names is then equal: static data of one compiled program.

    Args:
      entries: a parameter's entries, or some of them.
      perms: the spec's perms.
      matrices: M and U by perm; may have those of other perms.
    """
    own = entry_names(entries)
    groups = [group for name in own if name in perms for group in perms[name].groups]
    numbers = {name: str(k) for k, name in enumerate(dict.fromkeys([*own, *groups]))}

    def renamed(perm: Perm) -> Perm:
        return Perm(perm.size, tuple(numbers[group] for group in perm.groups))

    tied = tuple((k, renamed(perms[p])) for p, k in numbers.items() if p in perms)
    merged = {k: matrices[p] for p, k in numbers.items() if p in matrices}
    return merged, (tuple(rename(entry, numbers) for entry in entries), tied)


@jax.jit(static_argnames="tied")
def _merged(
    leaves: tuple[Array, ...], matrices: Matrices, shares: Array, *, tied: Tied
) -> Array:
    entries, perms = tied
    return merge_leaf(jnp.stack(leaves), entries, dict(perms), matrices, shares)


@jax.jit(static_argnames="tied")
def _unmerged(leaf: Any, matrices: Matrices, model: Array, *, tied: Tied) -> Any:
    entries, perms = tied
    own = {perm: (m[model], u[model]) for perm, (m, u) in matrices.items()}
    return unmerge_leaf(leaf, entries, dict(perms), own)


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
