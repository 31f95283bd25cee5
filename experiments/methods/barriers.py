"""Measures losses and scores on the lines between two networks."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

import zipjax
from experiments.methods.merges import Setting, plain
from experiments.methods.runner import Model, Runner
from experiments.parents.tasks.suite import Suite
from experiments.parents.train import Config
from experiments.report.barrier import Curve, Line

_ORDERS = {
    "own order": zipjax.average(),
    "by activations": zipjax.permute(),
    "by weights": zipjax.git_rebasin(),
}


def barriers(
    setting: Setting,
    runner: Runner,
    options: Config,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Line]:
    """Measures the lines from A to B, whose units are ordered in several ways.

    Args:
      setting: two networks whose merges share their outputs, and their moments.
      runner: how networks are run.
      options: the config's ``line``: the number of points, and the number of images for
        scores and for batch statistics.
      track: wraps the points of all lines in a progress bar.
    """
    suite = setting.suite.testing(options.images).calibrating(options.images)
    fractions = np.linspace(0, 1, options.points)
    points = {
        name: _points(setting, recipe, fractions) for name, recipe in _ORDERS.items()
    }
    found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in _ORDERS}
    for name in track([name for name in _ORDERS for _ in fractions]):
        model = next(points[name])
        kinds = model, runner.calibrated(model, suite)
        found[name].append([_measured(own, suite, runner) for own in kinds])
    return [
        Line(name, fractions, *(Curve(*own.T) for own in np.swapaxes(rows, 0, 1)))
        for name, rows in found.items()
    ]


def _points(
    setting: Setting, recipe: zipjax.Recipe, fractions: np.ndarray
) -> Iterator[Model]:
    """Returns the networks on the line to B, ordered by a recipe."""
    models, specs = setting.models, setting.suite.specs
    options = {"moments": setting.moments, "key": setting.first_key}
    assignments = zipjax.match(models, specs, recipe, **options)
    return map(plain, zipjax.interpolate(models, specs, assignments, fractions))


def _measured(model: Model, suite: Suite, runner: Runner) -> tuple[float, float]:
    """Returns a network's loss and score, in the mean over the tasks."""
    losses = suite.losses(model, runner.batch_size)
    return float(losses.mean()), runner.evaluate(model, suite).average
