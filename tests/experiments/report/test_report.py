"""The report: every format shows the same figures, and the HTML stands alone."""

import csv
import io
import os
import re
from html.parser import HTMLParser

import jax
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments.report.report import (
    BOUND,
    MERGED,
    MODELS,
    PARTIAL,
    Picture,
    make_table,
    print_table,
    write_report,
)
from experiments.results import Result

FIGURES = {  # method: layers, FLOPs in millions, joint, tasks
    "Model A": (None, 41.0, 0.48, (0.96, 0.20)),
    "Model B": (None, 41.0, 0.47, (0.22, 0.95)),
    "Ensemble": (None, 82.0, 0.874, (0.96, 0.95)),
    "Average": (None, 41.0, 0.13, (0.25, 0.84)),
    "Permute": (None, 41.0, 0.55, (0.72, 0.71)),
    "ZipIt! full": (20, 41.0, 0.66, (0.83, 0.80)),
    "ZipIt! 13/20": (13, 55.0, 0.83, (0.93, 0.92)),
}
CONFIG = 'name = "digits"\n<script>alert("config")</script>\n'


def _results(seeds=(0, 1)) -> list[Result]:
    return [
        Result(
            method,
            seed,
            1e6 * flops,
            joint + seed / 1000,
            tuple(task - seed / 500 for task in tasks),
            layers,
        )
        for seed in seeds
        for method, (layers, flops, joint, tasks) in FIGURES.items()
    ]


def _picture() -> Picture:
    figure = Figure(figsize=(1, 1))
    figure.add_subplot()
    return Picture(figure, "A <caption> & more", 'An "alternative" text')


def _write(folder, results=None, **changes):
    options = {"title": "Digits <5 + 5>", "notes": ["Split & merged"]} | changes
    return write_report(results or _results(), [_picture()], CONFIG, folder, **options)


class _Page(HTMLParser):
    """Collects the tags with their attributes and the texts of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_csv_holds_the_results_to_the_last_digit(tmp_path):
    results = _results()
    _write(tmp_path, results)
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    read = [
        Result(
            line["method"],
            int(line["seed"]),
            float(line["flops"]),
            float(line["joint"]),
            (float(line["task_a"]), float(line["task_b"])),
            int(line["layers"]) if line["layers"] else None,
        )
        for line in lines
    ]
    assert read == results
    assert [float(line["average"]) for line in lines] == [r.average for r in results]


def test_the_markdown_has_a_row_a_method(tmp_path):
    _write(tmp_path)
    lines = (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert rows[0] == ["Method", "MFLOPs", "Joint", "Task A", "Task B", "Average"]
    assert {len(row) for row in rows} == {6}
    assert sorted(row[0] for row in rows[2:]) == sorted(FIGURES)
    permute = next(row for row in rows if row[0] == "Permute")
    assert permute[1:4] == ["41.0", "55.0 ± 0.1", "71.9 ± 0.1"]


def test_sections_go_from_the_trained_networks_to_the_upper_bound():
    sections = {
        section.title: [method for method, _ in section.rows]
        for section in make_table(_results()).sections
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
        for section in make_table(_results(seeds=(0,))).sections
        for method, cells in section.rows
    }
    best = {"Average": ["84.0"], "ZipIt! full": ["66.0", "83.0", "81.5"]}
    assert {method: cells for method, cells in marked.items() if cells} == best


def test_one_seed_has_no_plus_minus():
    for section in make_table(_results(seeds=(4,))).sections:
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
    print_table(_results(), console)
    text = console.export_text()
    lines = text.splitlines()
    for section in make_table(_results()).sections:
        for method, cells in section.rows:
            line = next(line for line in lines if line.startswith(f"  {method} "))
            assert all(str(cell) in line for cell in cells)
    assert "2 seeds" in text


def test_the_page_asks_the_network_for_nothing(tmp_path):
    text = _write(tmp_path).read_text(encoding="utf-8")
    page = _Page(text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})
    sources = [a["src"] for _, a in page.tags if "src" in a]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert not [a for _, a in page.tags if "href" in a or "srcset" in a]


def test_the_page_escapes_what_it_is_given(tmp_path):
    results = [Result("<b>own</b>", 0, 1e6, 0.5, (0.5,))]
    text = _write(tmp_path, results).read_text(encoding="utf-8")
    page = _Page(text)
    assert CONFIG.strip() in "".join(page.texts)
    assert {"Digits <5 + 5>", "Split & merged", "<b>own</b>"} <= set(page.texts)
    assert "A <caption> & more" in page.texts
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == 'An "alternative" text'


def test_the_page_says_how_it_was_run(tmp_path):
    text = _write(tmp_path).read_text(encoding="utf-8")
    page = _Page(text)
    assert jax.__version__ in page.texts
    assert "0, 1" in page.texts
    assert any(jax.devices()[0].device_kind in text for text in page.texts)
    for explained in ("Joint", "Task A, B", "Permute", "ZipIt!", "Ensemble"):
        assert explained in page.texts


def test_the_page_explains_no_method_that_did_not_run(tmp_path):
    results = [Result("Permute", 0, 1e6, 0.5, (0.5,))]
    assert "ZipIt!" not in _write(tmp_path, results).read_text(encoding="utf-8")


def test_the_same_run_writes_the_same_files(tmp_path):
    first = {f.name: f.read_bytes() for f in _write(tmp_path / "a").parent.iterdir()}
    again = {f.name: f.read_bytes() for f in _write(tmp_path / "b").parent.iterdir()}
    assert first == again
    assert sorted(first) == ["report.html", "results.csv", "results.md"]


def test_an_interrupted_report_leaves_the_old_one(tmp_path, monkeypatch):
    path = _write(tmp_path)
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(source, target):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        _write(path.parent, _results(seeds=(0, 1, 2)))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_bad_results_touch_no_file(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        write_report([], [], CONFIG, tmp_path / "new", title="Nothing")
    with pytest.raises(ValueError, match=r"Model A lacks \[9\]"):
        _write(
            tmp_path / "new", [*_results(), Result("Permute", 9, 1.0, 0.5, (0.5, 1.0))]
        )
    assert not (tmp_path / "new").exists()
