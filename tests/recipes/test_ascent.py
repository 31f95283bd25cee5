"""Coordinate descent: when it ends and what it returns."""

import functools
import itertools

import jax
import numpy as np
import pytest

import zipjax
from tests.networks import (
    dense_apply,
    dense_params,
    dense_spec,
    images,
    relative_error,
)
from zipjax.recipes.ascent import Schedule, coordinate_ascent

ROOTS = ["a", "b", "c"]
KEY = jax.random.key(0)


def state(number):
    return {root: np.array([number]) for root in ROOTS}


def descend(objectives, schedule, key=KEY):
    """Runs on states whose objectives are given, one a sweep."""
    visits, reports = [], []
    numbers = itertools.count()

    def rematch(root, now):
        visits.append(root)
        if len(visits) % len(ROOTS):
            return now
        return state(min(next(numbers) + 1, len(objectives) - 1))

    best = coordinate_ascent(
        state(0),
        ROOTS,
        rematch,
        lambda now: objectives[int(now["a"][0])],
        schedule,
        key,
        reports.append,
    )
    return int(best["a"][0]), visits, reports


@pytest.mark.parametrize(
    ("objectives", "schedule", "best", "sweeps"),
    [
        # The last state comes again: nothing changes any more.
        ([0.1, 0.2, 0.3], Schedule(), 2, 3),
        # The best is kept, and after two sweeps without a better one it ends.
        ([0.1, 0.9, 0.5, 0.6, 1.0], Schedule(patience=2), 1, 3),
        ([0.1, 0.9, 0.5, 0.6, 1.0], Schedule(patience=3), 4, 5),
        # The start may be the best.
        ([0.9, 0.5, 0.4, 0.3], Schedule(patience=1), 0, 1),
        ([0.1, 0.2, 0.3, 0.4], Schedule(sweeps=2), 2, 2),
    ],
)
def test_the_best_state_is_kept_until_patience_ends(objectives, schedule, best, sweeps):
    found, visits, reports = descend(objectives, schedule)
    assert found == best
    assert len(visits) == sweeps * len(ROOTS)
    assert [report.number for report in reports] == list(range(sweeps + 1))
    expected = [objectives[min(k, len(objectives) - 1)] for k in range(sweeps + 1)]
    assert [report.objective for report in reports] == expected


@pytest.mark.parametrize(
    "numbers", [(np.nan, 3), (3, np.nan), (0, 3), (3, 1.5), ("3", 3)], ids=str
)
def test_a_schedule_counts_sweeps(numbers):
    with pytest.raises(ValueError, match="pass whole numbers, which start at 1"):
        Schedule(*numbers)


def test_every_sweep_visits_all_perms_in_an_order_of_the_key():
    orders = set()
    for seed in range(6):
        _, visits, _ = descend([0.1, 0.2, 0.3], Schedule(), jax.random.key(seed))
        sweeps = [visits[k : k + 3] for k in range(0, len(visits), 3)]
        assert all(sorted(sweep) == ROOTS for sweep in sweeps)
        orders.update(map(tuple, sweeps))
    assert len(orders) > 2
    assert descend([0.1, 0.2], Schedule())[1] == descend([0.1, 0.2], Schedule())[1]


def doubled(widths, seed):
    """A dense network whose every hidden unit is there twice, and its spec."""
    params = dense_params(widths, seed)
    for k, layer in enumerate(params["layers"]):
        rows, columns = k > 0, k < len(widths) - 2
        layer["w"] = np.tile(layer["w"], (1 + rows, 1 + columns))
        layer["b"] = np.tile(layer["b"], 1 + columns)
    inner = [2 * width for width in widths[1:-1]]
    return params, dense_spec([widths[0], *inner, widths[-1]])


@pytest.mark.parametrize(
    "make", [zipjax.weight_zip, functools.partial(zipjax.mudsc, 1.0)]
)
@pytest.mark.parametrize("narrow", [{"h0": 4}, {"h0": 4, "h1": 5}, {"h1": 12}])
def test_weights_alone_are_matched_at_the_widths_that_were_asked_for(make, narrow):
    # A start at full width beat every sweep at the widths asked for.
    params, spec = doubled((3, 4, 5, 2), 1)
    key, x = jax.random.key(0), images(20, (3,))
    merged = zipjax.merge([params, params], spec, make(num_units=narrow), key=key)
    widths = [layer["b"].size for layer in merged.params()["layers"][:-1]]
    assert widths == [narrow.get(p, n) for p, n in spec.sizes.items()]
    # Units that are there twice are merged, so that nothing is lost.
    expected = dense_apply(params, x)
    assert relative_error(dense_apply(merged.params(), x), expected) < 1e-5


def test_a_width_that_is_the_models_own_changes_nothing():
    models = [dense_params((3, 4, 5, 2), seed) for seed in range(2)]
    spec, key = dense_spec((3, 4, 5, 2)), jax.random.key(0)
    expected = zipjax.match(models, spec, zipjax.weight_zip(), key=key)
    recipe = zipjax.weight_zip(num_units=spec.sizes)
    found = zipjax.match(models, spec, recipe, key=key)
    for perm, assignment in expected.items():
        np.testing.assert_array_equal(found[perm], assignment)
