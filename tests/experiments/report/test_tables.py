"""Tables: sections, marks and units, and what a terminal shows."""

import dataclasses
import io
import itertools

import pytest
from rich.console import Console

from experiments.report.tables import (
    BOUND,
    MERGED,
    MODELS,
    OWN,
    PARTIAL,
    make_table,
    print_table,
)
from experiments.results import Result
from tests.experiments.report.results import results_of


def test_sections_go_from_the_trained_networks_to_the_upper_bound():
    sections = {
        section.title: [method for method, _ in section.rows]
        for section in make_table(results_of()).sections
    }
    assert sections == {
        MODELS: ["Model A", "Model B"],
        MERGED: ["Average", "Permute", "ZipIt! full"],
        PARTIAL: ["ZipIt! 13/20"],
        BOUND: ["Ensemble"],
    }


def test_the_best_are_marked_among_the_networks_merged_into_one():
    marked = {
        method: [cell.mean for cell in cells if cell.best]
        for section in make_table(results_of(seeds=(0,))).sections
        for method, cells in section.rows
    }
    best = {"Average": ["84.0"], "ZipIt! full": ["66.0", "83.0", "81.5"]}
    assert {method: cells for method, cells in marked.items() if cells} == best


def test_one_seed_has_no_plus_minus():
    for section in make_table(results_of(seeds=(4,))).sections:
        for _, cells in section.rows:
            assert not any("±" in str(cell) for cell in cells)


@pytest.mark.parametrize(
    ("flops", "unit", "shown"),
    [
        (2.5e3, "kFLOPs", "2.50"),
        (41.2e6, "MFLOPs", "41.2"),
        (2.72e9, "GFLOPs", "2.72"),
        (123.4e12, "TFLOPs", "123"),
    ],
)
def test_flops_have_a_fitting_unit(flops, unit, shown):
    table = make_table([Result("Permute", 0, flops, 0.5, (0.5,))])
    assert table.columns[1] == unit
    assert str(table.sections[0].rows[0][1][0]) == shown


def test_tasks_are_lettered():
    table = make_table([Result("Permute", 0, 1e6, 0.5, (0.1, 0.2, 0.3, 0.4))])
    assert table.columns[3:-1] == ("Task A", "Task B", "Task C", "Task D")


def test_one_score_is_its_own_average():
    results = [
        Result("Permute", 0, 1e6, None, (score,)).among("Pairs", (0,), ("Accuracy",))
        for score in (0.25, 0.5)
    ]
    table = make_table(results)
    assert table.columns == ("Method", "MFLOPs", "Accuracy")
    ((_, cells),) = table.sections[0].rows
    assert [cell.mean for cell in cells] == ["1.00", "37.5"]
    assert table.caption.startswith("Pairs: the mean over them. ")


def pairs_of_seven():
    """Returns results of all pairs of seven tasks, and what rows should say."""
    names = tuple(f"task {k}, scaled performance" for k in range(7))
    results = []
    for first, second in itertools.combinations(range(7), 2):
        for place, number in enumerate((first, second)):
            own = [None, None]
            own[place] = 1.0
            found = Result(f"Model {'ABCDEFG'[number]}", 0, 2e6, None, tuple(own))
            results.append(found.among("Pairs", (first, second), names))
        scores = {
            "Ensemble": (4e6, (1.0, 1.0)),
            "Average": (3e6, (first / 10, second / 10)),
            "Permute": (3e6, (0.3, 0.01 * first)),
        }
        for method, (flops, own) in scores.items():
            found = Result(method, 0, flops, None, own)
            results.append(found.among("Pairs", (first, second), names))
    return results


def test_many_tasks_are_rows():
    table = make_table(pairs_of_seven())
    assert table.columns == ("Task", OWN, "Average", "Permute", "Ensemble")
    rows = {name: cells for part in table.sections for name, cells in part.rows}
    assert list(rows) == [*(f"task {k}" for k in range(7)), "Average", "MFLOPs"]
    assert [str(cell) for cell in rows["MFLOPs"]] == ["2.00", "3.00", "3.00", "4.00"]
    # Task 6 is second in all its pairs: the mean of 0 to 5 hundredths.
    assert [cell.mean for cell in rows["task 6"]] == ["100.0", "60.0", "2.5", "100.0"]
    assert [cell.mean for cell in rows["task 0"]] == ["100.0", "0.0", "30.0", "100.0"]
    # The mean of 0 to 0.6.
    assert rows["Average"][1].mean == "30.0"
    best = {name: [cell.best for cell in cells] for name, cells in rows.items()}
    assert best["task 6"] == [False, True, False, False]
    assert best["task 0"] == [False, False, True, False]
    assert table.caption.startswith("Scaled performance. Pairs: ")
    assert "Bold: the best merge." in table.caption


def test_merges_of_different_cost_are_not_compared():
    dearer = [
        dataclasses.replace(r, flops=3.5e6) if r.method == "Permute" else r
        for r in pairs_of_seven()
    ]
    table = make_table(dearer)
    cells = [cell for part in table.sections for _, row in part.rows for cell in row]
    assert not any(cell.best for cell in cells)
    assert "Bold" not in table.caption


def test_the_terminal_shows_every_figure():
    console = Console(file=io.StringIO(), record=True, width=100)
    print_table(make_table(results_of()), console)
    text = console.export_text()
    lines = text.splitlines()
    for section in make_table(results_of()).sections:
        for method, cells in section.rows:
            line = next(line for line in lines if line.startswith(f"  {method} "))
            assert all(str(cell) in line for cell in cells)
    assert "2 seeds" in text
