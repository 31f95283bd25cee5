"""Similarities of the concatenated units of all models, for the matchers.

Activations are compared by their correlation (ZipIt!, Section 3), weights by all
parameters that touch a unit (Git Re-Basin, Section 3.2; MuDSC, Eq. 6), or both by the
blend of MuDSC's Eq. 4.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zipjax.merging.weights import Matrices, multiply_axes
from zipjax.similarity.moments import Moments
from zipjax.spec.blocks import array_blocks, flat_units, unit_axes
from zipjax.spec.entries import Axis, Entries, entry_names, rename
from zipjax.spec.permutation_spec import Perm, PermutationSpec
from zipjax.types import Array, Leaves

Metric = Literal["correlation", "cosine", "inner"]
Units = Float[np.ndarray, "units units"]


@dataclasses.dataclass(frozen=True)
class Similarity:
    """What is compared when units are matched.

    Attributes:
      balance: weight of the weight space, in [0, 1]: 0 compares activations only, 1
        weights only (MuDSC, Eq. 4, where it is called alpha).
      metric: how weights are compared: by their "correlation", their "cosine", or
        their "inner" product, which is what Git Re-Basin maximises.
      swapped: with which matrix a unit's weights are brought into the merged space of
        the other perms that they touch. MuDSC's reference takes M on consumed and U on
        produced axes, the opposite of how weights are merged; so does True. False
        takes U on consumed and M on produced ones. For permutations they are the same.
      statistics: whether the running statistics of BatchNorms count as weights. They
        tell of activations, which helps an alignment by weights alone, but their scale
        drowns all else in a zip.

    Raises:
      ValueError: if the balance lies outside [0, 1] or the metric is unknown, or if
        inner products, which have no scale, are to be blended.
    """

    balance: float
    metric: Metric = "correlation"
    swapped: bool = True
    statistics: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance = {self.balance} must lie in [0, 1]")
        if self.metric not in ("correlation", "cosine", "inner"):
            raise ValueError(
                f"metric = {self.metric!r} is unknown: choose 'correlation', 'cosine' "
                "or 'inner'"
            )
        if self.metric == "inner" and self.balance < 1:
            raise ValueError(
                f"inner products have no scale to blend with balance {self.balance}: "
                "choose the metric 'correlation' or 'cosine'"
            )


def activation_similarity(moments: Moments) -> Units:
    """Returns the correlations of the units' activations, in float64 on the host."""
    return np.asarray(moments.correlation(), np.float64)


def weight_similarity(
    stacked: Leaves,
    spec: PermutationSpec,
    perm: str,
    matrices: Matrices,
    *,
    metric: Metric = "correlation",
    swapped: bool = True,
    once: bool = False,
) -> Units | None:
    """Compares all parameters that touch the units of a perm (MuDSC, Eq. 6).

    A unit is represented by the concatenation of its part of every parameter, whose
    other axes are brought into the merged space of the other perms. A parameter with
    units of a perm that is nested in this one is compared there.

    Args:
      stacked: the parameters that count, of all models, ``[models, ...]`` by path.
      spec: the permutation spec.
      perm: the perm.
      matrices: M and U of the merged perms, as they are matched now.
      metric: how weights are compared.
      swapped: see :class:`Similarity`.
      once: divide a parameter among its merged axes, so that it counts once in the sum
        over all perms.

    Returns:
      ``[N*n, N*n]`` in float64 on the host, of the units of all groups of all models;
      None if no parameter is compared here.
    """
    rows = []
    for path in dict.fromkeys(path for path, _, _ in spec.members(perm)):
        if path in stacked:
            rows += _rows_of(stacked[path], spec, path, perm, matrices, swapped, once)
    return np.asarray(_compared(rows, metric), np.float64) if rows else None


def _rows_of(
    leaf: Array,
    spec: PermutationSpec,
    path: str,
    perm: str,
    matrices: Matrices,
    swapped: bool,
    once: bool,
) -> list[Array]:
    """Returns what a parameter of all models says of units: ``[samples, N*units]``."""
    entries = spec.entries[path]
    # Perms go by number: parameters of one shape share a compiled program.
    names = {name: str(k) for k, name in enumerate(entry_names(entries))}
    perms = tuple(
        (short, _renamed(spec.perms[name], names))
        for name, short in names.items()
        if name in spec.perms
    )
    return _merged_rows(
        leaf,
        {names[p]: matrices[p] for p in names if p in matrices},
        entries=tuple(rename(entry, names) for entry in entries),
        perms=perms,
        perm=names[perm],
        swapped=swapped,
        once=once,
    )


@jax.jit(static_argnames=("entries", "perms", "perm", "swapped", "once"))
def _merged_rows(
    leaf: Array,
    matrices: Matrices,
    *,
    entries: Entries,
    perms: tuple[tuple[str, Perm], ...],
    perm: str,
    swapped: bool,
    once: bool,
) -> list[Array]:
    every = dict(perms)
    sizes = {name: x.size for name, x in every.items()}

    def views(leaf: Array, own: Matrices) -> list[Array]:
        return [
            _merged_view(block, axes, number, perm, every, own, once=once)
            for block, axes in array_blocks(leaf, entries, sizes)
            for number, name in _compared_axes(axes, every).items()
            if name == perm
        ]

    num_models = leaf.shape[0]
    # N times M: where it permutes, it does no more than that.
    scaled = {p: (num_models * m, u) for p, (m, u) in matrices.items()}
    if swapped:
        scaled = {p: _transposed(*both) for p, both in scaled.items()}
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    found = jax.vmap(views)(wide, scaled)
    return [jnp.concatenate(list(view), axis=1) for view in found]


def _merged_view(
    block: Array,
    axes: Entries,
    number: int,
    perm: str,
    perms: Mapping[str, Perm],
    own: Matrices,
    *,
    once: bool,
) -> Array:
    """Returns ``[samples, units]`` of one axis, the others in the merged space."""
    units = unit_axes(axes, number, perms[perm].groups)
    others = [k for k in range(len(axes)) if k not in units]
    merged = multiply_axes(block, axes, perms, own, numbers=others)
    view = flat_units(merged, units)
    return view / len(_compared_axes(axes, perms)) ** 0.5 if once else view


def _compared_axes(axes: Entries, perms: Mapping[str, Perm]) -> dict[int, str]:
    """Returns the axes by whose perms a block is compared: not by their groups."""
    names = {k: axis.perm for k, axis in enumerate(axes) if isinstance(axis, Axis)}
    groups = {group for name in names.values() for group in perms[name].groups}
    return {k: name for k, name in names.items() if name not in groups}


def _transposed(merge: Array, unmerge: Array) -> tuple[Array, Array]:
    """Returns the matrices for M on consumed and U on produced axes."""
    return jnp.swapaxes(unmerge, -1, -2), jnp.swapaxes(merge, -1, -2)


def _renamed(perm: Perm, names: Mapping[str, str]) -> Perm:
    return Perm(perm.size, tuple(names[group] for group in perm.groups))


@functools.partial(jax.jit, static_argnames="metric")
def _compared(rows: list[Array], metric: Metric) -> Array:
    samples = jnp.concatenate(rows)
    if metric == "correlation":
        return Moments.empty(samples.shape[1]).update(samples).correlation()
    inner = jnp.matmul(samples.T, samples, precision=jax.lax.Precision.HIGHEST)
    if metric == "inner":
        return inner
    norms = jnp.sqrt(jnp.diag(inner))
    scale = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
    return jnp.clip(inner * scale[:, None] * scale[None, :], -1, 1)
