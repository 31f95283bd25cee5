"""Draws the pictures of "How it works": python docs/tools/pictures.py.

Numbers in them are computed: the similarity is one of two small models, M and U are
what zipjax makes of it.
"""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import zipjax
from zipjax.files import write_text

OUT = Path(__file__).parent.parent / "images"
INK, GREY, WHITE = "#222", "#999", "#fff"
FIRST, SECOND, MERGED = "#1f77b4", "#e07b00", "#6a3d9a"
STREAM, HIDDEN, INNER = "#2a7f62", "#b5446e", "#c29b00"
CELL = 26


def rect(x: float, y: float, w: float, h: float, fill: str, line: str = GREY) -> str:
    """Returns a rectangle; lengths in pixels."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" '
        f'stroke="{line}"/>'
    )


def text(
    x: float, y: float, words: str, fill: str = INK, size: int = 14, at: str = "middle"
) -> str:
    """Returns a line of text that starts, ends or has its middle at x."""
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size}" '
        f'text-anchor="{at}">{html.escape(words)}</text>'
    )


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """Returns an arrow from one point to another."""
    return (
        f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{INK}" '
        'stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Returns an SVG on white with a title for those who do not see it."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-family="sans-serif">',
            f"<title>{html.escape(title)}</title>",
            '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" '
            f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>',
            rect(0, 0, width, height, WHITE, "none"),
            *parts,
            "</svg>\n",
        ]
    )


def table(
    x: float, y: float, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> list[str]:
    """Returns a matrix as cells with numbers; 1 is darkest."""
    parts = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            left, top = x + j * CELL, y + i * CELL
            shade = round(255 - 150 * abs(float(value)))
            parts.append(rect(left, top, CELL, CELL, f"rgb({shade},{shade},255)"))
            if value:
                words = f"{value:.1f}".removeprefix("0").removesuffix(".0")
                parts.append(text(left + CELL / 2, top + 18, words, size=12))
    for i, name in enumerate(rows):
        parts.append(text(x - 6, y + i * CELL + 18, name, ink(name), 13, "end"))
    for j, name in enumerate(columns):
        parts.append(text(x + j * CELL + 13, y - 7, name, ink(name), 13))
    return parts


def ink(unit: str) -> str:
    """Returns the colour of a unit by the letter of its model."""
    return {"a": FIRST, "b": SECOND}.get(unit[0], MERGED)


def matrices() -> str:
    """Returns a similarity, and M and U of the zip that it leads to."""
    units = [f"{model}{k}" for model in "ab" for k in (1, 2, 3, 4)]
    # a1 is like b2, and a2 like b1; a3 and a4 are like each other, as are b3 and b4.
    similarity = np.eye(8)
    likes = {(0, 5): 0.9, (1, 4): 0.8, (2, 3): 0.7, (6, 7): 0.6, (0, 6): 0.2}
    for (i, j), value in likes.items():
        similarity[i, j] = similarity[j, i] = value
    assignment = zipjax.match_zip(similarity, 2, alpha=0.5, beta=1.0)
    merge, unmerge = zipjax.merge_matrices(assignment, 2)
    merged = [f"m{k + 1}" for k in range(len(merge))]
    parts = [
        text(149, 24, "similarity of the units"),
        *table(45, 60, similarity, units, units),
        text(409, 24, "M averages units that are merged"),
        *table(305, 60, merge, merged, units),
        text(626, 24, "U copies them back"),
        *table(574, 60, unmerge, units, merged),
    ]
    return picture(720, 285, "Similarity, merge matrix M and unmerge matrix U", parts)


def kernel(x: float, y: float, name: str, rows: str, columns: str) -> list[str]:
    """Returns a kernel whose axes have the colours of their perms."""
    return [
        rect(x, y, 90, 70, "#f4f4f4"),
        rect(x - 9, y, 9, 70, rows, "none"),
        rect(x, y - 9, 90, 9, columns, "none"),
        text(x + 45, y + 40, name, size=12),
    ]


def spec() -> str:
    """Returns the parameters of an MLP and the perms of their axes."""
    lines = [
        ("first/kernel", GREY, HIDDEN),
        ("second/kernel", HIDDEN, INNER),
        ("head/kernel", INNER, GREY),
    ]
    parts = []
    for k, (name, rows, columns) in enumerate(lines):
        x = 60 + 190 * k
        parts += kernel(x, 60, name, rows, columns)
        parts += [
            rect(x, 150, 90, 14, "#f4f4f4"),
            rect(x, 141, 90, 9, columns, "none"),
            text(x + 45, 182, name.replace("kernel", "bias"), size=12),
        ]
        if k:
            parts.append(arrow(x - 85, 95, x - 22, 95))
    for k, (words, fill) in enumerate(
        (("perm of first", HIDDEN), ("perm of second", INNER), ("no perm", GREY))
    ):
        x = 110 + 170 * k
        parts += [
            rect(x, 212, 14, 14, fill, "none"),
            text(x + 22, 224, words, at="start"),
        ]
    title = "Axes of one colour are reordered together, rows consume, columns produce"
    return picture(600, 245, title, [text(300, 26, title), *parts])


def layers(x: float, ys: Sequence[float], fill: str) -> list[str]:
    """Returns layers on top of one another, with arrows upwards."""
    parts = [rect(x, y, 90, 30, fill) for y in ys]
    return parts + [arrow(x + 45, y, x + 45, y - 18) for y in ys]


def partial() -> str:
    """Returns two models, and their zip up to the second of four layers."""
    ys = [60, 108, 156, 204]
    parts = [
        *layers(30, ys, FIRST),
        *layers(150, ys, SECOND),
        *(text(x, 34, name) for x, name in ((75, "model a"), (195, "model b"))),
        *(text(x, 262, "images") for x in (75, 195, 440)),
        *(arrow(x, 250, x, 236) for x in (75, 195, 440)),
        arrow(265, 150, 325, 150),
        text(295, 138, "zip", size=13),
        *layers(345, ys[:2], FIRST),
        *layers(445, ys[:2], SECOND),
        text(390, 34, "head a"),
        text(490, 34, "head b"),
        *(rect(395, y, 90, 30, MERGED) for y in ys[2:]),
        arrow(440, 204, 440, 188),
        arrow(440, 156, 395, 140),
        arrow(440, 156, 485, 140),
        f'<line x1="330" x2="550" y1="147" y2="147" stroke="{INK}" '
        'stroke-dasharray="5 4"/>',
        text(556, 152, "cut: U copies", size=13, at="start"),
        text(500, 200, "trunk: merged once", size=13, at="start"),
    ]
    return picture(660, 280, "Two models, and a partial zip of them", parts)


def main() -> None:
    """Writes all pictures."""
    for draw in (matrices, spec, partial):
        write_text(OUT / f"{draw.__name__}.svg", draw())


if __name__ == "__main__":
    main()
