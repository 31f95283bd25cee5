"""Random permutations of parameters that respect the groups of a spec."""

from typing import Any

import jax
import numpy as np

from zipjax.compounds import map_leaf_axes
from zipjax.entries import Axis, Entries, leaf_axes
from zipjax.spec import PermutationSpec
from zipjax.trees import from_leaves, path_leaves

Permutations = dict[str, np.ndarray]


def random_permutations(spec: PermutationSpec, seed: int = 0) -> Permutations:
    """Draws ``[*sizes of the groups, size]`` for every perm, none of them identity."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, perm in spec.perms.items():
        outer = [spec.perms[group].size for group in perm.groups]
        rows = np.tile(np.arange(perm.size), (*outer, 1))
        while perm.size > 1 and (rows == np.arange(perm.size)).all():
            rows = rng.permuted(rows, axis=-1)
        out[name] = rows
    return out


def permuted(params: Any, spec: PermutationSpec, perms: Permutations) -> Any:
    """Returns the parameters with their units in the order of ``perms``."""

    def reorder(array: Any, entries: Entries) -> Any:
        names = [e.perm if isinstance(e, Axis) else None for e in entries]
        numbers = [k for k, name in enumerate(names) if name is not None]
        # A group's own order is that of the group it comes from: outer perms last.
        for k in sorted(numbers, key=lambda k: -len(spec.perms[names[k]].groups)):
            array = np.take_along_axis(array, _index(array, names, k), axis=k)
        return array

    def _index(array: Any, names: list, k: int) -> np.ndarray:
        index = perms[names[k]]
        places = [names.index(group) for group in spec.perms[names[k]].groups]
        order = np.argsort([*places, k])
        shape = [1] * array.ndim
        for place in [*places, k]:
            shape[place] = array.shape[place]
        return index.transpose(order).reshape(shape)

    leaves = {
        path: np.asarray(
            map_leaf_axes(np.asarray(leaf), spec.axes[path], spec.sizes, reorder)
        )
        for path, leaf in path_leaves(params).items()
    }
    return from_leaves(leaves, params)


def error_of(case: Any, spec: PermutationSpec, seed: int = 0) -> float:
    """Returns the relative change of the outputs; the parameters must move."""
    moved = permuted(case.params, spec, random_permutations(spec, seed))
    before, after = path_leaves(case.params), path_leaves(moved)
    for path, entries in spec.axes.items():
        if any(axis for entry in entries for axis in leaf_axes(entry)):
            same = np.array_equal(before[path], after[path])
            assert not same, f"{path} did not move"
    outputs = [jax.jit(case.apply_fn)(p, *case.inputs) for p in (case.params, moved)]
    errors = []
    for a, b in zip(*map(jax.tree_util.tree_leaves, outputs), strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        assert np.isfinite(a).all()
        assert a.std() > 0
        errors.append(np.abs(a - b).max() / np.abs(a).max())
    return max(errors)
