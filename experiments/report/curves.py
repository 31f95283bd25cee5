"""Pictures of recipes that iterate and of searched settings."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import zipjax
from experiments.report.style import COLOURS, WIDTH


def objective_curves(sweeps: Mapping[str, Sequence[zipjax.Sweep]]) -> Figure:
    """Draws the objective of coordinate ascent after every sweep, relative to the best.

    Args:
      sweeps: the sweeps of every method by its title, from the start on.

    Returns:
      The figure. Methods have different objectives, so that each one is drawn as a
      share of the best that it reached, which a ring marks.

    Raises:
      ValueError: if there are no sweeps.
    """
    if not sweeps or not all(sweeps.values()):
        raise ValueError("no sweeps to draw")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (title, found), colour in zip(sweeps.items(), COLOURS, strict=False):
        values = np.array([sweep.objective for sweep in found])
        best = int(values.argmax())
        label = f"{title} ({values[best]:.3g})"
        numbers = [sweep.number for sweep in found]
        axes.plot(numbers, values / values[best], ".-", color=colour, label=label)
        axes.plot(numbers[best], 1, "o", mfc="none", ms=9, color=colour)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="sweep (0: the start)", ylabel="share of the best objective")
    axes.legend(frameon=False)
    return figure


def search_curves(searches: Mapping[str, Sequence[zipjax.Search]]) -> Figure:
    """Draws scores against the first searched setting, a line for each of the others.

    Args:
      searches: the searches of every method by its title, one per seed, all over the
        same settings.

    Returns:
      The figure: thin lines for the seeds, a thick one for their mean, a ring at the
      best of every seed. Every second method is dashed, as lines may coincide.

    Raises:
      ValueError: if there are no searches.
    """
    if not searches:
        raise ValueError("no searches to draw")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    name = next(iter(next(iter(searches.values()))[0].best.settings))
    colours, dashes = itertools.cycle(COLOURS), itertools.cycle(("-", (0, (3, 3))))
    for (title, found), dash in zip(searches.items(), dashes, strict=False):
        best = [search.best for search in found]
        for others, numbers in _lines(found[0], name).items():
            trials = [[search.trials[k] for k in numbers] for search in found]
            values = [trial.settings[name] for trial in trials[0]]
            scores = 100 * np.array([[t.score for t in line] for line in trials])
            colour = next(colours)
            axes.plot(values, scores.T, color=colour, lw=0.7, alpha=0.5)
            label = ", ".join([title, *others])
            style = {"color": colour, "ls": dash, "lw": 2.2, "label": label}
            axes.plot(values, scores.mean(0), **style)
            for trial in (t for line in trials for t in line if t in best):
                place = trial.settings[name], 100 * trial.score
                axes.plot(*place, "o", mfc="none", c=colour)
    axes.set(xlabel=name, ylabel="training accuracy,\naverage of the tasks (%)")
    axes.legend(frameon=False)
    return figure


def _lines(search: zipjax.Search, name: str) -> dict[tuple[str, ...], list[int]]:
    """Groups the numbers of the trials that differ only in one setting."""
    lines: dict[tuple[str, ...], list[int]] = {}
    for number, trial in enumerate(search.trials):
        others = [f"{k} = {v:g}" for k, v in trial.settings.items() if k != name]
        lines.setdefault(tuple(others), []).append(number)
    return lines
