"""Matching and merging: from N models, a spec and a recipe to a merged model."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Int

from zipjax.activations import source_of
from zipjax.depth import Cut
from zipjax.matrices import model_matrices
from zipjax.partial import Merged
from zipjax.recipes import Recipe
from zipjax.similarity import activation_similarity
from zipjax.spec import PermutationSpec
from zipjax.stats import Moments
from zipjax.trees import check_models, check_same_keys
from zipjax.types import Array, Leaves, PyTree
from zipjax.weights import merge_all

Assignments = Mapping[str, Int[np.ndarray, "_total"]]


def merge(
    models: Sequence[PyTree],
    spec: PermutationSpec,
    recipe: Recipe,
    *,
    moments: Mapping[str, Moments] | None = None,
    stop_at: str | int | None = None,
    key: Array | None = None,
) -> Merged:
    """Merges N models into one, without training.

    Args:
      models: parameter pytrees of one architecture, from any initialisations.
      spec: the permutation spec.
      recipe: how units are matched, for instance ``zipjax.zipit()``.
      moments: what :func:`zipjax.collect_moments` returned for these models, if the
        recipe compares activations.
      stop_at: where a partial zip stops: a perm or the number of a cut in
        ``spec.cuts``; 0 zips nothing (an ensemble), the last cut everything but the
        outputs. By default outputs are averaged too, unless their shapes differ: then
        every model keeps its own.
      key: PRNG key for recipes that draw random numbers; none of these do.

    Returns:
      The merged model; its BatchNorm statistics want :func:`reset_batch_stats`.

    Raises:
      ValueError: if the models, the spec, the moments or ``stop_at`` do not fit
        together.
    """
    assignments = match(models, spec, recipe, moments=moments, stop_at=stop_at, key=key)
    return merge_units(models, spec, assignments, stop_at=stop_at)


def match(
    models: Sequence[PyTree],
    spec: PermutationSpec,
    recipe: Recipe,
    *,
    moments: Mapping[str, Moments] | None = None,
    stop_at: str | int | None = None,
    key: Array | None = None,
) -> dict[str, Int[np.ndarray, "_total"]]:
    """Matches the units of every zipped perm; see :func:`merge`.

    Returns:
      ``{perm: assignment}`` in depth order.
    """
    del key  # All recipes so far are deterministic.
    _check(models, spec)
    stop = spec.stop(stop_at)
    _check_groups(spec, recipe, stop)
    check_same_keys(
        "num_units names perms that are not zipped",
        set(recipe.num_units) & set(stop.perms),
        recipe.num_units,
        f"The zipped perms are {list(stop.perms)}.",
    )
    assignments = {}
    if recipe.similarity == "activation":
        moments = _check_moments(models, spec, recipe, moments)
    for perm in stop.perms:
        total = len(models) * spec.sizes[perm]
        if moments is None or recipe.similarity == "none":
            similarity = np.broadcast_to(0.0, (total, total))
        else:
            similarity = activation_similarity(moments[perm])
        width = {k: n for k, n in recipe.num_units.items() if k == perm}
        options = {"num_units": width[perm]} if width else {}
        assignments[perm] = recipe.matcher(similarity, len(models), **options)
    return assignments


def merge_units(
    models: Sequence[PyTree],
    spec: PermutationSpec,
    assignments: Assignments,
    *,
    stop_at: str | int | None = None,
) -> Merged:
    """Merges models by given assignments; see :func:`merge`.

    Raises:
      ValueError: if an assignment is missing or has another length than N*n.
    """
    all_leaves = _check(models, spec)
    stop = spec.stop(stop_at)
    check_same_keys(
        "the assignments and the zipped perms differ",
        stop.perms,
        assignments,
        "Match with the same stop_at.",
    )
    for perm, assignment in assignments.items():
        if np.shape(assignment) != (len(models) * spec.sizes[perm],):
            raise ValueError(
                f"the assignment of perm {perm!r} has shape "
                f"{list(np.shape(assignment))}, not N*n = {len(models)} * "
                f"{spec.sizes[perm]}"
            )
    matrices = {p: model_matrices(a, len(models)) for p, a in assignments.items()}
    trunk, heads = merge_all(
        all_leaves,
        matrices,
        axes=tuple(spec.axes.items()),
        sizes=tuple(spec.sizes.items()),
        trunk=_trunk(all_leaves, spec, stop_at),
    )
    widths = {perm: merge.shape[1] for perm, (merge, _) in matrices.items()}
    structure = jax.tree_util.tree_structure(models[0])
    own = tuple(heads) if heads[0] else ()
    return Merged(trunk, own, spec.resize(widths), structure)


def _trunk(
    models: list[dict], spec: PermutationSpec, stop_at: str | int | None
) -> frozenset[str]:
    """Returns the shared paths: all, or those not deeper than the cut."""
    if stop_at is None:
        if not _differing(models):
            return frozenset(spec.axes)
        stop_at = len(spec.cuts)
    return spec.trunk(stop_at)


def _differing(models: Sequence[Leaves]) -> list[str]:
    return [
        p for p, x in models[0].items() if any(m[p].shape != x.shape for m in models)
    ]


def _check(models: Sequence[PyTree], spec: PermutationSpec) -> list[dict]:
    """Checks models and spec; shapes may differ only in the outputs."""
    all_leaves = check_models(models)
    for model in models:
        spec.validate(model)
    shared = spec.trunk(len(spec.cuts))
    for path in _differing(all_leaves):
        if path in shared:
            shapes = [list(leaves[path].shape) for leaves in all_leaves]
            raise ValueError(
                f"parameter {path!r} has the shapes {shapes} in the models: only "
                "outputs (behind the last cut) may differ in shape"
            )
    return all_leaves


def _check_groups(spec: PermutationSpec, recipe: Recipe, stop: Cut) -> None:
    nested = [perm for perm in stop.perms if spec.perms[perm].groups]
    if nested and recipe.similarity != "none":
        raise ValueError(
            f"recipe {recipe.name!r} matches units one by one, but the perms {nested} "
            "are nested in groups (attention heads, GroupNorm), which must be matched "
            "as a whole. Stop the zip before them, or use zipjax.average()"
        )


def _check_moments(
    models: Sequence[PyTree],
    spec: PermutationSpec,
    recipe: Recipe,
    moments: Mapping[str, Moments] | None,
) -> Mapping[str, Moments]:
    if moments is None:
        raise ValueError(
            f"recipe {recipe.name!r} compares activations: pass "
            "moments=zipjax.collect_moments(apply_fn, models, spec, batches)"
        )
    remedy = "Collect the moments with these models, in this order, and this spec."
    check_same_keys("the moments are of other perms", spec.perms, moments, remedy)
    expected = source_of(models, spec)
    for perm, moment in moments.items():
        total = len(models) * spec.sizes[perm]
        if moment.mean.shape != (total,):
            raise ValueError(
                f"the moments of perm {perm!r} are of {moment.mean.shape[0]} units, "
                f"not of N*n = {len(models)} * {spec.sizes[perm]}. {remedy}"
            )
        if moment.source not in (None, expected):
            raise ValueError(
                f"the moments of perm {perm!r} were collected for {moment.source}, "
                f"but these are {expected}. {remedy}"
            )
    return moments
