"""The matching problem: networks, a recipe and moments, and one perm's next match."""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp

from zipjax.matching.grouped import Nest, match_nest
from zipjax.merging.matrices import merged_units
from zipjax.merging.networks import Networks
from zipjax.recipes.ascent import Assigned, Matching, matched_similarity
from zipjax.recipes.presets import Recipe, average
from zipjax.similarity.measures import (
    UnitSimilarity,
    activation_similarity,
    weight_similarity,
)
from zipjax.similarity.moments import Moments
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import check_same_keys, running_stats
from zipjax.types import Array


@dataclasses.dataclass(frozen=True)
class MatchingProblem:
    """What the matches of all perms share.

    Attributes:
      networks: the models, their specs and where the zip stops.
      recipe: how units are matched.
      moments: of the activations that are compared; None if none are.
    """

    networks: Networks
    recipe: Recipe
    moments: Mapping[str, Moments] | None

    @classmethod
    def of(
        cls,
        networks: Networks,
        recipe: Recipe,
        moments: Mapping[str, Moments] | None,
    ) -> "MatchingProblem":
        """Checks that networks, recipe and moments fit together.

        Raises:
          ValueError: if they do not.
        """
        check_num_units(networks, recipe)
        if recipe.compares_activations:
            return cls(networks, recipe, check_moments(networks, recipe, moments))
        return cls(networks, recipe, None)

    @functools.cached_property
    def roots(self) -> list[str]:
        """The perms that are nested in no other zipped one: matched in turn."""
        perms = self.networks.perms
        nested = {child for perm in perms for child in self._children(perm)}
        roots = [perm for perm in perms if perm not in nested]
        for perm in roots:
            if enclosing := set(self._spec.perms[perm].groups) & set(perms):
                raise ValueError(
                    f"perm {perm!r} is nested in {sorted(enclosing)}, which are not "
                    "nested in one another: no match of such groups is known. Stop "
                    "the zip before them, or use zipjax.average()"
                )
        return roots

    def start(self) -> Matching:
        """Matches by activations alone; if these do not count, by position."""
        recipe = self.recipe
        if self.moments is None:
            recipe = dataclasses.replace(average(), similarity=recipe.similarity)
        matched: Assigned = {}
        for root in self.roots:
            matched |= self._matched(recipe, root, None)
        ordered = {perm: matched[perm] for perm in self.networks.perms}
        return Matching.of(ordered, self._spec, len(self.networks))

    def rematch(self, root: str, matching: Matching) -> Matching:
        """Matches one perm and those nested in it, given how the others are."""
        matched = self._matched(self.recipe, root, matching)
        return matching.updated(matched, self._spec, len(self.networks))

    def objective(self, matching: Matching) -> float:
        """Returns the mean similarity of matched units (MuDSC, Eq. 4)."""
        count = len(self.networks)
        total, pairs = 0.0, 0
        for perm in self.networks.perms:
            similarity = self._similarity(perm, matching, once=True)
            if similarity is not None:
                merged = merged_units(matching.assignments, self._spec, perm, count)
                more, number = matched_similarity(similarity, merged)
                total, pairs = total + more, pairs + number
        return total / max(pairs, 1)

    @property
    def _spec(self) -> PermutationSpec:
        return self.networks.spec

    @functools.cached_property
    def _activations(self) -> dict[str, UnitSimilarity]:
        moments = self.moments or {}
        return {
            perm: activation_similarity(moments[perm])
            for perm in self.networks.perms
            if perm in moments and not self._children(perm)
        }

    @functools.cached_property
    def _stacked(self) -> dict[str, Array]:
        """The merged parameters of all models, ``[models, ...]`` by path."""
        chosen, similarity = self.networks.trunk, self.recipe.similarity
        if similarity and not similarity.statistics:
            chosen -= {path for pair in running_stats(chosen) for path in pair}
        return {
            path: jnp.stack([leaves[path] for leaves in self.networks.leaves])
            for path in chosen
        }

    def _children(self, perm: str) -> list[str]:
        groups = (*self._spec.perms[perm].groups, perm)
        perms = self.networks.perms
        return [p for p in perms if self._spec.perms[p].groups == groups]

    def _matched(
        self, recipe: Recipe, root: str, matching: Matching | None
    ) -> Assigned:
        return match_nest(
            self._nest(recipe, root, matching),
            len(self.networks),
            matcher=recipe.matcher,
            group_matcher=recipe.group_matcher,
            indices=self._spec.group_sizes(root),
        )

    def _nest(self, recipe: Recipe, perm: str, matching: Matching | None) -> Nest:
        children = [self._nest(recipe, p, matching) for p in self._children(perm)]
        return Nest(
            perm,
            self._spec.perms[perm].size,
            self._similarity(perm, matching),
            tuple(children),
            recipe.num_units.get(perm),
        )

    def _similarity(
        self, perm: str, matching: Matching | None, *, once: bool = False
    ) -> UnitSimilarity | None:
        """Blends both spaces; without a matching, activations count alone."""
        chosen = self.recipe.similarity
        balance = chosen.balance if chosen and matching else 0.0
        parts = []
        if perm in self._activations:
            parts.append((1 - balance) * self._activations[perm])
        if chosen and matching:
            weights = weight_similarity(
                self._stacked,
                self._spec,
                perm,
                matching.matrices,
                metric=chosen.metric,
                swapped=chosen.swapped,
                once=once and chosen.metric == "inner",
            )
            parts += [] if weights is None else [balance * weights]
        return sum(parts[1:], parts[0]) if parts else None


def check_num_units(networks: Networks, recipe: Recipe) -> None:
    """Checks that a recipe sets merged widths of zipped perms only.

    Raises:
      ValueError: naming the others, or perms whose units are groups.
    """
    perms = networks.perms
    check_same_keys(
        "num_units names perms that are not zipped",
        set(recipe.num_units) & set(perms),
        recipe.num_units,
        f"The zipped perms are {list(perms)}.",
    )
    if outer := sorted(networks.spec.group_perms & set(recipe.num_units)):
        raise ValueError(
            f"num_units gives another width to {outer}, whose units are groups of "
            "others: groups are matched one to one. Set the widths of the perms that "
            "are nested in them"
        )


def check_moments(
    networks: Networks, recipe: Recipe, moments: Mapping[str, Moments] | None
) -> Mapping[str, Moments]:
    """Returns the moments if they were collected for these networks.

    Raises:
      ValueError: if there are none, or they are of other perms, units or models.
    """
    if moments is None:
        raise ValueError(
            f"recipe {recipe.name!r} compares activations: pass "
            "moments=zipjax.collect_moments(apply_fn, models, spec, batches)"
        )
    remedy = "Collect the moments with these models, in this order, and this spec."
    perms = networks.common_perms
    check_same_keys("the moments are of other perms", perms, moments, remedy)
    count, spec = len(networks), networks.spec
    for perm, moment in moments.items():
        if moment.mean.shape != (count * spec.units(perm),):
            raise ValueError(
                f"the moments of perm {perm!r} are of {moment.mean.shape[0]} units, "
                f"not of N*n = {count} * {spec.units(perm)}. {remedy}"
            )
        if moment.source not in (None, networks.fingerprint):
            raise ValueError(
                f"the moments of perm {perm!r} were collected for {moment.source}, "
                f"but these are {networks.fingerprint}. {remedy}"
            )
    return moments
