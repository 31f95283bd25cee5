"""Merging: from N models, a spec and a recipe to a merged model."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.merging.each import OneOrEach, each, one_or_each
from zipjax.merging.matrices import Assignments, model_matrices
from zipjax.merging.merged import Merged, heads_of
from zipjax.merging.sharing import check_shared, common_stop, shared_paths
from zipjax.merging.weights import merge_all
from zipjax.recipes.ascent import Report
from zipjax.recipes.match_and_merge import match
from zipjax.recipes.presets import Recipe
from zipjax.similarity.moments import Moments
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import check_same_keys, path_leaves
from zipjax.types import Array, PyTree


def merge(
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
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
      spec: the permutation spec; one a model where their functions differ, such as
        heads of other kinds behind one encoder. The zip is then a partial one: what it
        shares has the same paths and entries in all specs.
      recipe: how units are matched, for instance ``zipjax.zipit()``.
      moments: what :func:`zipjax.collect_moments` returned for these models, if the
        recipe compares activations.
      stop_at: where a partial zip stops: a perm or the number of a cut in
        ``spec.cuts``; 0 zips nothing (an ensemble), the last cut everything but the
        outputs. By default outputs are averaged too, unless their shapes differ: then
        every model keeps its own. With several specs, it is a place in the first one,
        by default the deepest whose trunk is common.
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
    spec: OneOrEach[PermutationSpec],
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
    specs = each(spec, len(models), "specs")
    all_leaves = check_shared(models, specs)
    first, stop_at = specs[0], common_stop(specs, stop_at)
    _check_assignments(first, first.stop(stop_at).perms, assignments, len(models))
    trunk = shared_paths(all_leaves, first, stop_at)
    _check_trunks(models, trunk)
    matrices = model_matrices(assignments, first, len(models))
    trees = [heads_of(model) for model in models]
    shared, own = merge_all(
        [_chosen(leaves, trunk) for leaves in all_leaves],
        [[_rest(path_leaves(x), trunk) for x in of_model] for of_model in trees],
        matrices,
        _shares(assignments, len(models), weights),
        spec=one_or_each(specs),
        trunk=trunk,
    )
    widths = {perm: merge.shape[-2] for perm, (merge, _) in matrices.items()}
    heads = tuple(own) if any(own) else ()
    # Of every head, or of the one output: its model's spec and its own structure.
    outputs = [
        (own_spec, jax.tree_util.tree_structure(tree))
        for own_spec, of_model in zip(specs, trees, strict=True)
        for tree in of_model
    ][: max(len(heads), 1)]
    resized = {id(own_spec): own_spec.resize(widths) for own_spec, _ in outputs}
    return Merged(
        shared,
        heads,
        one_or_each([resized[id(own_spec)] for own_spec, _ in outputs]),
        one_or_each([structure for _, structure in outputs]),
    )


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
