"""The matching problem: networks, a recipe and moments, and one perm's next match."""

import dataclasses
import functools
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar, cast

import numpy as np
from jaxtyping import Float, Float64

from zipjax.arguments import check_kind, check_values
from zipjax.matching.grouped import Nest, match_nest
from zipjax.matching.inputs import asymmetry
from zipjax.merging.matrices import merged_units
from zipjax.merging.networks import Networks
from zipjax.recipes.ascent import Assigned
from zipjax.recipes.presets import Recipe, average
from zipjax.similarity.measures import (
    WeightSpace,
    activation_similarity,
    matched_similarity,
)
from zipjax.similarity.moments import Moments
from zipjax.similarity.weight_rows import neighbours, weight_rows
from zipjax.spec.entries import entry_names
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.spec.verify import check_any_perms
from zipjax.trees import check_same_keys, is_weight, running_stats

# Perms without activations are matched again after each other at most this often.
_SWEEPS = 10

# Entries that are blended at once: few, since large temporary arrays cost page faults.
_ENTRIES = 2**15

# Relative to the largest second moment, so much asymmetry may come from rounding.
_ROUNDING = 1e-3

_T = TypeVar("_T")
_Matrices: TypeAlias = Float[np.ndarray, "elements units units"]
_Parts: TypeAlias = list[tuple[float, _Matrices]]
"""What a perm's similarity is the sum of: factors and matrices."""


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

    def start(self) -> Assigned:
        """Matches by activations; if these do not count, by position.

        Perms without activations are matched by their weights, after the others. So are
        those of another width than the models', where only weights count: positions do
        not tell which of their units belong together, and matchings of different widths
        have no objective in common.
        """
        silent = [] if self.moments is None else self._silent
        recipe = average() if self.moments is None else self.recipe
        known = [root for root in self.roots if root not in silent]
        matched: Assigned = {}
        # They do not depend on one another, and numpy and scipy let threads run.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for found in pool.map(lambda x: self._matched(recipe, x, None), known):
                matched |= found
        for _ in range(_SWEEPS if silent else 0):
            before = matched
            for root in silent:
                matched = self.rematch(root, matched)
            if _equal(before, matched):
                break
        for root in self._resized if self.moments is None else []:
            matched = self.rematch(root, matched)
        return {perm: matched[perm] for perm in self.networks.perms}

    def rematch(self, root: str, matched: Assigned) -> Assigned:
        """Matches one perm and those nested in it, given how the others are.

        As long as the perms that share parameters with them stay as they are, so does
        the match.
        """
        perms = self._nested(root)
        state = self._state({p: self._counted(p, matched) for p in perms}, matched)
        return matched | self._kept(
            f"match of {root}",
            state,
            lambda: self._matched(self.recipe, root, matched),
        )

    def objective(self, matched: Assigned) -> float:
        """Returns the mean similarity of matched units (MuDSC, Eq. 4)."""
        total, pairs = 0.0, 0
        for perm in self.networks.perms:
            own = (perm, *self._spec.perms[perm].groups)
            state = self._state({perm: self._counted(perm, matched)}, matched, own)
            more, number = self._kept(
                f"objective of {perm}",
                state,
                functools.partial(self._matched_total, perm, matched),
            )
            total, pairs = total + more, pairs + number
        return total / max(pairs, 1)

    @property
    def _spec(self) -> PermutationSpec:
        return self.networks.spec

    @functools.cached_property
    def _latest(self) -> dict[str, tuple[Hashable, object]]:
        """What was computed last, by name, and what it was computed from."""
        return {}

    def _kept(self, name: str, state: Hashable, compute: Callable[[], _T]) -> _T:
        """Returns what was computed last if it was from the same state."""
        if name not in self._latest or self._latest[name][0] != state:
            self._latest[name] = state, compute()
        return cast(_T, self._latest[name][1])

    def _state(
        self,
        counted: Mapping[str, tuple[str, ...]],
        matched: Assigned,
        others: Iterable[str] = (),
    ) -> Hashable:
        """Returns what similarities depend on: parameters, and other perms' matches.

        Args:
          counted: the parameters that count, by perm.
          matched: how the perms are matched.
          others: more perms whose matches count.
        """
        perms = set(others).union(
            *(neighbours(self._spec, perm, own) for perm, own in counted.items())
        )
        rows = ((p, matched[p].tobytes()) for p in sorted(perms) if p in matched)
        return tuple(counted.items()), tuple(rows)

    @functools.cached_property
    def _activations(self) -> dict[str, _Matrices]:
        moments = self.moments or {}
        return {
            perm: _elements(activation_similarity(moments[perm]))
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
    def _weights(self) -> frozenset[str]:
        """The parameters that are merged and compared."""
        networks, similarity = self.networks, self.recipe.similarity
        chosen = {p for p in networks.trunk if is_weight(networks.leaves[0][p])}
        if similarity and not similarity.statistics:
            chosen -= {path for pair in running_stats(chosen) for path in pair}
        return frozenset(chosen)

    def _counted(self, perm: str, matched: Assigned) -> tuple[str, ...]:
        """Returns the parameters by which a perm is compared.

        Weights that touch perms that are yet to be matched count if no others do.
        """
        if not self._balance(perm):
            return ()
        members = dict.fromkeys(path for path, _, _ in self._spec.members(perm))
        touched = tuple(path for path in members if path in self._weights)
        pending = set(self.networks.perms) - {*matched, *self._nested(perm)}
        settled = tuple(
            path
            for path in touched
            if pending.isdisjoint(entry_names(self._spec.entries[path]))
        )
        return settled or touched

    def _balance(self, perm: str) -> float:
        """Returns the weight of a perm's weight space, once all perms have matches.

        The weights count fully where nothing is known of a perm's activations.
        """
        known = perm in self._activations or bool(self._children(perm))
        silent = self.moments is not None and not known
        chosen = self.recipe.similarity
        return 1.0 if silent else 0.0 if chosen is None else chosen.balance

    def _children(self, perm: str) -> list[str]:
        groups = (*self._spec.perms[perm].groups, perm)
        perms = self.networks.perms
        return [p for p in perms if self._spec.perms[p].groups == groups]

    def _matched(self, recipe: Recipe, root: str, matched: Assigned | None) -> Assigned:
        """Matches a perm and those nested in it, in each element of its indices."""
        found: dict[str, _Parts] = {}
        if recipe.similarity is not None:
            found = {p: self._parts(p, matched) for p in self._nested(root)}
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
        similarities: Mapping[str, _Parts],
        element: int,
    ) -> Nest:
        """Returns the nest of a perm in one element of its indices."""
        parts = similarities.get(perm)
        return Nest(
            perm,
            self._spec.perms[perm].size,
            _blend([(factor, x[element]) for factor, x in parts]) if parts else None,
            tuple(
                self._nest(recipe, child, similarities, element)
                for child in self._children(perm)
            ),
            recipe.num_units.get(perm),
        )

    def _parts(self, perm: str, matched: Assigned | None) -> _Parts:
        """Returns both spaces' parts; without a matching, activations count alone."""
        known, balance = self._activations.get(perm), 0.0
        parts: _Parts = []
        if matched is not None and (balance := self._balance(perm)):
            space = self._weight_space(perm, matched)
            parts = [] if space is None else [(balance, space.similarity())]
        return parts if known is None else [(1 - balance, known), *parts]

    def _matched_total(self, perm: str, matched: Assigned) -> tuple[float, int]:
        """Returns the sum of matched units' similarities, and their number of pairs."""
        spec, count = self._spec, len(self.networks)
        units = self._by_element(perm, merged_units(matched, spec, perm, count))
        known, balance = self._activations.get(perm), self._balance(perm)
        space = self._weight_space(perm, matched, once=True) if balance else None
        if known is None and space is None:
            return 0.0, 0
        total = 0.0 if space is None else balance * space.matched(units)
        if known is not None:
            total += (1 - balance) * sum(
                matched_similarity(own, merged)[0]
                for own, merged in zip(known, units, strict=True)
            )
        sizes = np.concatenate([np.bincount(merged) for merged in units])
        return total, int((sizes * (sizes - 1) // 2).sum())

    def _weight_space(
        self, perm: str, matched: Assigned, *, once: bool = False
    ) -> WeightSpace | None:
        """Returns a perm's weight space, if any parameter counts there."""
        chosen, paths = self.recipe.similarity, self._counted(perm, matched)
        if chosen is None:
            return None
        rows = weight_rows(
            [{path: own[path] for path in paths} for own in self.networks.leaves],
            self._spec,
            perm,
            matched,
            swapped=chosen.swapped,
            once=once and chosen.metric == "inner",
        )
        return WeightSpace.of(rows, chosen.metric) if rows else None


def _elements(similarity: np.ndarray) -> _Matrices:
    """Returns one matrix for every element of the indices, if there are any."""
    return similarity if similarity.ndim == 3 else similarity[None]


def _blend(
    parts: list[tuple[float, Float[np.ndarray, "units units"]]],
) -> Float64[np.ndarray, "units units"]:
    """Returns the sum of similarities by their factors."""
    blended = np.empty(parts[0][1].shape)
    step = max(1, _ENTRIES // len(blended))
    for first in range(0, len(blended), step):
        rows = slice(first, first + step)
        blended[rows] = sum(factor * x[rows].astype(np.float64) for factor, x in parts)
    return blended


def _equal(before: Assigned, after: Assigned) -> bool:
    pairs = ((before.get(p), x) for p, x in after.items())
    return all(old is not None and np.array_equal(old, new) for old, new in pairs)


def check_comparable(networks: Networks, recipe: Recipe) -> None:
    """Checks that there are units to compare, and weights that can be compared.

    Raises:
      ValueError: if the spec has no perms though the recipe compares units, or if it
        compares weights that are not finite, naming these.
    """
    check_kind("recipe", recipe, Recipe)
    if recipe.similarity is not None and networks.stop_at != 0:
        check_any_perms(networks.spec)
    if recipe.compares_weights:
        networks.check_finite()


def check_num_units(networks: Networks, recipe: Recipe) -> None:
    """Checks that a recipe sets merged widths of zipped perms, and such that can be.

    Raises:
      ValueError: naming other perms, those whose units are groups, or those that are
        paired and do not change alike; if there are none for a single model.
    """
    perms = networks.perms
    if len(networks) == 1 and not recipe.num_units:
        raise ValueError(
            "there is one model, which keeps its units: pass at least two models to "
            "merge them, or narrower widths to fold this one, such as zipjax.zipit("
            "num_units={perm: n // 2 for perm, n in spec.sizes.items()})"
        )
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
    networks.spec.check_widths(recipe.num_units)


def check_moments(
    networks: Networks, recipe: Recipe, moments: Mapping[str, Moments] | None
) -> Mapping[str, Moments]:
    """Returns the moments if they were collected for these networks.

    Raises:
      ValueError: if there are none, they are of other perms, units or models, or their
        second moments are none: of no sample, negative, asymmetric or not finite.
    """
    if moments is None:
        raise ValueError(
            f"recipe {recipe.name!r} compares activations: pass "
            "moments=zipjax.collect_moments(apply_fn, models, spec, batches)"
        )
    check_values("moments", moments, Moments)
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
        _check_second_moments(perm, moment, spec.elements(perm) or 1)
    return moments


def _check_second_moments(perm: str, moment: Moments, elements: int) -> None:
    """Checks that moments are those of samples: enough, and of a real covariance."""
    if not np.asarray(moment.count).sum() >= elements:
        raise ValueError(
            f"the moments of perm {perm!r} are of no sample (their count is "
            f"{np.asarray(moment.count).tolist()}): add samples before matching"
        )
    m2 = _elements(np.asarray(moment.m2))
    diagonal = np.diagonal(m2, axis1=-2, axis2=-1)
    # Rounding may take a dead unit's second moment, a sum of squares, below 0.
    largest = np.abs(diagonal).max(initial=0)
    if not (np.isfinite(largest) and diagonal.min(initial=0) >= -_ROUNDING * largest):
        raise ValueError(
            f"the moments of perm {perm!r} have second moments from "
            f"{diagonal.min():.3g} to {diagonal.max():.3g} on the diagonal of m2, "
            "which sums squares: collect the moments again, or build them with "
            "zipjax.Moments.of(samples)"
        )
    if not (gap := asymmetry(m2)) <= _ROUNDING * largest:
        raise ValueError(
            f"the m2 of the moments of perm {perm!r} differs from its transpose "
            f"by {gap:.3g}, with {largest:.3g} as largest second moment: it must "
            "be symmetric. Collect the moments again, or build them with "
            "zipjax.Moments.of(samples)"
        )
    if moment.earlier is not None:
        _check_second_moments(perm, moment.earlier, elements)
