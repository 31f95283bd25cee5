"""The matching problem: networks, a recipe and moments, and one perm's next match."""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from zipjax.matching.grouped import Nest, match_nest
from zipjax.merging.matrices import merged_units
from zipjax.merging.networks import Networks
from zipjax.recipes.ascent import Assigned, Matching, matched_similarity
from zipjax.recipes.presets import Recipe, average
from zipjax.similarity.measures import (
    Similarity,
    UnitSimilarity,
    activation_similarity,
    weight_similarity,
)
from zipjax.similarity.moments import Moments
from zipjax.spec.entries import entry_names
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.spec.verify import check_any_perms
from zipjax.trees import check_same_keys, is_weight, running_stats
from zipjax.types import Array, Leaves

# Perms without activations are matched again after each other at most this often.
_SWEEPS = 10


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
        check_comparable(networks, recipe)
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
            groups = self._spec.perms[perm].groups
            if enclosing := set(groups) - set(self._spec.indices):
                raise ValueError(
                    f"perm {perm!r} is nested in {sorted(enclosing)}, which are not "
                    "nested in one another: no match of such groups is known. Stop "
                    "the zip before them, or use zipjax.average()"
                )
        return roots

    def start(self) -> Matching:
        """Matches by activations; if these do not count, by position.

        Perms without activations are matched by their weights, after the others. So are
        those of another width than the models', where only weights count: positions do
        not tell which of their units belong together, and matchings of different widths
        have no objective in common.
        """
        silent = [] if self.moments is None else self._silent
        recipe = average() if self.moments is None else self.recipe
        matched: Assigned = {}
        for root in self.roots:
            if root not in silent:
                matched |= self._matched(recipe, root, None)
        matching = Matching.of(matched, self._spec, len(self.networks))
        for _ in range(_SWEEPS if silent else 0):
            before = matching
            for root in silent:
                matching = self.rematch(root, matching)
            if _equal(before, matching):
                break
        for root in self._resized if self.moments is None else []:
            matching = self.rematch(root, matching)
        ordered = {perm: matching.assignments[perm] for perm in self.networks.perms}
        return dataclasses.replace(matching, assignments=ordered)

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
                for element, units in zip(
                    _elements(similarity), self._by_element(perm, merged), strict=True
                ):
                    more, number = matched_similarity(element, units)
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
    def _silent(self) -> list[str]:
        """The roots with perms whose activations are not known."""
        known, perms = self._activations, self._nested
        return [
            root
            for root in self.roots
            if any(p not in known and not self._children(p) for p in perms(root))
        ]

    @property
    def _resized(self) -> list[str]:
        """The roots with perms of another width than the models'."""
        sizes = self._spec.sizes
        other = {p for p, n in self.recipe.num_units.items() if n != sizes[p]}
        return [root for root in self.roots if other.intersection(self._nested(root))]

    def _nested(self, perm: str) -> list[str]:
        """Returns a perm and all that are nested in it."""
        inside = [p for child in self._children(perm) for p in self._nested(child)]
        return [perm, *inside]

    def _by_element(self, perm: str, merged: np.ndarray) -> np.ndarray:
        """Returns the merged units of every element of a perm's indices."""
        sizes, groups = self._spec.group_sizes(perm), self._spec.perms[perm].groups
        fixed = [k for k, g in enumerate(groups) if g in self._spec.indices]
        opened = merged.reshape(len(self.networks), *sizes, -1)
        first = np.moveaxis(opened, [1 + k for k in fixed], range(len(fixed)))
        return first.reshape(self._spec.elements(perm) or 1, -1)

    @functools.cached_property
    def _stacked(self) -> dict[str, Array]:
        """The merged parameters of all models, ``[models, ...]`` by path."""
        networks, similarity = self.networks, self.recipe.similarity
        chosen = {p for p in networks.trunk if is_weight(networks.leaves[0][p])}
        if similarity and not similarity.statistics:
            chosen -= {path for pair in running_stats(chosen) for path in pair}
        return {
            path: jnp.stack([leaves[path] for leaves in self.networks.leaves])
            for path in chosen
        }

    def _touched(self, perm: str, leaves: Leaves) -> bool:
        return any(path in leaves for path, _, _ in self._spec.members(perm))

    def _children(self, perm: str) -> list[str]:
        groups = (*self._spec.perms[perm].groups, perm)
        perms = self.networks.perms
        return [p for p in perms if self._spec.perms[p].groups == groups]

    def _matched(
        self, recipe: Recipe, root: str, matching: Matching | None
    ) -> Assigned:
        """Matches a perm and those nested in it, in each element of its indices."""
        found: dict[str, UnitSimilarity | None] = {}
        if recipe.similarity is not None:
            found = {p: self._similarity(p, matching) for p in self._nested(root)}
        results = [
            match_nest(
                self._nest(recipe, root, found, element),
                len(self.networks),
                matcher=recipe.matcher,
                group_matcher=recipe.group_matcher,
            )
            for element in range(self._spec.elements(root) or 1)
        ]
        indices = self._spec.group_sizes(root)
        stacked = {p: np.stack([own[p] for own in results]) for p in results[0]}
        return {p: x.reshape(*indices, *x.shape[1:]) for p, x in stacked.items()}

    def _nest(
        self,
        recipe: Recipe,
        perm: str,
        similarities: Mapping[str, UnitSimilarity | None],
        element: int,
    ) -> Nest:
        """Returns the nest of a perm in one element of its indices."""
        similarity = similarities.get(perm)
        return Nest(
            perm,
            self._spec.perms[perm].size,
            None if similarity is None else _elements(similarity)[element],
            tuple(
                self._nest(recipe, child, similarities, element)
                for child in self._children(perm)
            ),
            recipe.num_units.get(perm),
        )

    def _similarity(
        self, perm: str, matching: Matching | None, *, once: bool = False
    ) -> UnitSimilarity | None:
        """Blends both spaces; without a matching, activations count alone.

        The weights count fully where nothing is known of a perm's activations.
        """
        chosen = self.recipe.similarity
        if chosen is None:
            return None
        known = self._activations.get(perm)
        silent = self.moments is not None and not self._children(perm) and known is None
        balance = 1.0 if silent else chosen.balance if matching else 0.0
        parts = [] if known is None else [(1 - balance) * known]
        if matching and balance:
            weights = self._weights(perm, matching, chosen, once=once)
            parts += [] if weights is None else [balance * weights]
        return sum(parts[1:], parts[0]) if parts else None

    def _weights(
        self, perm: str, matching: Matching, chosen: Similarity, *, once: bool
    ) -> UnitSimilarity | None:
        # Weights that touch perms that are yet to be matched count if no others do.
        pending = set(self.networks.perms) - {*matching.matrices, *self._nested(perm)}
        settled = {
            path: leaf
            for path, leaf in self._stacked.items()
            if pending.isdisjoint(entry_names(self._spec.entries[path]))
        }
        return weight_similarity(
            settled if self._touched(perm, settled) else self._stacked,
            self._spec,
            perm,
            matching.matrices,
            metric=chosen.metric,
            swapped=chosen.swapped,
            once=once and chosen.metric == "inner",
        )


def _elements(similarity: UnitSimilarity) -> UnitSimilarity:
    """Returns one matrix for every element of the indices, if there are any."""
    return similarity if similarity.ndim == 3 else similarity[None]


def _equal(before: Matching, after: Matching) -> bool:
    pairs = ((before.assignments.get(p), x) for p, x in after.assignments.items())
    return all(old is not None and np.array_equal(old, new) for old, new in pairs)


def check_comparable(networks: Networks, recipe: Recipe) -> None:
    """Checks that there are units to compare, and weights that can be compared.

    Raises:
      ValueError: if the spec has no perms though the recipe compares units, or if it
        compares weights that are not finite, naming these.
    """
    if recipe.similarity is not None and networks.stop_at != 0:
        check_any_perms(networks.spec)
    if recipe.compares_weights:
        networks.check_finite()


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
    # Moments for one stop lack the perms after it; all lack those that cannot be read.
    sources = {moment.source for moment in moments.values()}
    if sources == {networks.source()}:
        perms = networks.perms
    known = sources in ({networks.source()}, {networks.fingerprint})
    expected = set(perms) & set(moments) if known else perms
    check_same_keys("the moments are of other perms", expected, moments, remedy)
    count, spec = len(networks), networks.spec
    for perm, moment in moments.items():
        total = np.shape(moment.m2)[-1]
        if total != count * spec.units(perm):
            raise ValueError(
                f"the moments of perm {perm!r} are of {total} units, "
                f"not of N*n = {count} * {spec.units(perm)}. {remedy}"
            )
        if moment.source not in (None, networks.fingerprint, networks.source()):
            raise ValueError(
                f"the moments of perm {perm!r} were collected for {moment.source}, "
                f"but these are {networks.source()}. {remedy}"
            )
    return moments
