"""Matching from the input to the output, in networks merged up to the cut before."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from zipjax.arguments import check_kind
from zipjax.batches import InputsOf
from zipjax.merging.assembling import merge_units
from zipjax.merging.each import OneOrEach, one_or_each
from zipjax.merging.merged import Merged, functions_of, head_specs
from zipjax.merging.networks import Networks
from zipjax.positions import Positions
from zipjax.recipes.match_and_merge import match
from zipjax.recipes.presets import Recipe
from zipjax.recipes.problem import check_comparable, check_num_units
from zipjax.similarity.collecting import collect_moments
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import ApplyFn, PyTree


def match_sequential(
    apply_fn: OneOrEach[ApplyFn],
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
    recipe: Recipe,
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf | None = None,
    stop_at: str | int | None = None,
    carry: int | None = None,
    calibrate: Callable[[Merged], Merged] | None = None,
    positions: Positions = "few",
    devices: Sequence[Any] | None = None,
) -> dict[str, Int[np.ndarray, "*_groups _total"]]:
    """Matches units by their activations after the merged prefix, not in the models.

    :func:`zipjax.match` compares the models' own activations, which none of them sees
    again once the layers before are merged. Here the units of a cut are compared in a
    partial zip up to the cut before: every model's own weights read merged units.

    The steps are those of ``spec.cuts`` that add perms, and each costs one pass over
    the batches. A residual stream is one perm from its first block to its last: it is
    matched in the models' own blocks, at its first cut. With the cuts of an inferred
    spec, the units within every block follow in turn, after the merged blocks before;
    with closed cuts alone, all units of a stage are matched at once. The first step is
    that of ``match``.

    Args:
      apply_fn: see :func:`zipjax.collect_moments`. Where ``num_units`` changes widths,
        it must run with those of any prefix, as functions of the parameters' shapes do.
      models: see :func:`zipjax.merge`.
      spec: see :func:`zipjax.merge`.
      recipe: how units are matched: by activations alone, such as ``zipjax.zipit()``.
      batches: read once for every cut: a list, or another iterable that can be read
        again.
      inputs_of: see :func:`zipjax.collect_moments`.
      stop_at: see :func:`zipjax.merge`.
      carry: see :func:`zipjax.merge`.
      calibrate: called with every merged prefix and its heads, returns the model to
        read instead; for networks with BatchNorm
        ``lambda m: zipjax.reset_batch_stats(apply_fn, m, batches)``.
      positions: see :func:`zipjax.collect_moments`.
      devices: see :func:`zipjax.collect_moments`.

    Returns:
      The assignments, as :func:`zipjax.match` does, for :func:`zipjax.merge_units`.

    Raises:
      ValueError: if the recipe compares weights or nothing, if the batches can be read
        only once, and whatever ``match`` and ``collect_moments`` refuse.
    """
    _check_recipe(recipe)
    if isinstance(batches, Iterator):
        raise ValueError(
            f"batches are an iterator ({type(batches).__name__}), which is empty after "
            "the first cut: pass an iterable that can be read once for every cut, such "
            "as a list"
        )
    networks = Networks.of(models, spec, stop_at)
    check_comparable(networks, recipe)
    check_num_units(networks, recipe)
    trees = heads = list(networks.trees)
    functions, specs = apply_fn, networks.specs
    assignments: dict[str, np.ndarray] = {}
    for cut in networks.spec.cuts[: networks.stop.number]:
        new = [perm for perm in cut.perms if perm not in assignments]
        if not new:
            continue
        if assignments:
            before = cut.number - 1
            merged = merge_units(
                trees, networks.specs, assignments, stop_at=before, carry=carry
            )
            merged = calibrate(merged) if calibrate else merged
            functions, heads = zip(*functions_of(apply_fn, merged), strict=True)
            specs = head_specs(merged)
        # What lies behind, or is matched, need not be compared.
        own_specs = [own.only(new) for own in specs]
        inside = networks.boundaries and all(own.boundaries for own in own_specs)
        stop = networks.stop.name if inside else None
        compared = one_or_each(own_specs)
        moments = collect_moments(
            functions,
            heads,
            compared,
            batches,
            inputs_of=inputs_of,
            stop_at=stop,
            positions=positions,
            devices=devices,
        )
        widths = {p: n for p, n in recipe.num_units.items() if p in new}
        own = dataclasses.replace(recipe, num_units=widths)
        assignments |= match(heads, compared, own, moments=moments, stop_at=stop)
    return {perm: assignments[perm] for perm in networks.perms}


def _check_recipe(recipe: Recipe) -> None:
    check_kind("recipe", recipe, Recipe)
    similarity = recipe.similarity
    if similarity is None or recipe.compares_weights:
        compared = "nothing" if similarity is None else "weights, in a random order"
        raise ValueError(
            f"recipe {recipe.name!r} compares {compared}, but matching from the input "
            "to the output compares activations alone: use zipjax.zipit() or "
            "zipjax.permute(), or match all perms at once by zipjax.match()"
        )
