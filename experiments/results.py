"""The figures of a run: one result per method and seed, summarised over seeds."""

import dataclasses
import math
import re
from collections import Counter
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
      joint: accuracy over the classes of all tasks together, a fraction; None where
        tasks have no classes in common.
      tasks: the score on each task alone, 1 if it is perfect, or as good as what it is
        compared with; None for tasks of networks that are not merged.
      layers: number of zipped layers; None (or 0) for methods that are not zips.
      group: the table that the result belongs to: "" for merges of all networks.
      headings: the tasks' names in the table; "Task A" and so on by default.

    Raises:
      ValueError: if there is no task, the joint accuracy is not a fraction, a score is
        not finite, or ``flops`` or ``layers`` is negative.
    """

    method: str
    seed: int
    flops: float
    joint: float | None
    tasks: tuple[float | None, ...]
    layers: int | None = None
    group: str = ""
    headings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"{self.method}, seed {self.seed}"
        scores = [score for score in self.tasks if score is not None]
        if not scores:
            raise ValueError(f"{where}: no task's score")
        if self.joint is not None and not 0 <= self.joint <= 1:
            raise ValueError(
                f"{where}: accuracy {self.joint} is not a fraction between 0 and 1"
            )
        for score in scores:
            if not math.isfinite(score):
                raise ValueError(f"{where}: the score {score} is not finite")
        if not (math.isfinite(self.flops) and self.flops >= 0 <= (self.layers or 0)):
            raise ValueError(
                f"{where}: flops {self.flops} and layers {self.layers} must not be "
                "negative"
            )

    @property
    def average(self) -> float:
        """The mean of the tasks' scores."""
        scores = [score for score in self.tasks if score is not None]
        return sum(scores) / len(scores)

    def among(
        self, group: str, numbers: Sequence[int], headings: tuple[str, ...]
    ) -> "Result":
        """Returns the result in a table of more tasks.

        Args:
          group: the table.
          numbers: this result's tasks among those of the table.
          headings: the names of all of these.
        """
        tasks: list[float | None] = [None] * len(headings)
        for number, score in zip(numbers, self.tasks, strict=True):
            tasks[number] = score
        return dataclasses.replace(
            self, tasks=tuple(tasks), group=group, headings=headings
        )


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
    joint: Mean | None
    tasks: tuple[Mean | None, ...]
    average: Mean
    layers: int | None
    seeds: tuple[int, ...]

    @property
    def scores(self) -> tuple[Mean | None, ...]:
        """All scores in the order of the table's columns."""
        joint = () if self.joint is None else (self.joint,)
        # Of one task, the average is its score once more.
        average = (self.average,) if len(self.tasks) > 1 else ()
        return (*joint, *self.tasks, *average)


def summarise(results: Iterable[Result]) -> list[Summary]:
    """Averages every figure of every method over the seeds.

    Where a method has several results for a seed, those of several pairs of networks,
    these are averaged first: every task over the pairs that it belongs to.

    Args:
      results: one result or more per method and seed, in any order, of one table.

    Returns:
      One summary per method, in the order in which the methods first appear.

    Raises:
      ValueError: if a method lacks a seed that another one has, has one more often than
        others, or if the methods differ in the number of tasks or a method in its
        layers.
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
    counts = {method: Counter(r.seed for r in own) for method, own in methods.items()}
    every = set[int]().union(*counts.values())
    for method, own in counts.items():
        # Of pairs there is one result each.
        if len(set(own.values())) > 1 or (
            max(own.values()) > 1 and not methods[method][0].group
        ):
            raise ValueError(f"{method}: results for seeds differ: {dict(own)}")
    missing = {method: sorted(every - set(own)) for method, own in counts.items()}
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
    joint = _over_seeds(group, [result.joint for result in group])
    tasks = [
        _over_seeds(group, [result.tasks[k] for result in group])
        for k in range(len(group[0].tasks))
    ]
    by_seed = zip(*(own for own in tasks if own), strict=True)
    return Summary(
        method=method,
        flops=float(np.mean([result.flops for result in group])),
        joint=_mean_of(joint) if joint else None,
        tasks=tuple(_mean_of(own) if own else None for own in tasks),
        average=_mean_of([float(np.mean(scores)) for scores in by_seed]),
        layers=group[0].layers,
        seeds=tuple(sorted({result.seed for result in group})),
    )


def _over_seeds(group: Sequence[Result], scores: Sequence[float | None]) -> list[float]:
    """Returns the mean score for every seed; nothing where there is none."""
    by_seed: dict[int, list[float]] = {}
    for result, score in zip(group, scores, strict=True):
        if score is not None:
            by_seed.setdefault(result.seed, []).append(score)
    return [float(np.mean(own)) for own in by_seed.values()]


def _mean_of(values: Sequence[float]) -> Mean:
    std = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return Mean(float(np.mean(values)), float(std))
