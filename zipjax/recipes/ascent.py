"""Coordinate ascent over perms whose similarities depend on one another.

MuDSC, Algorithm 1; Git Re-Basin, Algorithm 1.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import numpy as np

from zipjax.arguments import is_whole
from zipjax.types import Array

Assigned: TypeAlias = dict[str, np.ndarray]
"""How perms are matched: their assignments ``[*groups, N*n]``."""


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
        if not all(is_whole(n) and n >= 1 for n in numbers):
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
    start: Assigned,
    roots: Sequence[str],
    rematch: Callable[[str, Assigned], Assigned],
    objective: Callable[[Assigned], float],
    schedule: Schedule,
    key: Array,
    report: Report,
) -> Assigned:
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
        for k in np.asarray(_order(key, number, len(roots))):
            now = rematch(roots[int(k)], now)
        changed = sum(
            not np.array_equal(assignment, before[perm])
            for perm, assignment in now.items()
        )
        value = objective(now) if changed else value
        report(Sweep(number, value, changed))
        since = 0 if value > best_value else since + 1
        if value > best_value:
            best, best_value = now, value
        if not changed or since >= schedule.patience:
            break
    return best


@jax.jit(static_argnums=2)
def _order(key: Array, number: int, count: int) -> Array:
    """Returns the random order of a sweep."""
    return jax.random.permutation(jax.random.fold_in(key, number), count)
