"""Coordinate ascent over perms whose similarities depend on one another.

MuDSC, Algorithm 1; Git Re-Basin, Algorithm 1.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import numpy as np

from zipjax.merging.matrices import model_matrices
from zipjax.merging.weights import Matrices
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import Array

Assigned: TypeAlias = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Matching:
    """The assignments of all zipped perms, and their matrices M and U."""

    assignments: Assigned
    matrices: Matrices

    @classmethod
    def of(
        cls, assigned: Assigned, spec: PermutationSpec, num_models: int
    ) -> "Matching":
        """Makes a matching from assignments."""
        return cls(assigned, model_matrices(assigned, spec, num_models))

    def updated(
        self, assigned: Assigned, spec: PermutationSpec, num_models: int
    ) -> "Matching":
        """Returns the matching with other assignments of some perms.

        With a perm these must include all perms nested in it.
        """
        new = model_matrices(assigned, spec, num_models)
        return Matching({**self.assignments, **assigned}, {**self.matrices, **new})


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When coordinate ascent ends.

    Attributes:
      sweeps: the largest number of sweeps over all perms.
      patience: number of sweeps without a better objective after which it ends.

    Raises:
      ValueError: if a number is no whole one, or below 1.
    """

    sweeps: int = 30
    patience: int = 3

    def __post_init__(self) -> None:
        numbers = self.sweeps, self.patience
        if not all(isinstance(n, int | np.integer) and n >= 1 for n in numbers):
            raise ValueError(f"{self}: pass whole numbers, which start at 1")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What one sweep reached.

    Attributes:
      number: its number; 0 is the start.
      objective: the mean similarity of matched units.
      changed: number of perms that were matched differently than before.
    """

    number: int
    objective: float
    changed: int


Report: TypeAlias = Callable[[Sweep], None]


def coordinate_ascent(
    start: Matching,
    roots: Sequence[str],
    rematch: Callable[[str, Matching], Matching],
    objective: Callable[[Matching], float],
    schedule: Schedule,
    key: Array,
    report: Report,
) -> Matching:
    """Matches perms in turn, each in a new random order, until nothing improves.

    Args:
      start: the first matching.
      roots: the perms to match in turn; perms nested in one are matched with it.
      rematch: returns the matching with one of them, and all perms nested in it,
        matched again.
      objective: the mean similarity of matched units.
      schedule: when to stop.
      key: PRNG key of the orders.
      report: called with the start and with every sweep.

    Returns:
      The best of the start and the matchings after each sweep.
    """
    now = best = start
    value = best_value = objective(now)
    since = 0
    report(Sweep(0, value, 0))
    for number in range(1, schedule.sweeps + 1):
        before = now
        for k in jax.random.permutation(jax.random.fold_in(key, number), len(roots)):
            now = rematch(roots[int(k)], now)
        changed = sum(
            not np.array_equal(assignment, before.assignments[perm])
            for perm, assignment in now.assignments.items()
        )
        value = objective(now) if changed else value
        report(Sweep(number, value, changed))
        since = 0 if value > best_value else since + 1
        if value > best_value:
            best, best_value = now, value
        if not changed or since >= schedule.patience:
            break
    return best


def matched_similarity(similarity: np.ndarray, merged: np.ndarray) -> tuple[float, int]:
    """Sums the similarities of units that were merged with each other.

    Args:
      similarity: ``[units, units]``.
      merged: the merged unit that each unit went to, ``[units]``.

    Returns:
      The sum over all pairs and their number.
    """
    order = np.argsort(merged, kind="stable")
    counts = np.bincount(merged)
    total, pairs, first = 0.0, 0, 0
    for count in counts[counts > 0]:
        block = order[first : first + count]
        inside = similarity[np.ix_(block, block)]
        total += (inside.sum() - np.trace(inside)) / 2
        pairs += count * (count - 1) // 2
        first += count
    return float(total), int(pairs)
