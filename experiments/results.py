"""The figures of a run: one result per method and seed, summarised over seeds."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

ENSEMBLE = "Ensemble"
AS_TRAINED = ", as trained"
"""Suffix of networks whose batch statistics were not reset, where others' were."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The figures of one method with one seed.

    Attributes:
      method: the name that the tables show. ``"Model A"``, ``"Model B"``, ... are the
        trained networks and ``"Ensemble"`` is all of them side by side.
      seed: the seed that the networks were trained with.
      flops: floating-point operations for one example, as XLA counts them in the
        compiled forward pass.
      joint: accuracy over the classes of all tasks together, a fraction.
      tasks: accuracy on each task alone, fractions.
      layers: number of zipped layers; None (or 0) for methods that are not zips.

    Raises:
      ValueError: if there is no task, an accuracy is not a fraction, or ``flops`` or
        ``layers`` is negative.
    """

    method: str
    seed: int
    flops: float
    joint: float
    tasks: tuple[float, ...]
    layers: int | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"{self.method}, seed {self.seed}: no task accuracy")
        for accuracy in (self.joint, *self.tasks):
            if not 0 <= accuracy <= 1:
                raise ValueError(
                    f"{self.method}, seed {self.seed}: accuracy {accuracy} is not a "
                    "fraction between 0 and 1"
                )
        if not (math.isfinite(self.flops) and self.flops >= 0 <= (self.layers or 0)):
            raise ValueError(
                f"{self.method}, seed {self.seed}: flops {self.flops} and layers "
                f"{self.layers} must not be negative"
            )

    @property
    def average(self) -> float:
        """The mean of the task accuracies."""
        return sum(self.tasks) / len(self.tasks)


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean and sample standard deviation over seeds; ``std`` is 0 for one seed."""

    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """A method's figures over its seeds: a row of the table."""

    method: str
    flops: float
    joint: Mean
    tasks: tuple[Mean, ...]
    average: Mean
    layers: int | None
    seeds: tuple[int, ...]

    @property
    def accuracies(self) -> tuple[Mean, ...]:
        """All accuracies in the order of the table's columns."""
        return (self.joint, *self.tasks, self.average)


def summarise(results: Iterable[Result]) -> list[Summary]:
    """Averages every figure of every method over the seeds.

    Args:
      results: one result per method and seed, in any order.

    Returns:
      One summary per method, in the order in which the methods first appear.

    Raises:
      ValueError: if a method lacks a seed that another one has, has a seed twice, or
        if the methods differ in the number of tasks or a method in its layers.
    """
    methods: dict[str, list[Result]] = {}
    for result in results:
        methods.setdefault(result.method, []).append(result)
    _check_seeds(methods)
    _check_tasks(methods)
    return [_summary(method, group) for method, group in methods.items()]


def letter(index: int) -> str:
    """Returns the letter of a model or task: A, B, ..., Z, AA, AB, ..."""
    first = letter(index // 26 - 1) if index >= 26 else ""
    return first + chr(ord("A") + index % 26)


def is_model(method: str) -> bool:
    """Returns whether the method is a trained network, such as ``"Model A"``."""
    return re.fullmatch(rf"Model [A-Z]+({AS_TRAINED})?", method) is not None


def is_ensemble(method: str) -> bool:
    """Returns whether the method is all the trained networks side by side."""
    return method in (ENSEMBLE, ENSEMBLE + AS_TRAINED)


def _check_seeds(methods: dict[str, list[Result]]) -> None:
    seeds = {method: [r.seed for r in group] for method, group in methods.items()}
    every = set().union(*seeds.values())
    for method, own in seeds.items():
        if twice := sorted({seed for seed in own if own.count(seed) > 1}):
            raise ValueError(f"{method}: more than one result for seeds {twice}")
    missing = {method: sorted(every - set(own)) for method, own in seeds.items()}
    lacking = [f"{method} lacks {gap}" for method, gap in missing.items() if gap]
    if lacking:
        raise ValueError(f"methods differ in their seeds: {'; '.join(lacking)}")


def _check_tasks(methods: dict[str, list[Result]]) -> None:
    for method, group in methods.items():
        if len({result.layers for result in group}) > 1:
            raise ValueError(f"{method}: the seeds differ in the number of layers")
    counts = {m: sorted({len(r.tasks) for r in group}) for m, group in methods.items()}
    if len(set(map(tuple, counts.values()))) > 1 or any(
        len(count) > 1 for count in counts.values()
    ):
        raise ValueError(f"methods differ in the number of tasks: {counts}")


def _summary(method: str, group: Sequence[Result]) -> Summary:
    return Summary(
        method=method,
        flops=float(np.mean([result.flops for result in group])),
        joint=_mean([result.joint for result in group]),
        tasks=tuple(
            _mean(column) for column in zip(*(r.tasks for r in group), strict=True)
        ),
        average=_mean([result.average for result in group]),
        layers=group[0].layers,
        seeds=tuple(sorted(result.seed for result in group)),
    )


def _mean(values: Sequence[float]) -> Mean:
    std = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return Mean(float(np.mean(values)), float(std))
