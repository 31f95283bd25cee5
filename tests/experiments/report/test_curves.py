"""Curves: what is drawn is what was given."""

import numpy as np
import pytest

from experiments.report import curves
from zipjax import Search, Sweep, Trial

SWEEPS = {
    "git_rebasin": [Sweep(0, 1.0, 0), Sweep(1, 4.0, 3), Sweep(2, 5.0, 1)],
    "mudsc_zip": [Sweep(0, 0.4, 0), Sweep(1, 0.5, 2), Sweep(2, 0.3, 2)],
}


def test_objectives_are_drawn_as_shares_of_the_best():
    figure = curves.objective_curves(SWEEPS)
    (axes,) = figure.axes
    first, ring, second, _ = axes.get_lines()
    np.testing.assert_allclose(first.get_ydata(), [0.2, 0.8, 1.0])
    np.testing.assert_allclose(second.get_ydata(), [0.8, 1.0, 0.6])
    assert ring.get_xdata() == [2]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["git_rebasin (5)", "mudsc_zip (0.5)"]


def test_a_search_is_drawn_for_every_seed_and_their_mean():
    seeds = [
        Search(
            tuple(
                Trial({"balance": b}, s) for b, s in zip((0.0, 0.5), pair, strict=True)
            )
        )
        for pair in ((0.2, 0.4), (0.6, 0.5))
    ]
    figure = curves.search_curves({"MuDSC-Zip": seeds})
    (axes,) = figure.axes
    one, two, mean, *rings = axes.get_lines()
    np.testing.assert_allclose([one.get_ydata(), two.get_ydata()], [[20, 40], [60, 50]])
    np.testing.assert_allclose(mean.get_ydata(), [40, 45])
    chosen = [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings]
    np.testing.assert_allclose(chosen, [(0.5, 40), (0.0, 60)])


def test_a_search_of_two_settings_has_a_line_for_each_value_of_the_second():
    points = [(a, b) for a in (0.1, 0.5) for b in (0.0, 1.0)]
    scores = (0.2, 0.4, 0.6, 0.3)
    trials = [
        Trial({"alpha": a, "beta": b}, score)
        for (a, b), score in zip(points, scores, strict=True)
    ]
    (axes,) = curves.search_curves({"ZipIt!": [Search(tuple(trials))]}).axes
    assert axes.get_xlabel() == "alpha"
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    np.testing.assert_allclose(lines["ZipIt!, beta = 0"], [20, 60])
    np.testing.assert_allclose(lines["ZipIt!, beta = 1"], [40, 30])
    rings = [x.get_xydata()[0] for x in axes.get_lines() if x.get_marker() == "o"]
    np.testing.assert_allclose(rings, [(0.5, 60)])


@pytest.mark.parametrize("sweeps", [{}, {"mudsc_zip": []}])
def test_nothing_to_draw_is_refused(sweeps):
    with pytest.raises(ValueError, match="no sweeps"):
        curves.objective_curves(sweeps)
    with pytest.raises(ValueError, match="no searches"):
        curves.search_curves({})
