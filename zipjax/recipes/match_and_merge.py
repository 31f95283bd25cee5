"""Matching: from N models, a spec and a recipe to the assignments of all perms."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from zipjax.matching.grouped import Nest, match_nest
from zipjax.merging.each import OneOrEach, each
from zipjax.merging.matrices import merged_units
from zipjax.merging.sharing import (
    Specs,
    check_shared,
    common_perms,
    common_stop,
    shared_paths,
)
from zipjax.recipes.ascent import (
    Assigned,
    Report,
    State,
    coordinate_descent,
    matched_similarity,
)
from zipjax.recipes.presets import Recipe, average
from zipjax.similarity.collecting import source_of
from zipjax.similarity.measures import Units, activation_similarity, weight_similarity
from zipjax.similarity.moments import Moments
from zipjax.spec.depth import Cut
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import check_same_keys, running_stats
from zipjax.types import Array, Leaves, PyTree


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
    """Matches the units of every zipped perm; see :func:`zipjax.merge`.

    Returns:
      ``{perm: assignment [N*n]}`` in depth order; of a perm nested in groups
      ``[*groups, N*n]``, whose row k is the assignment of the units of those groups of
      the models that were merged to group k.
    """
    specs = each(spec, len(models), "specs")
    all_leaves = check_shared(models, specs)
    spec, stop_at = specs[0], common_stop(specs, stop_at)
    stop = spec.stop(stop_at)
    check_num_units(spec, recipe, stop)
    similarity = recipe.similarity
    if similarity is None or similarity.balance == 1:
        moments = None
    else:
        moments = check_moments(models, specs, recipe, moments)
    trunk = shared_paths(all_leaves, spec, stop_at)
    matching = _Matching(all_leaves, spec, recipe, moments, stop.perms, trunk)
    start = matching.start()
    if similarity is None or similarity.balance == 0 or not stop.perms:
        return start.assignments
    if key is None:
        raise ValueError(
            f"recipe {recipe.name!r} matches perms in a random order: pass a PRNG key, "
            "key=jax.random.key(0)"
        )
    best = coordinate_descent(
        start,
        matching.roots,
        matching.rematch,
        matching.objective,
        recipe.schedule,
        key,
        report or (lambda sweep: None),
    )
    return best.assignments


@dataclasses.dataclass(frozen=True)
class _Matching:
    """What the matches of all perms share.

    Attributes:
      all_leaves: every model's parameters by path.
      spec: the permutation spec.
      recipe: how units are matched.
      moments: what activations are compared by, if they are.
      perms: the zipped perms.
      trunk: the parameters that are merged, by which weights are compared.
    """

    all_leaves: Sequence[Leaves]
    spec: PermutationSpec
    recipe: Recipe
    moments: Mapping[str, Moments] | None
    perms: tuple[str, ...]
    trunk: frozenset[str]

    @functools.cached_property
    def roots(self) -> list[str]:
        """The perms that are nested in no other zipped one: matched in turn."""
        nested = {child for perm in self.perms for child in self._children(perm)}
        roots = [perm for perm in self.perms if perm not in nested]
        for perm in roots:
            if enclosing := set(self.spec.perms[perm].groups) & set(self.perms):
                raise ValueError(
                    f"perm {perm!r} is nested in {sorted(enclosing)}, which are not "
                    "nested in one another: no match of such groups is known. Stop "
                    "the zip before them, or use zipjax.average()"
                )
        return roots

    def start(self) -> State:
        """Matches by activations alone; where these do not count, by position."""
        recipe = self.recipe
        if self.moments is None:
            recipe = dataclasses.replace(average(), similarity=recipe.similarity)
        matched: Assigned = {}
        for root in self.roots:
            matched |= self._matched(recipe, root, None)
        return State.of({p: matched[p] for p in self.perms}, self.spec, self._count)

    def rematch(self, root: str, state: State) -> State:
        """Matches one perm and those nested in it, given how the others are."""
        matched = self._matched(self.recipe, root, state)
        return state.updated(matched, self.spec, self._count)

    def objective(self, state: State) -> float:
        """Returns the mean similarity of matched units (MuDSC, Eq. 4)."""
        total, pairs = 0.0, 0
        for perm in self.perms:
            similarity = self._similarity(perm, state, once=True)
            if similarity is not None:
                merged = merged_units(state.assignments, self.spec, perm, self._count)
                more, number = matched_similarity(similarity, merged)
                total, pairs = total + more, pairs + number
        return total / max(pairs, 1)

    @property
    def _count(self) -> int:
        return len(self.all_leaves)

    @functools.cached_property
    def _activations(self) -> dict[str, Units]:
        moments = self.moments or {}
        return {
            perm: activation_similarity(moments[perm])
            for perm in self.perms
            if perm in moments and not self._children(perm)
        }

    @functools.cached_property
    def _stacked(self) -> dict[str, Array]:
        chosen, similarity = self.trunk, self.recipe.similarity
        if similarity and not similarity.statistics:
            chosen -= {path for pair in running_stats(chosen) for path in pair}
        return {
            path: jnp.stack([leaves[path] for leaves in self.all_leaves])
            for path in chosen
        }

    def _children(self, perm: str) -> list[str]:
        groups = (*self.spec.perms[perm].groups, perm)
        return [p for p in self.perms if self.spec.perms[p].groups == groups]

    def _matched(self, recipe: Recipe, root: str, state: State | None) -> Assigned:
        return match_nest(
            self._nest(recipe, root, state),
            self._count,
            matcher=recipe.matcher,
            group_matcher=recipe.group_matcher,
            indices=self.spec.group_sizes(root),
        )

    def _nest(self, recipe: Recipe, perm: str, state: State | None) -> Nest:
        children = [self._nest(recipe, p, state) for p in self._children(perm)]
        return Nest(
            perm,
            self.spec.perms[perm].size,
            self._similarity(perm, state),
            tuple(children),
            recipe.num_units.get(perm),
        )

    def _similarity(
        self, perm: str, state: State | None, *, once: bool = False
    ) -> Units | None:
        """Blends both spaces; without a state, activations count alone."""
        chosen = self.recipe.similarity
        balance = chosen.balance if chosen and state else 0.0
        parts = []
        if perm in self._activations:
            parts.append((1 - balance) * self._activations[perm])
        if chosen and state:
            weights = weight_similarity(
                self._stacked,
                self.spec,
                perm,
                state.matrices,
                metric=chosen.metric,
                swapped=chosen.swapped,
                once=once and chosen.metric == "inner",
            )
            parts += [] if weights is None else [balance * weights]
        return sum(parts[1:], parts[0]) if parts else None


def check_num_units(spec: PermutationSpec, recipe: Recipe, stop: Cut) -> None:
    """Checks that a recipe's merged widths are of perms that are zipped.

    Raises:
      ValueError: naming the others, or perms whose units are groups.
    """
    check_same_keys(
        "num_units names perms that are not zipped",
        set(recipe.num_units) & set(stop.perms),
        recipe.num_units,
        f"The zipped perms are {list(stop.perms)}.",
    )
    groups = {group for perm in spec.perms.values() for group in perm.groups}
    if outer := sorted(groups & set(recipe.num_units)):
        raise ValueError(
            f"num_units gives another width to {outer}, whose units are groups of "
            "others: groups are matched one to one. Set the widths of what is nested "
            "in them"
        )


def check_moments(
    models: Sequence[PyTree],
    specs: Specs,
    recipe: Recipe,
    moments: Mapping[str, Moments] | None,
) -> Mapping[str, Moments]:
    """Returns the moments if they were collected for these models and specs.

    Raises:
      ValueError: if there are none, or they are of other perms, units or models.
    """
    if moments is None:
        raise ValueError(
            f"recipe {recipe.name!r} compares activations: pass "
            "moments=zipjax.collect_moments(apply_fn, models, spec, batches)"
        )
    remedy = "Collect the moments with these models, in this order, and this spec."
    perms = common_perms(specs)
    check_same_keys("the moments are of other perms", perms, moments, remedy)
    spec, expected = specs[0], source_of(models, specs)
    for perm, moment in moments.items():
        total = len(models) * spec.units(perm)
        if moment.mean.shape != (total,):
            raise ValueError(
                f"the moments of perm {perm!r} are of {moment.mean.shape[0]} units, "
                f"not of N*n = {len(models)} * {spec.units(perm)}. {remedy}"
            )
        if moment.source not in (None, expected):
            raise ValueError(
                f"the moments of perm {perm!r} were collected for {moment.source}, "
                f"but these are {expected}. {remedy}"
            )
    return moments
