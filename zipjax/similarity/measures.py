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
from zipjax.spec.blocks import array_blocks, group_axes, joined_axes
from zipjax.spec.entries import Axis, Entries, entry_names, rename
from zipjax.spec.permutation_spec import Perm, PermutationSpec
from zipjax.types import Array, Leaves

Metric = Literal["correlation", "cosine", "inner"]
UnitSimilarity = Float[np.ndarray, "*elements units units"]


@dataclasses.dataclass(frozen=True)
class Similarity:
    """How units are compared when they are matched.

    Attributes:
      balance: weight of the weight space, in [0, 1]: 0 compares activations only, 1
        weights only (MuDSC, Eq. 4, where it is called alpha).
      metric: how weights are compared: by their "correlation", their "cosine", or
        their "inner" product, which is what Git Re-Basin maximises.
      swapped: which matrix brings a unit's weights into the merged space of the other
        perms that they touch. True is MuDSC's reference: M on consumed and U on
        produced axes, the opposite of how weights are merged. False is U on consumed
        and M on produced ones. For permutations the two are the same.
      statistics: whether the running statistics of BatchNorms count as weights. They
        describe activations, which helps an alignment by weights alone, but their
        scale drowns everything else in a zip.

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


def activation_similarity(moments: Moments) -> UnitSimilarity:
    """Returns the correlations of the units' activations, in float64 on the host.

    Args:
      moments: the moments of a perm.

    Returns:
      ``[N*n, N*n]``; of a perm nested in indices one such matrix for each element.
    """
    if np.ndim(moments.m2) == 2:
        return np.asarray(moments.correlation(), np.float64)
    return np.asarray(jax.lax.map(Moments.correlation, moments), np.float64)


def weight_similarity(
    stacked: Leaves,
    spec: PermutationSpec,
    perm: str,
    matrices: Matrices,
    *,
    metric: Metric = "correlation",
    swapped: bool = True,
    once: bool = False,
) -> UnitSimilarity | None:
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
      of a perm nested in indices, one such matrix for each of their elements. None if
      no parameter is compared here.
    """
    samples = []
    for path in dict.fromkeys(path for path, _, _ in spec.members(perm)):
        if path in stacked:
            samples += _parameter_samples(
                stacked[path], spec, path, perm, matrices, swapped, once
            )
    if not samples:
        return None
    compared = np.asarray(_compared(samples, metric), np.float64)
    return compared[0] if spec.elements(perm) is None else compared


def _parameter_samples(
    parameter: Array,
    spec: PermutationSpec,
    path: str,
    perm: str,
    matrices: Matrices,
    swapped: bool,
    once: bool,
) -> list[Array]:
    """Returns a parameter's part of it: ``[elements, samples, N*units]`` arrays."""
    entries = spec.entries[path]
    # Perms are numbered: parameters with alike entries share a compiled program.
    numbers = {name: str(k) for k, name in enumerate(entry_names(entries))}
    perms = tuple(
        (number, _renamed(spec.perms[name], numbers))
        for name, number in numbers.items()
        if name in spec.perms
    )
    return _merged_samples(
        parameter,
        {numbers[p]: matrices[p] for p in numbers if p in matrices},
        entries=tuple(rename(entry, numbers) for entry in entries),
        perms=perms,
        perm=numbers[perm],
        swapped=swapped,
        once=once,
    )


@jax.jit(static_argnames=("entries", "perms", "perm", "swapped", "once"))
def _merged_samples(
    parameter: Array,
    matrices: Matrices,
    *,
    entries: Entries,
    perms: tuple[tuple[str, Perm], ...],
    perm: str,
    swapped: bool,
    once: bool,
) -> list[Array]:
    """Brings all axes of a parameter but one perm's into the merged space.

    For example, of a Dense kernel ``[models, inputs, units]`` with perms "0" and "1",
    perm "1" has one block: ``U_0^T W`` of each model, ``[merged inputs, N*units]`` side
    by side. A parameter that is a concatenation gives one block per part.

    Args:
      parameter: of all models, ``[models, ...]``.
      matrices: M and U by perm, ``[models, ...]``.
      entries: the parameter's entries, without the models.
      perms: ``(name, Perm)`` of every perm among the entries.
      perm: the perm whose units are represented.
      swapped: see :class:`Similarity`.
      once: see :func:`weight_similarity`.

    Returns:
      ``[elements, samples, N*units]``, one for each block that has the perm.
    """
    by_name = dict(perms)
    sizes = {name: x.size for name, x in by_name.items()}
    num_models = parameter.shape[0]
    # N times M only permutes where a recipe aligns.
    factors = {p: (num_models * m, u) for p, (m, u) in matrices.items()}
    if swapped:
        factors = {p: _transposed(m, u) for p, (m, u) in factors.items()}

    def blocks_of(array: Array, own: Matrices) -> list[Array]:
        return [
            _merged_block(block, axes, number, perm, by_name, own, once=once)
            for block, axes in array_blocks(array, entries, sizes)
            for number, name in _compared_axes(axes, by_name).items()
            if name == perm
        ]

    wide = parameter.astype(jnp.promote_types(parameter.dtype, jnp.float32))
    found = jax.vmap(blocks_of)(wide, factors)  # [models, elements, samples, units].
    return [jnp.concatenate(list(block), axis=-1) for block in found]


def _merged_block(
    block: Array,
    axes: Entries,
    number: int,
    perm: str,
    perms: Mapping[str, Perm],
    own: Matrices,
    *,
    once: bool,
) -> Array:
    """Returns one axis' ``[elements, samples, units]``, the others merged."""
    elements, units = group_axes(axes, number, perms[perm].groups)
    others = [k for k in range(len(axes)) if k not in units]
    merged = multiply_axes(block, axes, perms, own, numbers=others)
    samples = joined_axes(
        merged, (elements, [k for k in others if k not in elements], units)
    )
    return samples / len(_compared_axes(axes, perms)) ** 0.5 if once else samples


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
def _compared(parts: list[Array], metric: Metric) -> Array:
    return jax.vmap(functools.partial(_compared_units, metric=metric))(
        jnp.concatenate(parts, axis=1)
    )


def _compared_units(
    samples: Float[Array, "samples units"], metric: Metric
) -> Float[Array, "units units"]:
    if metric == "correlation":
        return Moments.of(samples).correlation()
    inner = jnp.matmul(samples.T, samples, precision=jax.lax.Precision.HIGHEST)
    if metric == "inner":
        return inner
    norms = jnp.sqrt(jnp.diag(inner))
    scale = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
    return jnp.clip(inner * scale[:, None] * scale[None, :], -1, 1)
