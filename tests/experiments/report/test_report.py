"""The report: every format shows the same figures, and the HTML stands alone."""

import csv
import os
import re
from html.parser import HTMLParser

import jax
import pytest
from matplotlib.figure import Figure

from experiments.report.report import Picture, write_report
from experiments.results import Result
from tests.experiments.report.results import FIGURES, results_of
from zipjax import pages

CONFIG = 'name = "digits"\n<script>alert("config")</script>\n'


def _picture() -> Picture:
    figure = Figure(figsize=(1, 1))
    figure.add_subplot()
    alt = 'An "alternative" text'
    return Picture(figure, "A <caption> & more", "Read <this>.", alt)


def _write(folder, results=None, **changes):
    options = {"title": "Digits <5 + 5>", "notes": ["Split & merged"]} | changes
    return write_report(
        results or results_of(), [_picture()] * 2, CONFIG, folder, **options
    )


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
    results = results_of()
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


def test_the_page_asks_the_network_for_nothing(tmp_path):
    text = _write(tmp_path).read_text(encoding="utf-8")
    page = _Page(text)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "img"})
    assert not [a for _, a in page.tags if "src" in a or "srcset" in a]
    # Every address is that of an identifier of the page, and these are no two alike.
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    named = re.findall(r'(?:href="|url\()([^")]*)', text)
    assert {name[:1] for name in named} == {"#"}
    assert {name[1:] for name in named} <= set(ids)


def test_the_page_links_to_the_settings(tmp_path):
    text = _write(tmp_path).read_text(encoding="utf-8")
    assert 'href="#settings"' in text
    _, _, below = text.partition('id="settings"')
    assert "name = &#34;digits&#34;" in below


def test_every_row_has_a_cell_to_sort_by(tmp_path):
    """The script sorts rows of as many cells as there are headings, body by body."""
    text = _write(tmp_path).read_text(encoding="utf-8")
    (table,) = re.findall(r"<table>(.*?)</table>", text, re.DOTALL)
    head, *bodies = re.split("<tbody>", table)
    columns = len(re.findall('<th scope="col"', head))
    assert (columns, len(bodies)) == (6, 4)
    lengths = [
        [len(re.findall(r"<t[hd]\b", row)) for row in body.split("<tr>")[1:]]
        for body in bodies
    ]
    assert [own[0] for own in lengths] == [1] * 4
    assert {length for own in lengths for length in own[1:]} == {columns}
    assert pages.SCRIPT in text


def test_every_picture_says_what_to_read_in_it(tmp_path):
    text = _write(tmp_path).read_text(encoding="utf-8")
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(figures) == 2
    for figure in figures:
        assert '<p class="reading">Read &lt;this&gt;.</p>' in figure
    words = {"caption": "What.", "reading": "Read.", "alt": "It."}
    for name in words:
        with pytest.raises(ValueError, match=rf"without \['{name}'\]"):
            Picture(Figure(), **words | {name: " "})


def test_the_page_escapes_what_it_is_given(tmp_path):
    results = [Result("<b>own</b>", 0, 1e6, 0.5, (0.5,))]
    text = _write(tmp_path, results).read_text(encoding="utf-8")
    page = _Page(text)
    assert CONFIG.strip() in "".join(page.texts)
    assert {"Digits <5 + 5>", "Split & merged", "<b>own</b>"} <= set(page.texts)
    assert "A <caption> & more" in page.texts
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert [own["aria-label"] for own in drawn] == ['An "alternative" text'] * 2
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_the_page_says_how_it_was_run(tmp_path):
    text = _write(tmp_path).read_text(encoding="utf-8")
    page = _Page(text)
    assert jax.__version__ in page.texts
    assert "0, 1" in page.texts
    assert any(jax.devices()[0].device_kind in text for text in page.texts)
    for explained in ("Joint", "Task A; Task B", "Permute", "ZipIt!", "Ensemble"):
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
        _write(path.parent, results_of(seeds=(0, 1, 2)))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_bad_results_touch_no_file(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        write_report([], [], CONFIG, tmp_path / "new", title="Nothing")
    with pytest.raises(ValueError, match=r"Model A lacks \[9\]"):
        _write(
            tmp_path / "new",
            [*results_of(), Result("Permute", 9, 1.0, 0.5, (0.5, 1.0))],
        )
    assert not (tmp_path / "new").exists()
