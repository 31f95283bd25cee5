"""Which units a zip may merge so that its width stays within reach.

A rule sees *kinds* of units, not units. A kind is a bit set of models: the units of
model m start as kind ``1 << m``, and the rule says which kind a merged unit has. Kind 0
takes part in no further merge.

Each rule upholds: while the width is above its target, some pair of kinds is admitted
of which two units are there; and a pair of kinds that is refused is refused for good,
unless a rule says otherwise. So a zip that asks before each merge has no dead end.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

Kind = int
Slot = frozenset[Kind]
"""The kinds, no two of which share a model, that are to end up in one merged unit."""

# A failed search is paid once for a pair of kinds, of which there are up to 3^N / 2.
_MOST_TRIALS = 500


@runtime_checkable
class Rule(Protocol):
    """What a zip asks before and tells after each merge."""

    def admits(self, a: Kind, b: Kind) -> bool:
        """Whether a unit of kind ``a`` may be merged with one of kind ``b``."""
        ...

    def merge(self, a: Kind, b: Kind) -> Kind:
        """Take note of an admitted merge; returns the kind of the merged unit."""
        ...


class LabelBudget:
    """Repeated matches with a budget above 0: the rule of ZipIt!'s reference.

    A merged unit keeps the kind (the *label*) of its first unit. Merging two units of
    one label costs one unit of that label's budget B; labels that differ merge freely.

    No look-ahead is needed: while two labels are left they can be merged, and after
    that only model 0's label is left, of which there are ``n`` less the merges paid
    for. So every width from ``max(1, n - B)`` on is reached, whatever the order.

    Attributes:
      budget: merges left for each label.
    """

    def __init__(self, kinds: list[Kind], budget: int):
        self.budget = dict.fromkeys(kinds, budget)

    def admits(self, a: Kind, b: Kind) -> bool:
        """Whether the labels differ or their budget is not spent."""
        return a != b or self.budget[a] > 0

    def merge(self, a: Kind, b: Kind) -> Kind:
        """Pay for a merge within a label; returns the label of the first unit."""
        if a == b:
            self.budget[a] -= 1
        return a


class SinglePairs:
    """No repeated matches (alpha = 0): merged units are pairs.

    Two kinds are admitted if, after that merge, :func:`most_pairs` is still at least
    the number of merges needed. Refusal is for good: if the rest could be paired up
    after a merge refused before, so it could have been then.

    Attributes:
      singles: units of each model that are not merged yet.
      budget: merges left within each model.
      needed: merges left to reach the width.
    """

    def __init__(self, kinds: list[Kind], units: int, budget: int, needed: int):
        self.singles = dict.fromkeys(kinds, units)
        self.budget = dict.fromkeys(kinds, budget)
        self.needed = needed

    def admits(self, a: Kind, b: Kind) -> bool:
        """Whether enough pairs are left once these two are merged."""
        singles, budget = Counter(self.singles), Counter(self.budget)
        singles.subtract((a, b))
        if a == b:
            budget[a] -= 1
        possible = min(singles[a], singles[b], budget[a]) >= 0
        return possible and most_pairs(singles, budget) >= self.needed - 1

    def merge(self, a: Kind, b: Kind) -> Kind:
        """Take both units out of play."""
        for kind in (a, b):
            self.singles[kind] -= 1
        if a == b:
            self.budget[a] -= 1
        self.needed -= 1
        return 0


def most_pairs(singles: Mapping[Kind, int], budget: Mapping[Kind, int]) -> int:
    """Return the largest number of pairs that single units can form.

    If no model has more than half of the units they can all be paired across models.
    If one has, the others are all paired with it and its rest within its budget.

    Args:
      singles: units of each model.
      budget: pairs allowed within each model.

    Returns:
      The number of pairs.
    """
    largest = max(singles, key=lambda kind: singles[kind])
    total = sum(singles.values())
    others = total - singles[largest]
    spare = singles[largest] - others
    if spare <= 0:
        return total // 2
    return others + min(budget[largest], spare // 2)


class AcrossModels:
    """Repeated matches with a budget of 0: no two units of a model in one merged unit.

    Kinds are the sets of models merged so far. With three models or more, merging any
    two disjoint kinds may lead to a dead end: ``{0, 1}``, ``{0, 2}`` and ``{1, 2}``
    need a merged unit each. So the rule keeps a *witness*: a way to put all present
    units in as many slots as there are to be merged units, with disjoint kinds in each.
    Two kinds are admitted if they share a slot of the witness or can be brought
    together by exchanges between slots. That search is bounded and may miss a way, so
    that it may admit later what it refused; but it never admits a pair wrongly, and
    while the width is above its target some slot holds two kinds, which it admits.

    Attributes:
      slots: the witness, with the number of slots of each content.
    """

    def __init__(self, kinds: list[Kind], units: int, width: int):
        self.slots: Counter[Slot] = Counter({frozenset(kinds): units})
        self.slots[frozenset()] = width - units
        self.slots = +self.slots

    def admits(self, a: Kind, b: Kind) -> bool:
        """Whether the witness can be changed to hold both kinds in one slot."""
        return self._together(a, b) is not None

    def merge(self, a: Kind, b: Kind) -> Kind:
        """Change the witness to hold both kinds in one slot and merge them there."""
        change = self._together(a, b)
        if change is None:
            raise RuntimeError(f"kinds {a} and {b} were merged without being admitted")
        before, after = change
        shared, *rest = after
        self.slots.subtract(before)
        self.slots.update([shared - {a, b} | {a | b}, *rest])
        self.slots = +self.slots
        return a | b

    def _together(self, a: Kind, b: Kind) -> tuple[list[Slot], list[Slot]] | None:
        """Slots to exchange and what becomes of them, the one with a and b first."""
        if a & b:
            return None
        for slot in self.slots:
            if a in slot and b in slot:
                return [slot], [slot]
        trials = itertools.islice(self._exchanges(a, b), _MOST_TRIALS)
        for before, after in trials:
            if a in after[0] and b in after[0]:
                return before, after
        return None

    def _exchanges(self, a: Kind, b: Kind) -> Iterator[tuple[list[Slot], list[Slot]]]:
        """Bring b to a slot of a; else both to a third slot, one after the other."""
        with_a = [slot for slot in self.slots if a in slot]
        with_b = [slot for slot in self.slots if b in slot]
        for home, source in itertools.product(with_a, with_b):
            left, joined = _move(b, source, home)
            yield [home, source], [joined, left]
        for third, home, source in itertools.product(self.slots, with_a, with_b):
            if third in (home, source):
                continue
            left_a, halfway = _move(a, home, third)
            left_b, joined = _move(b, source, halfway)
            yield [third, home, source], [joined, left_a, left_b]


def _move(kind: Kind, source: Slot, target: Slot) -> tuple[Slot, Slot]:
    """Move a kind to another slot, with as few others as keep both slots disjoint.

    What shares a model with a moved kind goes the other way (a Kempe chain).
    """
    out, back = {kind}, set[Kind]()
    while True:
        returned = {k for k in target if k & sum(out)}
        moved = {k for k in source if k & sum(returned)} | out
        if (returned, moved) == (back, out):
            return (source - out) | back, (target - back) | out
        out, back = moved, returned
