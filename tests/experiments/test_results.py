"""Results: figures that make sense, and their means and deviations over seeds."""

import numpy as np
import pytest

from experiments.results import Result, is_model, letter, summarise


def _result(method: str, seed: int, **changes) -> Result:
    figures = {"flops": 10.0, "joint": 0.5, "tasks": (0.4, 0.8)} | changes
    return Result(method, seed, **figures)


def test_average_is_the_mean_of_the_tasks():
    assert _result("Permute", 0).average == pytest.approx(0.6)
    assert _result("Permute", 0, tasks=(0.3,)).average == 0.3


def test_summarise_agrees_with_numpy():
    rng = np.random.default_rng(0)
    table = rng.uniform(size=(2, 4, 4))  # method, seed, (joint, A, B, C)
    results = [
        Result(name, seed, 100.0 + seed, joint, tuple(tasks), layers=5)
        for seed in range(4)
        for name, (joint, *tasks) in zip("xy", table[:, seed], strict=True)
    ]
    rows = summarise(results)
    assert [row.method for row in rows] == ["x", "y"]
    for row, figures in zip(rows, table, strict=True):
        columns = np.column_stack([figures, figures[:, 1:].mean(1)])
        means = [score.mean for score in row.scores]
        stds = [score.std for score in row.scores]
        np.testing.assert_allclose(means, columns.mean(0))
        np.testing.assert_allclose(stds, columns.std(0, ddof=1))
        assert (row.flops, row.layers, row.seeds) == (101.5, 5, (0, 1, 2, 3))


def test_one_seed_has_no_deviation():
    (row,) = summarise([_result("Permute", 3)])
    assert (row.joint.mean, row.joint.std, row.seeds) == (0.5, 0.0, (3,))


def test_no_results_are_no_rows():
    assert summarise([]) == []


def test_methods_with_other_seeds_are_named_with_what_they_lack():
    results = [_result("Average", s) for s in (0, 1, 2)] + [_result("Permute", 1)]
    with pytest.raises(ValueError, match=r"Permute lacks \[0, 2\]") as error:
        summarise(results)
    assert "Average" not in str(error.value)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (_result("Permute", 0), r"Permute: results for seeds differ: \{0: 2\}"),
        (_result("Average", 0, tasks=(0.1,)), "number of tasks"),
        (_result("Permute", 1, layers=2), "number of layers"),
    ],
)
def test_results_that_do_not_fit_together(second, message):
    with pytest.raises(ValueError, match=message):
        summarise([_result("Permute", 0), second])


@pytest.mark.parametrize(
    "changes",
    [
        {"joint": 87.4},
        {"joint": float("nan")},
        {"tasks": (0.5, float("-inf"))},
        {"tasks": (None, None)},
        {"tasks": ()},
        {"flops": -1.0},
        {"flops": float("inf")},
        {"layers": -1},
    ],
)
def test_impossible_figures(changes):
    with pytest.raises(ValueError, match="Permute, seed 7"):
        _result("Permute", 7, **changes)


def test_pairs_are_averaged_over_those_that_a_task_belongs_to():
    pairs = {(0, 1): (0.2, 0.4), (0, 2): (0.6, 0.8), (1, 2): (0.5, 0.3)}
    results = [
        Result("Permute", seed, 10.0, None, tuple(x + seed / 10 for x in tasks)).among(
            "Pairs", pair, ("A", "B", "C")
        )
        for seed in (0, 1)
        for pair, tasks in pairs.items()
    ]
    (row,) = summarise(results)
    assert row.joint is None
    means = [score.mean for score in row.scores]
    np.testing.assert_allclose(means, [0.45, 0.5, 0.6, np.mean([0.45, 0.5, 0.6])])
    deviation = np.std([0, 0.1], ddof=1)
    np.testing.assert_allclose([score.std for score in row.scores], deviation)


def test_letters():
    letters = [letter(i) for i in (0, 1, 25, 26, 51, 52)]
    assert letters == ["A", "B", "Z", "AA", "AZ", "BA"]


def test_models_are_told_from_methods():
    methods = ["Model A", "Model AB", "Ensemble", "Model average", "Model"]
    assert [is_model(method) for method in methods] == [True, True, False, False, False]
