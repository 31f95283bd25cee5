"""``match`` and ``merge``: from models, a spec and a recipe to a merged model."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from zipjax import hosts
from zipjax.arguments import check_key
from zipjax.merging.assembling import merge_networks
from zipjax.merging.each import OneOrEach
from zipjax.merging.merged import Merged
from zipjax.merging.networks import Networks
from zipjax.merging.weights import Weights
from zipjax.recipes.ascent import Report, coordinate_ascent
from zipjax.recipes.presets import Recipe
from zipjax.recipes.problem import MatchingProblem
from zipjax.similarity.moments import Moments
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import Array, PyTree


def merge(
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
    recipe: Recipe,
    *,
    moments: Mapping[str, Moments] | None = None,
    stop_at: str | int | None = None,
    weights: Weights | None = None,
    carry: int | None = None,
    key: Array | None = None,
    report: Report | None = None,
) -> Merged:
    """Merges N models into one, without training.

    Args:
      models: parameter pytrees of one architecture, from any initialisations. A merged
        model can be merged again: it counts as one model; if it has heads, they are all
        kept and the zip may not go beyond where it stopped before.
      spec: the permutation spec; one per model where their functions differ, such as
        heads of other kinds after one encoder. The zip is then a partial one: the
        parameters that it shares have the same paths and entries in all specs.
      recipe: how units are matched, for instance ``zipjax.zipit()``.
      moments: from :func:`zipjax.collect_moments` for these models, if the recipe
        compares activations.
      stop_at: where a partial zip stops: a perm or the number of a cut in
        ``spec.cuts`` (of the first spec, if there are several); 0 zips nothing (an
        ensemble), the last cut everything but the outputs. None merges all that the
        models have in common: with one spec everything, or, where the shapes of the
        outputs differ, everything before these; with several specs, up to the deepest
        cut that they share.
      weights: interpolation weights, one per model, with sum 1; equal by default. Or a
        dictionary of such weights by parameter: its keys are paths, folders of paths or
        patterns ("*/bias", where "*" also matches "/"). The last key that matches a
        parameter counts; those without one are averaged equally. ``{"head": (1, 0)}``
        keeps the first model's head, its inputs in the order of the merged units. Only
        for recipes that align: every merged unit takes one unit of each model.
      carry: the number of the model whose leaves are kept where these cannot be
        averaged and the models differ: counters, PRNG keys, tables of indices. By
        default such leaves must be the same in all models; None is always kept.
      key: PRNG key for recipes that match perms in a random order.
      report: called with a :class:`Sweep` after every sweep of such a recipe.

    Returns:
      The merged model. If it has BatchNorm, re-estimate its statistics with
      :func:`zipjax.reset_batch_stats`.

    Raises:
      ValueError: if the models, the spec, the moments, ``stop_at``, ``weights`` or
        ``key`` do not fit together, or if models differ in leaves that are no
        floating-point numbers.
    """
    networks = Networks.of(models, spec, stop_at)
    assignments = match_networks(networks, recipe, moments, key, report)
    return merge_networks(networks, assignments, weights, carry)


def match(
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
    recipe: Recipe,
    *,
    moments: Mapping[str, Moments] | None = None,
    stop_at: str | int | None = None,
    key: Array | None = None,
    report: Report | None = None,
) -> dict[str, Int[np.ndarray, "*_groups _total"]]:
    """Matches the units of every zipped perm; the arguments are those of ``merge``.

    Returns:
      ``{perm: assignment [N*n]}`` in depth order; for a perm nested in groups
      ``[*groups, N*n]``, whose row k is the assignment of the units of those groups of
      the models that were merged to group k.

    Raises:
      ValueError: see :func:`zipjax.merge`.
    """
    networks = Networks.of(models, spec, stop_at)
    return match_networks(networks, recipe, moments, key, report)


def match_networks(
    networks: Networks,
    recipe: Recipe,
    moments: Mapping[str, Moments] | None,
    key: Array | None = None,
    report: Report | None = None,
) -> dict[str, np.ndarray]:
    """Matches the units of networks; see :func:`match`.

    Under ``jax.distributed`` the first process does, and all get its assignments.
    """
    return hosts.once(lambda: _matched(networks, recipe, moments, key, report))


def _matched(
    networks: Networks,
    recipe: Recipe,
    moments: Mapping[str, Moments] | None,
    key: Array | None,
    report: Report | None,
) -> dict[str, np.ndarray]:
    problem = MatchingProblem.of(networks, recipe, moments)
    start = problem.start()
    if not recipe.compares_weights or not networks.perms:
        return start
    if key is None:
        raise ValueError(
            f"recipe {recipe.name!r} matches perms in a random order: pass a PRNG key, "
            "key=jax.random.key(0)"
        )
    check_key(key)
    return coordinate_ascent(
        start,
        problem.roots,
        problem.rematch,
        problem.objective,
        recipe.schedule,
        key,
        report or (lambda sweep: None),
    )
