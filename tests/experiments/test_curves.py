"""Curves: what is drawn is what was given."""

import numpy as np
import pytest

from experiments import curves
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
    figure = curves.search_curves({"MuDSC-Zip": seeds}, "balance")
    (axes,) = figure.axes
    one, two, mean, *rings = axes.get_lines()
    np.testing.assert_allclose([one.get_ydata(), two.get_ydata()], [[20, 40], [60, 50]])
    np.testing.assert_allclose(mean.get_ydata(), [40, 45])
    chosen = [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings]
    np.testing.assert_allclose(chosen, [(0.5, 40), (0.0, 60)])


@pytest.mark.parametrize("sweeps", [{}, {"mudsc_zip": []}])
def test_nothing_to_draw_is_refused(sweeps):
    with pytest.raises(ValueError, match="no sweeps"):
        curves.objective_curves(sweeps)
    with pytest.raises(ValueError, match="no searches"):
        curves.search_curves({}, "balance")
