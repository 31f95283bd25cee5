"""Coordinate descent: when it ends and what it returns."""

import itertools

import jax
import numpy as np
import pytest

from zipjax.recipes.ascent import (
    Matching,
    Schedule,
    coordinate_ascent,
    matched_similarity,
)

ROOTS = ["a", "b", "c"]
KEY = jax.random.key(0)


def state(number):
    return Matching({root: np.array([number]) for root in ROOTS}, {})


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
        lambda now: objectives[int(now.assignments["a"][0])],
        schedule,
        key,
        reports.append,
    )
    return int(best.assignments["a"][0]), visits, reports


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


def test_every_sweep_visits_all_perms_in_an_order_of_the_key():
    orders = set()
    for seed in range(6):
        _, visits, _ = descend([0.1, 0.2, 0.3], Schedule(), jax.random.key(seed))
        sweeps = [visits[k : k + 3] for k in range(0, len(visits), 3)]
        assert all(sorted(sweep) == ROOTS for sweep in sweeps)
        orders.update(map(tuple, sweeps))
    assert len(orders) > 2
    assert descend([0.1, 0.2], Schedule())[1] == descend([0.1, 0.2], Schedule())[1]


@pytest.mark.parametrize("units", [1, 6, 15])
def test_matched_similarity_sums_every_pair_once(units):
    rng = np.random.default_rng(units)
    similarity = rng.normal(size=(units, units))
    similarity += similarity.T
    merged = rng.integers(0, 4, units)
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(units), 2)
        if merged[i] == merged[j]
    ]
    total, count = matched_similarity(similarity, merged)
    assert count == len(pairs)
    assert total == pytest.approx(sum(similarity[pair] for pair in pairs), abs=1e-12)
