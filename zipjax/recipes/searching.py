"""Searching a recipe's settings by the score of the merged models.

The papers choose alpha and beta (ZipIt!, Section 5) and the balance (MuDSC, Section
4.1) that way, by accuracy on training data. Moments are reused by every trial.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from zipjax.arguments import check_callable, check_kind, is_number, wrong
from zipjax.markdown import markdown_table
from zipjax.merging.assembling import merge_networks
from zipjax.merging.each import OneOrEach
from zipjax.merging.merged import Merged
from zipjax.merging.networks import Networks
from zipjax.recipes.match_and_merge import match_networks
from zipjax.recipes.presets import Recipe
from zipjax.similarity.moments import Moments
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import Array, PyTree

_MERGE_SETTINGS = ("stop_at", "weights")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of the grid.

    Attributes:
      settings: the values tried, by name.
      score: that of the merged model.
    """

    settings: dict[str, Any]
    score: float


@dataclasses.dataclass(frozen=True)
class Search:
    """The trials of a search, in the order of the grid."""

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the highest score; the first of equals; never one of NaN."""
        known = [trial for trial in self.trials if not math.isnan(trial.score)]
        return max(known, key=lambda trial: trial.score)

    def table(self) -> str:
        """Returns the trials as a Markdown table, the best one in bold."""
        rows = [
            [*map(str, trial.settings.values()), f"{trial.score:.4f}"]
            for trial in self.trials
        ]
        best = self.trials.index(self.best)
        rows[best] = [f"**{cell}**" for cell in rows[best]]
        return markdown_table([*self.trials[0].settings, "score"], rows)


def search(
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
    make_recipe: Callable[..., Recipe],
    grid: Mapping[str, Sequence[Any]],
    score: Callable[[Merged], float],
    *,
    moments: Mapping[str, Moments] | None = None,
    stop_at: str | int | None = None,
    carry: int | None = None,
    key: Array | None = None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Search:
    """Merges with every combination of settings and scores the merged models.

    Args:
      models: see :func:`zipjax.merge`.
      spec: see :func:`zipjax.merge`.
      make_recipe: makes a recipe from settings by name, for instance ``zipjax.mudsc``.
      grid: the values to try, by name: arguments of ``make_recipe``, and ``stop_at`` or
        ``weights`` of :func:`zipjax.merge`.
      score: calibrates (if need be) and scores a merged model; the higher the better.
        Score on training data: test data that chose a setting no longer tests it.
      moments: see :func:`zipjax.merge`; all trials share them.
      stop_at: see :func:`zipjax.merge`; where zips stop unless the grid says so.
      carry: see :func:`zipjax.merge`.
      key: see :func:`zipjax.merge`; the same for every trial.
      track: wraps the list of trials, to show progress.

    Returns:
      All trials.

    Raises:
      ValueError: if the grid is empty, has a single value in place of a list or a
        setting that ``make_recipe`` does not take, if a score is no number or all are
        NaN, or as :func:`zipjax.merge`.
    """
    check_kind("grid", grid, Mapping)
    check_callable("make_recipe", make_recipe)
    for name, values in grid.items():
        listed = isinstance(values, Iterable) and getattr(values, "ndim", 1)
        if isinstance(values, str | bytes | Mapping) or not listed:
            raise ValueError(
                f"the grid's values of {name!r} are {values!r}: pass a list of them, "
                f"[{values!r}] for one"
            )
    points = [
        dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    if not grid or not points:
        raise ValueError(
            f"the grid {dict(grid)} has no points: give every setting a value or more"
        )
    _check_settings(make_recipe, [k for k in grid if k not in _MERGE_SETTINGS])
    networks = Networks.of(models, spec)
    trials = []
    for settings in track(points):
        options = {k: v for k, v in settings.items() if k in _MERGE_SETTINGS}
        parts = {k: v for k, v in settings.items() if k not in _MERGE_SETTINGS}
        stopping = networks.stopping_at(options.get("stop_at", stop_at))
        assignments = match_networks(stopping, make_recipe(**parts), moments, key)
        weights = options.get("weights")
        merged = merge_networks(stopping, assignments, weights, carry)
        found = score(merged)
        if not is_number(found):
            raise wrong("score", found)
        trials.append(Trial(settings, float(found)))
    if all(math.isnan(trial.score) for trial in trials):
        raise ValueError(
            f"the scores of all {len(trials)} trials are NaN, so that none is best: "
            "check what score returns for a merged model"
        )
    return Search(tuple(trials))


def _check_settings(make_recipe: Callable[..., Recipe], names: Sequence[str]) -> None:
    try:
        signature = inspect.signature(make_recipe)
    except ValueError:  # Not every function of C tells its arguments.
        return
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        raise ValueError(
            f"the grid's settings {list(names)} do not fit make_recipe{signature}: "
            f"{error}. Name what it takes, or one of {list(_MERGE_SETTINGS)}"
        ) from None
