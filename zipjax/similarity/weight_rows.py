"""Rows of weights: every unit's part of all parameters that touch it, on the host.

A parameter's other axes are brought into the merged space of their perms. U is one-hot
and M averages, so that this is a sparse product; it compiles nothing, whatever the
parameters' shapes.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import sparse

from zipjax.merging.matrices import Assignments, unit_targets
from zipjax.spec.blocks import array_blocks, group_axes, joined_axes
from zipjax.spec.entries import Axis, Entries, atom_blocks, atom_name
from zipjax.spec.permutation_spec import Perm, PermutationSpec
from zipjax.types import Leaves

# Rows of a chunk. Products of equal chunks share a compiled program.
CHUNK = 2048

Rows = Float[np.ndarray, "elements _rows units"]
_Perms = Mapping[str, Perm]


def weight_rows(
    models: Sequence[Leaves],
    spec: PermutationSpec,
    perm: str,
    assignments: Assignments,
    *,
    swapped: bool = True,
    once: bool = False,
) -> list[Rows]:
    """Returns what the units of a perm are compared by, in chunks of rows.

    For example, a Dense kernel ``[inputs, units]`` has, for the perm of its units, the
    rows ``U^T W`` of each model, ``[merged inputs, N*units]`` side by side.

    Args:
      models: every model's parameters by path: those that count.
      spec: the permutation spec.
      perm: the perm whose units are compared. A parameter with units of a perm that is
        nested in this one is compared there.
      assignments: how the perms are matched now; others keep their own space.
      swapped: see :class:`zipjax.similarity.measures.Similarity`.
      once: divide a parameter among its merged axes, so that it counts once in the sum
        over all perms.

    Returns:
      New arrays ``[elements, rows, N*units]`` in float32 or better: the units of all
      groups of all models, one element if the perm is nested in no index. All chunks
      but the last have ``CHUNK`` rows. Empty if no parameter is compared here.
    """
    space = _MergedSpace(spec, assignments, len(models), swapped)
    paths = dict.fromkeys(path for path, _, _ in spec.members(perm))
    blocks = (
        block
        for path in paths
        if path in models[0]
        for block in space.rows([own[path] for own in models], path, perm, once=once)
    )
    return list(_chunked(blocks))


def neighbours(spec: PermutationSpec, perm: str, paths: Iterable[str]) -> set[str]:
    """Returns the perms on whose matches the rows of a perm depend.

    Args:
      spec: the permutation spec.
      perm: the perm.
      paths: the parameters that count, all of which touch the perm.
    """
    found = {
        axis.perm
        for path in paths
        for axes in atom_blocks(spec.entries[path])
        for number in _numbers(axes, perm, spec.perms)
        for axis in _merged_axes(axes, number, perm, spec.perms).values()
    }
    # A model's own groups tell which rows of an assignment are about them.
    groups = {group for name in found for group in spec.perms[name].groups}
    return found | (groups & set(spec.perms))


class _MergedSpace:
    """Brings the axes of parameters into the merged space of their perms."""

    def __init__(
        self,
        spec: PermutationSpec,
        assignments: Assignments,
        num_models: int,
        swapped: bool,
    ) -> None:
        self._spec = spec
        self._assignments = assignments
        self._num_models = num_models
        self._swapped = swapped
        self._sums = functools.cache(self._new_sums)

    def rows(
        self, parameter: Sequence[Any], path: str, perm: str, *, once: bool
    ) -> Iterator[Rows]:
        """Yields a parameter's rows, once for each of its axes that has the perm.

        A parameter that is a concatenation has such axes in each of its parts.
        """
        perms, entries = self._spec.perms, self._spec.entries[path]
        opened = [
            array_blocks(_wide(leaf), entries, self._spec.sizes) for leaf in parameter
        ]
        for of_models in zip(*opened, strict=True):
            axes = of_models[0][1]
            for number in _numbers(axes, perm, perms):
                merged = [
                    self._merged(block, axes, number, perm, model)
                    for model, (block, _) in enumerate(of_models)
                ]
                rows = np.concatenate(merged, axis=-1)
                if once:
                    rows /= len(_compared_axes(axes, perms)) ** 0.5
                yield rows

    def _merged(
        self, block: np.ndarray, axes: Entries, number: int, perm: str, model: int
    ) -> Rows:
        """Returns one axis' units ``[elements, rows, units]``, all other axes merged.

        Args:
          block: one model's array, whose entries are atoms.
          axes: its entries.
          number: the number of the axis.
          perm: the axis' perm.
          model: the model's number.
        """
        perms = self._spec.perms
        places = {atom_name(axis): k for k, axis in enumerate(axes)}
        for k, axis in _merged_axes(axes, number, perm, perms).items():
            if axis.perm in self._assignments:
                groups = [places[group] for group in perms[axis.perm].groups]
                weighed = (axis.role == "out") != self._swapped
                sums = self._sums(axis.perm, weighed)[model]
                block = _along(block, [*groups, k], sums)
        elements, units = group_axes(axes, number, perms[perm].groups)
        rest = [k for k in range(len(axes)) if k not in (*elements, *units)]
        return joined_axes(block, (elements, rest, units))

    def _new_sums(self, perm: str, weighed: bool) -> list[sparse.csr_array]:
        """Returns every model's U^T, or its N*M, of a perm: block by block of groups.

        N times M only permutes where a recipe aligns.
        """
        merged, weights = unit_targets(
            self._assignments, self._spec, perm, self._num_models
        )
        width = int(merged.max()) + 1
        values = self._num_models * weights if weighed else np.ones_like(weights)
        found = []
        for own, value in zip(merged, values, strict=True):
            table = own.reshape(-1, own.shape[-1])
            target = (np.arange(len(table))[:, None] * width + table).reshape(-1)
            places = target, np.arange(table.size)
            shape = len(table) * width, table.size
            found.append(sparse.csr_array((value.reshape(-1), places), shape=shape))
        return found


def _along(
    array: np.ndarray, numbers: Sequence[int], sums: sparse.csr_array
) -> np.ndarray:
    """Multiplies the last of these axes of an array, the others being its groups."""
    first = range(len(numbers))
    moved = np.moveaxis(array, numbers, first)
    *groups, size = moved.shape[: len(numbers)]
    rest, count = moved.shape[len(numbers) :], math.prod(groups)
    out = sums @ moved.reshape(count * size, math.prod(rest))
    return np.moveaxis(out.reshape(*groups, -1, *rest), first, numbers)


def _compared_axes(axes: Entries, perms: _Perms) -> dict[int, str]:
    """Returns the axes by whose perms a block is compared: not by their groups."""
    names = {k: axis.perm for k, axis in enumerate(axes) if isinstance(axis, Axis)}
    groups = {group for name in names.values() for group in perms[name].groups}
    return {k: name for k, name in names.items() if name not in groups}


def _numbers(axes: Entries, perm: str, perms: _Perms) -> list[int]:
    """Returns the axes of a block by which the units of a perm are compared."""
    return [k for k, name in _compared_axes(axes, perms).items() if name == perm]


def _merged_axes(
    axes: Entries, number: int, perm: str, perms: _Perms
) -> dict[int, Axis]:
    """Returns the axes that are merged where one axis, of this perm, is compared.

    Those of nested perms come before their groups: these are each model's own there.
    """
    _, units = group_axes(axes, number, perms[perm].groups)
    found = [
        (k, axis)
        for k, axis in enumerate(axes)
        if isinstance(axis, Axis) and k not in units
    ]
    return dict(sorted(found, key=lambda x: -len(perms[x[1].perm].groups)))


def _wide(leaf: Any) -> np.ndarray:
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    return np.asarray(leaf).astype(dtype, copy=False)


def _chunked(blocks: Iterable[Rows]) -> Iterator[Rows]:
    """Yields all rows in new arrays of ``CHUNK`` rows, the last of which has fewer."""
    waiting: list[Rows] = []
    missing = CHUNK
    for block in blocks:
        while block.shape[1]:
            waiting.append(block[:, :missing])
            block = block[:, missing:]
            missing -= waiting[-1].shape[1]
            if not missing:
                yield np.concatenate(waiting, axis=1)
                waiting, missing = [], CHUNK
    if waiting:
        yield np.concatenate(waiting, axis=1)
