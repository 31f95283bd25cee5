"""Merging: from N models, a spec and a recipe to a merged model."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.assign import check_shared, match, shared_paths
from zipjax.descent import Report
from zipjax.matrices import Assignments, model_matrices
from zipjax.partial import Merged, heads_of
from zipjax.recipes import Recipe
from zipjax.spec import PermutationSpec
from zipjax.stats import Moments
from zipjax.trees import check_same_keys, path_leaves
from zipjax.types import Array, PyTree
from zipjax.weights import merge_all


def merge(
    models: Sequence[PyTree],
    spec: PermutationSpec,
    recipe: Recipe,
    *,
    moments: Mapping[str, Moments] | None = None,
    stop_at: str | int | None = None,
    weights: Sequence[float] | None = None,
    key: Array | None = None,
    report: Report | None = None,
) -> Merged:
    """Merges N models into one, without training.

    Args:
      models: parameter pytrees of one architecture, from any initialisations. A merged
        model can be merged again: it counts as one model; if it has heads, they are all
        kept and the zip may not go beyond where it stopped before.
      spec: the permutation spec.
      recipe: how units are matched, for instance ``zipjax.zipit()``.
      moments: what :func:`zipjax.collect_moments` returned for these models, if the
        recipe compares activations.
      stop_at: where a partial zip stops: a perm or the number of a cut in
        ``spec.cuts``; 0 zips nothing (an ensemble), the last cut everything but the
        outputs. By default outputs are averaged too, unless their shapes differ: then
        every model keeps its own.
      weights: interpolation weights of the models, with sum 1; equal by default. Only
        for recipes that align: every merged unit takes one unit of each model.
      key: PRNG key for recipes that match perms in a random order.
      report: called with the objective of every sweep of such a recipe.

    Returns:
      The merged model; its BatchNorm statistics want :func:`reset_batch_stats`.

    Raises:
      ValueError: if the models, the spec, the moments, ``stop_at``, ``weights`` or
        ``key`` do not fit together.
    """
    assignments = match(
        models,
        spec,
        recipe,
        moments=moments,
        stop_at=stop_at,
        key=key,
        report=report,
    )
    return merge_units(models, spec, assignments, stop_at=stop_at, weights=weights)


def merge_units(
    models: Sequence[PyTree],
    spec: PermutationSpec,
    assignments: Assignments,
    *,
    stop_at: str | int | None = None,
    weights: Sequence[float] | None = None,
) -> Merged:
    """Merges models by given assignments; see :func:`merge`.

    Raises:
      ValueError: if an assignment is missing or has another shape than ``[N*n]``, or
        ``[*groups, N*n]`` for perms nested in groups.
    """
    all_leaves = check_shared(models, spec)
    _check_assignments(spec, spec.stop(stop_at).perms, assignments, len(models))
    trunk = shared_paths(all_leaves, spec, stop_at)
    _check_trunks(models, trunk)
    matrices = model_matrices(assignments, spec, len(models))
    shared, own = merge_all(
        [_chosen(leaves, trunk) for leaves in all_leaves],
        [[_rest(path_leaves(x), trunk) for x in heads_of(m)] for m in models],
        matrices,
        _shares(assignments, len(models), weights),
        spec=spec,
        trunk=trunk,
    )
    widths = {perm: merge.shape[-2] for perm, (merge, _) in matrices.items()}
    structure = jax.tree_util.tree_structure(heads_of(models[0])[0])
    heads = tuple(own) if own[0] else ()
    return Merged(shared, heads, spec.resize(widths), structure)


def _chosen(leaves: Mapping, paths: frozenset[str]) -> dict:
    return {path: leaf for path, leaf in leaves.items() if path in paths}


def _rest(leaves: Mapping, paths: frozenset[str]) -> dict:
    return {path: leaf for path, leaf in leaves.items() if path not in paths}


def _shares(
    assignments: Assignments, num_models: int, weights: Sequence[float] | None
) -> Array:
    """Returns N times the interpolation weights."""
    if weights is None:
        return jnp.ones(num_models)
    shares = np.asarray(weights, np.float64)
    if shares.shape != (num_models,) or not np.isclose(shares.sum(), 1):
        raise ValueError(
            f"weights = {list(weights)} are no interpolation weights of {num_models} "
            "models: pass one number for each model, with sum 1"
        )
    for perm, assignment in assignments.items():
        size = assignment.shape[-1] // num_models
        units = np.sort(assignment.reshape(-1, num_models, size))
        if (units != np.arange(units.shape[-1])).any():
            raise ValueError(
                f"weights need every merged unit to take one unit of each model, but "
                f"in perm {perm!r} some take more or fewer: use a recipe that aligns, "
                "such as zipjax.permute(), or leave the weights out"
            )
    return jnp.asarray(num_models * shares, jnp.float32)


def _check_assignments(
    spec: PermutationSpec,
    perms: Sequence[str],
    assignments: Assignments,
    num_models: int,
) -> None:
    check_same_keys(
        "the assignments and the zipped perms differ",
        perms,
        assignments,
        "Match with the same stop_at.",
    )
    for perm, assignment in assignments.items():
        groups, size = spec.group_sizes(perm), spec.perms[perm].size
        if np.shape(assignment) != (*groups, num_models * size):
            raise ValueError(
                f"the assignment of perm {perm!r} has shape "
                f"{list(np.shape(assignment))}, not {[*groups, num_models * size]}: "
                f"N*n = {num_models} * {size} units"
                + (f" in the groups {list(spec.perms[perm].groups)}" if groups else "")
            )


def _check_trunks(models: Sequence[PyTree | Merged], trunk: frozenset[str]) -> None:
    for number, model in enumerate(models):
        own = model.heads[0] if isinstance(model, Merged) and model.heads else {}
        if beyond := sorted(trunk & set(own)):
            raise ValueError(
                f"model {number} is a merged one whose heads hold {beyond}, which this "
                "zip would share: stop it where that one stopped, or before"
            )
