"""Searching settings by the score of merged models."""

import functools

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import collect, dense_apply, dense_params, dense_spec, images
from zipjax.trees import path_leaves

WIDTHS = (5, 7, 6, 3)
SPEC = dense_spec(WIDTHS)
MODELS = [dense_params(WIDTHS, seed) for seed in (0, 1)]
MOMENTS = collect(dense_apply, MODELS, SPEC, images(64, (5,)))
KEY = jax.random.key(0)


def distance(merged, head=0):
    """How close the merged model is to the first one: any number will do."""
    pairs = zip(
        jax.tree.leaves(merged.params(head)), jax.tree.leaves(MODELS[0]), strict=True
    )
    return -sum(float(np.abs(a - b).sum()) for a, b in pairs)


def searched(recipe, grid, **options):
    return zipjax.search(
        MODELS, SPEC, recipe, grid, distance, moments=MOMENTS, key=KEY, **options
    )


def test_every_combination_is_merged_and_scored():
    grid = {"alpha": (0.2, 1.0), "beta": (0.0, 0.5, 1.0), "stop_at": (1, 2)}
    found = searched(zipjax.zipit, grid)
    assert len(found.trials) == 12
    for trial in found.trials:
        settings = dict(trial.settings)
        stop_at = settings.pop("stop_at")
        recipe = zipjax.zipit(**settings)
        merged = zipjax.merge(MODELS, SPEC, recipe, moments=MOMENTS, stop_at=stop_at)
        assert trial.score == distance(merged)
    assert found.best.score == max(trial.score for trial in found.trials)


def test_weights_are_a_setting_of_the_merge():
    shares = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    found = searched(zipjax.average, {"weights": shares})
    # All of the first model is the first model.
    assert found.best.settings == {"weights": (1.0, 0.0)}
    assert found.best.score == 0


def test_the_balance_reuses_the_moments_and_the_key():
    align = functools.partial(zipjax.mudsc, matching="align")
    grid = {"balance": (0.0, 0.5, 1.0)}
    once, again = searched(align, grid), searched(align, grid)
    assert once == again
    first = zipjax.merge(MODELS, SPEC, zipjax.permute(), moments=MOMENTS)
    assert once.trials[0].score == distance(first)


def test_the_first_of_equals_is_best_and_bold():
    scores = iter([0.25, 0.75, 0.75])
    found = zipjax.search(
        MODELS, SPEC, zipjax.zipit, {"alpha": (0.1, 0.2, 0.3)},
        lambda merged: next(scores), moments=MOMENTS,
    )  # fmt: skip
    assert found.best.settings == {"alpha": 0.2}
    assert found.table().splitlines() == [
        "| alpha | score |",
        "| ---: | ---: |",
        "| 0.1 | 0.2500 |",
        "| **0.2** | **0.7500** |",
        "| 0.3 | 0.7500 |",
    ]


def test_progress_is_told():
    seen = []

    def track(points):
        for point in points:
            seen.append(point)
            yield point

    searched(zipjax.zipit, {"beta": (0.0, 1.0)}, track=track)
    assert seen == [{"beta": 0.0}, {"beta": 1.0}]


def test_a_setting_that_the_recipe_does_not_take_is_told():
    with pytest.raises(ValueError, match=r"\['alfa'\] do not fit .*unexpected.*'alfa'"):
        searched(zipjax.zipit, {"alfa": (0.2, 1.0)})


@pytest.mark.parametrize("grid", [{}, {"alpha": ()}])
def test_an_empty_grid_is_refused(grid):
    with pytest.raises(ValueError, match="has no points: give every setting"):
        searched(zipjax.zipit, grid)


def test_the_models_stay_as_they_are():
    before = {path: np.array(x) for path, x in path_leaves(MODELS[1]).items()}
    searched(zipjax.zipit, {"alpha": (0.5,)})
    for path, leaf in path_leaves(MODELS[1]).items():
        np.testing.assert_array_equal(leaf, before[path])


def scored(values):
    scores = iter(values)
    grid = {"alpha": [0.1, 0.4, 1.0]}
    return zipjax.search(
        MODELS, SPEC, zipjax.zipit, grid, lambda _: next(scores), moments=MOMENTS
    )


def test_nan_is_never_the_best_score():
    found = scored([np.nan, 1.0, 2.0])
    assert found.best.settings == {"alpha": 1.0}
    assert [trial.score for trial in found.trials[1:]] == [1.0, 2.0]
    assert "| **1.0** | **2.0000** |" in found.table()
    with pytest.raises(ValueError, match="scores of all 3 trials are NaN"):
        scored([np.nan] * 3)


@pytest.mark.parametrize("value", ["first", 3, None])
def test_one_value_is_no_list_of_values(value):
    with pytest.raises(ValueError, match=r"values of 'alpha' are .*: pass a list"):
        searched(zipjax.zipit, {"alpha": value})
