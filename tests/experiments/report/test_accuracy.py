"""Accuracy against depth: the drawn values are the given ones."""

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.report.accuracy import accuracy_against_depth
from experiments.results import Result

ZIPS = {"ZipIt! full": 20, "ZipIt! 13/20": 13, "ZipIt! 7/20": 7}
METHODS = ("Model A", "Model B", "Ensemble", "Average", "Permute", *ZIPS)


def _results(seeds: int) -> list[Result]:
    rng = np.random.default_rng(0)
    return [
        Result(m, s, 1e6, rng.uniform(), tuple(rng.uniform(size=2)), ZIPS.get(m))
        for m in METHODS
        for s in range(seeds)
    ]


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return file.getvalue()


def test_accuracy_against_depth_draws_the_means_and_deviations():
    results = _results(seeds=3)
    figure = accuracy_against_depth(results, 20)
    assert _png(figure).startswith(b"\x89PNG")
    for axes, figures in zip(figure.axes, ("joint", "average"), strict=True):
        drawn = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        values = {
            m: 100 * np.array([getattr(r, figures) for r in results if r.method == m])
            for m in METHODS
        }
        for level in METHODS[:3]:
            np.testing.assert_allclose(drawn[level].get_ydata(), values[level].mean())
        depths = ["Ensemble", "ZipIt! 7/20", "ZipIt! 13/20", "ZipIt! full"]
        line, _, (bars,) = drawn["ZipIt!"]
        x, y = line.get_data(orig=False)
        np.testing.assert_array_equal(x, [0, 7, 13, 20])
        np.testing.assert_allclose(y, [values[d].mean() for d in depths])
        lengths = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
        np.testing.assert_allclose(lengths, [values[d].std(ddof=1) for d in depths])
        # Full merges stand side by side after the last layer.
        for number, method in enumerate(("Average", "Permute"), start=1):
            point = drawn[method][0].get_xydata()
            place = 20 * (1 + 0.03 * number)
            np.testing.assert_allclose(point, [[place, values[method].mean()]])
        assert max(axes.get_xticks()) == 20


def test_an_ensemble_may_say_that_it_zips_no_layer():
    results = [
        dataclasses.replace(r, layers=0) if r.method == "Ensemble" else r
        for r in _results(seeds=1)
    ]
    labels = [
        accuracy_against_depth(given, 20).axes[0].get_legend_handles_labels()[1]
        for given in (results, _results(seeds=1))
    ]
    assert labels[0] == labels[1]
    assert sorted(labels[0]) == sorted([*METHODS[:5], "ZipIt!"])


def test_one_seed_has_no_error_bars():
    axes = accuracy_against_depth(_results(seeds=1), 20).axes[0]
    assert not any(container.has_yerr for container in axes.containers)


def test_accuracy_needs_results():
    with pytest.raises(ValueError, match="no results"):
        accuracy_against_depth([], 20)


def test_many_methods_can_be_distinguished():
    results = [
        Result(f"Method {number}", 0, 1e6, number / 20, (0.5,)) for number in range(11)
    ]
    axes = accuracy_against_depth(results, 4).axes[0]
    lines = [container[0] for container in axes.containers]
    styles = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(styles) == len(results)
