"""Which units a zip may merge so that its width stays within reach.

A rule sees *kinds* of units, not units. A kind is a bit set of models: the units of
model m start as kind ``1 << m``, and the rule decides the kind of a merged unit. Units
of kind 0 are merged no further.

Each rule guarantees two things. While the width is above its target, it admits some
pair of kinds for which two units are left; and, unless its docstring says otherwise, it
never admits a pair that it has refused. So a zip that asks before each merge never
reaches a dead end.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

Kind = int
Slot = frozenset[Kind]
"""Kinds that will end up in one merged unit; no two of them share a model."""

# Bounds the cost of a search that fails: one per pair of kinds, up to 3^N / 2 of them.
_MOST_TRIALS = 500


@runtime_checkable
class ZipRule(Protocol):
    """Decides which units may be merged, and keeps track of the merges."""

    def admits(self, a: Kind, b: Kind) -> bool:
        """Returns whether units of the kinds ``a`` and ``b`` may be merged."""
        ...

    def merge(self, a: Kind, b: Kind) -> Kind:
        """Records an admitted merge; returns the kind of the merged unit."""
        ...


class LabelBudget:
    """Repeated merges with a budget above 0: the rule of ZipIt!'s reference code.

    A merged unit keeps the kind (the *label*) of its first unit. Merging two units with
    one label costs 1 of that label's budget B; units with different labels are free.

    No look-ahead is needed: while two labels are left, units of both can be merged.
    Afterwards only model 0's label is left, with ``n`` units less the merges that were
    paid for. So every width from ``max(1, n - B)`` up is reached, in whatever order.

    Attributes:
      budget: merges left for each label.
    """

    def __init__(self, kinds: list[Kind], budget: int):
        self.budget = dict.fromkeys(kinds, budget)

    def admits(self, a: Kind, b: Kind) -> bool:
        """Returns whether the labels differ or their budget is not yet spent."""
        return a != b or self.budget[a] > 0

    def merge(self, a: Kind, b: Kind) -> Kind:
        """Pays for a merge within a label; returns the label of the first unit."""
        if a == b:
            self.budget[a] -= 1
        return a


class SinglePairs:
    """No repeated merges (alpha = 0): merged units are pairs.

    Two kinds are admitted if, after that merge, :func:`most_pairs` is still at least
    the number of merges needed. A refusal is final: if after a later merge the rest
    could be paired up, it could have been before.

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
        """Returns whether enough pairs would be left after merging these two."""
        singles, budget = Counter(self.singles), Counter(self.budget)
        singles.subtract((a, b))
        if a == b:
            budget[a] -= 1
        possible = min(singles[a], singles[b], budget[a]) >= 0
        return possible and most_pairs(singles, budget) >= self.needed - 1

    def merge(self, a: Kind, b: Kind) -> Kind:
        """Removes both units from the game; returns kind 0."""
        for kind in (a, b):
            self.singles[kind] -= 1
        if a == b:
            self.budget[a] -= 1
        self.needed -= 1
        return 0


def most_pairs(singles: Mapping[Kind, int], budget: Mapping[Kind, int]) -> int:
    """Returns the largest number of pairs that single units can form.

    If no model has more than half of the units, all can be paired across models (but
    for one if their number is odd). If one model has more, all other units are paired
    with its units, and the rest of these among themselves as far as the budget allows.

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
    """Repeated merges with a budget of 0: no merged unit holds two of a model's units.

    A kind is the set of models merged so far. With three models or more, merging just
    any two disjoint kinds may lead to a dead end: no two of ``{0, 1}``, ``{0, 2}`` and
    ``{1, 2}`` can be merged further. So the rule keeps a *witness*: a way to distribute
    all present units over slots, one per unit of the target width, such that the kinds
    in each slot are disjoint. Two kinds are admitted if they share a slot of the
    witness or can be brought into one by exchanges between slots.

    That search is bounded and may miss a way, so the rule may later admit a pair that
    it has refused. But it never admits a pair wrongly, and while the width is above its
    target some slot holds two kinds, which it admits.

    Attributes:
      slots: the witness: the number of slots with each content.
    """

    def __init__(self, kinds: list[Kind], units: int, width: int):
        self.slots: Counter[Slot] = Counter({frozenset(kinds): units})
        self.slots[frozenset()] = width - units
        self.slots = +self.slots

    def admits(self, a: Kind, b: Kind) -> bool:
        """Returns whether the witness can be changed to hold both kinds in one slot."""
        return self._together(a, b) is not None

    def merge(self, a: Kind, b: Kind) -> Kind:
        """Changes the witness to hold both kinds in one slot and merges them there."""
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
        """Returns slots to replace and their replacements, that with a and b first."""
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
        """Yields exchanges: b to a slot of a; then both of them to a third slot."""
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
    """Returns both slots after a kind has moved from the one to the other.

    To keep the slots disjoint, kinds that share a model with a moved one move the other
    way, and so on (a Kempe chain).
    """
    out, back = {kind}, set[Kind]()
    while True:
        returned = {k for k in target if k & sum(out)}
        moved = {k for k in source if k & sum(returned)} | out
        if (returned, moved) == (back, out):
            return (source - out) | back, (target - back) | out
        out, back = moved, returned
