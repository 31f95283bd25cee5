"""Tables: sections, marks and units, and what a terminal shows."""

import io

import pytest
from rich.console import Console

from experiments.report.tables import (
    BOUND,
    MERGED,
    MODELS,
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
