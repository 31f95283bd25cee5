"""Assembling a merged model from networks and the assignments of their units."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zipjax.arguments import check_kind
from zipjax.merging.carried import carried_leaves
from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.matrices import Assignments, model_matrices
from zipjax.merging.merged import Merged, Origin, heads_of
from zipjax.merging.networks import Networks
from zipjax.merging.stream_heads import own_paths
from zipjax.merging.weights import (
    Matrices,
    Weights,
    interpolation_shares,
    merged_parameter,
    unmerged_parameter,
)
from zipjax.spec.entries import entry_names
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import check_same_keys, not_finite, path_leaves
from zipjax.types import PyTree


def merge_units(
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
    assignments: Assignments,
    *,
    stop_at: str | int | None = None,
    weights: Weights | None = None,
    carry: int | None = None,
) -> Merged:
    """Merges models by given assignments; see :func:`zipjax.merge`.

    Args:
      models: see :func:`zipjax.merge`.
      spec: see :func:`zipjax.merge`.
      assignments: how units are matched, from :func:`zipjax.match` with the same stop.
      stop_at: see :func:`zipjax.merge`.
      weights: see :func:`zipjax.merge`.
      carry: see :func:`zipjax.merge`.

    Raises:
      ValueError: if an assignment is missing or has another shape than ``[N*n]``, or
        ``[*groups, N*n]`` for perms nested in groups; if a merged parameter is not
        finite, for the models' are not, or because it is beyond its dtype's range.
    """
    networks = Networks.of(models, spec, stop_at)
    return merge_networks(networks, assignments, weights, carry)


def merge_networks(
    networks: Networks,
    assignments: Assignments,
    weights: Weights | None = None,
    carry: int | None = None,
) -> Merged:
    """Merges networks by given assignments; see :func:`merge_units`."""
    count = len(networks)
    check_kind("assignments", assignments, Mapping)
    _check_assignments(networks, assignments)
    _check_trunks(networks)
    carried = carried_leaves(networks, carry)
    averaged = networks.trunk - set(carried)
    shares = interpolation_shares(weights, sorted(averaged), count)
    if weights is not None:
        _check_aligned(assignments, count)
    matrices = model_matrices(assignments, networks.spec, count)
    before = one_or_each(networks.specs)
    trees = [heads_of(model) for model in networks.models]
    shared, heads, unmerge = _parts(networks, trees, averaged, matrices, shares)
    _check_range(networks, (shared, *heads))
    widths = matrices.widths()
    after, structures = _outputs(before, widths, trees)
    own, _ = _outputs(before, {}, trees)
    outputs = slice(max(len(heads), 1))
    return Merged(
        shared | carried,
        heads,
        one_or_each(after[outputs]),
        one_or_each(structures[outputs]),
        Origin(before, assignments, count, networks.stop_at, weights),
        unmerge,
        one_or_each(own) if networks.boundaries else None,
    )


_Leaves = dict[str, Any]


def _parts(
    networks: Networks,
    trees: Sequence[Sequence[PyTree]],
    averaged: frozenset[str],
    matrices: Matrices,
    shares: Mapping[str, np.ndarray],
) -> tuple[_Leaves, tuple[_Leaves, ...], tuple[_Leaves, ...]]:
    """Returns the merged leaves, those of every head, and U after a stream's cut."""
    first = networks.spec
    shared = {
        path: merged_parameter(
            [leaves[path] for leaves in networks.leaves],
            entries,
            first.perms,
            matrices,
            shares[path],
        )
        for path, entries in first.entries.items()
        if path in averaged
    }
    heads = _stream_heads if networks.boundaries else _unmerged_heads
    return (shared, *heads(networks, trees, matrices))


def _unmerged_heads(
    networks: Networks, trees: Sequence[Sequence[PyTree]], matrices: Matrices
) -> tuple[tuple[_Leaves, ...], tuple[_Leaves, ...]]:
    """Returns the leaves of every head, which read merged units; they need no U."""
    heads = []
    for number, (spec, of_model) in enumerate(zip(networks.specs, trees, strict=True)):
        rest = {p: e for p, e in spec.entries.items() if p not in networks.trunk}
        heads += [
            {
                path: unmerged_parameter(
                    leaves[path], entries, spec.perms, matrices, number
                )
                for path, entries in rest.items()
            }
            for leaves in map(path_leaves, of_model)
        ]
    return tuple(heads) if any(heads) else (), ()


def _stream_heads(
    networks: Networks, trees: Sequence[Sequence[PyTree]], matrices: Matrices
) -> tuple[tuple[_Leaves, ...], tuple[_Leaves, ...]]:
    """Returns the leaves and U of every head after a cut inside a stream."""
    heads, unmerge = [], []
    rows = zip(networks.specs, networks.boundaries, trees, strict=True)
    # On the host, where indexing compiles nothing.
    copies = {
        perm: np.asarray(matrices[perm][1])
        for boundary in networks.boundaries
        for perm in entry_names(boundary.entries)
    }
    for number, (spec, boundary, of_model) in enumerate(rows):
        perms, paths = entry_names(boundary.entries), own_paths(spec, boundary)
        for leaves in map(path_leaves, of_model):
            heads.append({path: jax.device_put(leaves[path]) for path in paths})
            own = {perm: copies[perm][number] for perm in perms}
            unmerge.append(jax.device_put(own))
    return tuple(heads), tuple(unmerge)


def _outputs(
    before: OneOrEach[PermutationSpec],
    widths: Mapping[str, int],
    trees: Sequence[Sequence[PyTree]],
) -> tuple[list[PermutationSpec], list[Any]]:
    """Returns the spec with merged widths and the structure of every head.

    Args:
      before: the models' spec, or one per model.
      widths: the merged widths by perm.
      trees: every model's parameters, with each of its heads.
    """
    if isinstance(before, PermutationSpec):
        after: OneOrEach[PermutationSpec] = before.resize(widths)
    else:
        after = [spec.resize(widths) for spec in before]
    pairs = [
        (spec, jax.tree_util.tree_structure(tree))
        for spec, of_model in zip(each(after, len(trees), "specs"), trees, strict=True)
        for tree in of_model
    ]
    return [spec for spec, _ in pairs], [structure for _, structure in pairs]


def _check_range(networks: Networks, parts: Sequence[_Leaves]) -> None:
    """Checks that no merged parameter is beyond the range of its dtype.

    Sums of several units, and weights outside [0, 1], can be where no model's own
    parameter is.
    """
    for part in parts:
        for path in not_finite(part):
            networks.check_finite()
            raise ValueError(
                f"the merged parameter {path!r} overflows {part[path].dtype}, though "
                "the models' parameters are finite: cast the models to float32, or "
                "merge with interpolation weights in [0, 1]"
            )


def _check_aligned(assignments: Assignments, num_models: int) -> None:
    """Checks that every merged unit takes one unit of each model."""
    for perm, assignment in assignments.items():
        size = assignment.shape[-1] // num_models
        units = np.sort(assignment.reshape(-1, num_models, size))
        if (units != np.arange(units.shape[-1])).any():
            raise ValueError(
                f"weights need every merged unit to take one unit of each model, but "
                f"in perm {perm!r} some take more or fewer: use a recipe that aligns, "
                "such as zipjax.permute(), or leave the weights out"
            )


def _check_assignments(networks: Networks, assignments: Assignments) -> None:
    spec, count = networks.spec, len(networks)
    check_same_keys(
        "the assignments and the zipped perms differ",
        networks.perms,
        assignments,
        "Match with the same stop_at.",
    )
    for perm, assignment in assignments.items():
        groups, size = spec.group_sizes(perm), spec.perms[perm].size
        if np.shape(assignment) != (*groups, count * size):
            raise ValueError(
                f"the assignment of perm {perm!r} has shape "
                f"{list(np.shape(assignment))}, not {[*groups, count * size]}: "
                f"N*n = {count} * {size} units"
                + (f" in the groups {list(spec.perms[perm].groups)}" if groups else "")
            )


def _check_trunks(networks: Networks) -> None:
    """Checks that no merged model is zipped deeper than it was before."""
    for number, model in enumerate(networks.models):
        own = model.heads[0] if isinstance(model, Merged) and model.heads else {}
        if beyond := sorted(networks.trunk & set(own)):
            raise ValueError(
                f"model {number} is a merged one whose heads hold {beyond}, which this "
                "zip would share: stop it where that one stopped, or before"
            )
