"""The report: a page with pictures of a merge, all in one file."""

import html
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zipjax import pages
from zipjax.command.matching import Matched
from zipjax.command.outputs import Outcome, model_card
from zipjax.command.scores import Score
from zipjax.files import write_text
from zipjax.inspect import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = (
    "td,th{text-align:left}"
    # Wider than a phone: as small as that, the names of perms could not be read.
    "figure{overflow-x:auto}figure svg{min-width:38rem;max-width:none}"
    "figcaption{position:sticky;left:0}"
)


class _Picture(NamedTuple):
    """A figure of the page, if there is one to draw, with its words."""

    title: str
    figure: "Figure | None"
    reading: str


def write_page(path: Path, outcome: Outcome) -> None:
    """Writes the page.

    Raises:
      ImportError: if matplotlib is missing, with the command that installs it.
    """
    pictures = (
        _Picture(
            "How near the outputs are",
            _agreement(outcome.scores),
            "Bars that end at 1 are outputs that agree: where the merged model's are "
            "much shorter than 1, the merge has lost something of that model.",
        ),
        _Picture(
            "How alike the merged units are",
            _correlations(outcome.matched),
            "Short bars are perms whose merged units differ: where outputs are far "
            "apart, look there first, or stop the zip before them.",
        ),
        _Picture(
            "Perms and cuts",
            draw(outcome.spec),
            "A bar that crosses many layers is a residual stream, whose units are "
            "merged alike in all of these; a zip can stop at the red lines.",
        ),
    )
    drawn = "".join(
        _figure(picture.title, picture.figure, picture.reading, f"picture-{number}")
        for number, picture in enumerate(pictures, start=1)
        if picture.figure is not None
    )
    title = f"Merged from {len(outcome.settings.models)} models"
    write_text(
        path,
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{pages.STYLE}{_STYLE}</style></head>"
        f"<body>{_as_html(model_card(outcome))}{drawn}"
        f"<script>{pages.SCRIPT}</script></body></html>\n",
    )


def _figure(title: str, figure: "Figure", reading: str, name: str) -> str:
    return (
        f"<h2>{html.escape(title)}</h2>"
        f'<figure tabindex="0">{pages.svg(figure, name, title)}'
        f'<figcaption><p class="reading">{html.escape(reading)}</p></figcaption>'
        "</figure>"
    )


def _agreement(scores: Sequence[Score]) -> "Figure":
    """Draws the correlations of outputs, and their agreement."""
    figure, axes = _bars(len(scores))
    names = [f"{score.network} with {score.reference}" for score in scores]
    for row, score in enumerate(scores):
        axes.barh(row - 0.2, score.correlation, 0.36, color="tab:blue")
        if score.agreement is not None:
            axes.barh(row + 0.2, score.agreement, 0.36, color="tab:orange")
    axes.set_yticks(range(len(names)), names)
    least = min((s.correlation for s in scores if s.correlation < 0), default=0.0)
    axes.set_xlim(least - 0.02, 1.02)
    axes.set_xlabel("correlation of outputs (blue); same largest output (orange)")
    return figure


def _correlations(matched: Sequence[Matched]) -> "Figure | None":
    """Draws the mean correlation of units that were merged, by perm."""
    known = [(x.perm, x.correlation) for x in matched if x.correlation is not None]
    if not known:
        return None
    figure, axes = _bars(len(known))
    axes.barh(range(len(known)), [value for _, value in known], color="tab:blue")
    axes.set_yticks(range(len(known)), [perm for perm, _ in known], fontsize=8)
    axes.set_xlabel("mean correlation of units that were merged with each other")
    return figure


def _bars(rows: int) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.3 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylim(rows - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _as_html(markdown: str) -> str:
    """Returns a model card's headings, paragraphs, lists and tables as HTML."""
    blocks = itertools.groupby(markdown.splitlines(), key=_kind)
    return "".join(_block(kind, list(lines)) for kind, lines in blocks)


def _kind(line: str) -> str:
    """Returns what a line is part of."""
    for start, kind in (("|", "table"), ("#", "heading"), ("- ", "list"), (" ", "pre")):
        if line.startswith(start):
            return kind
    return "text" if line else ""


def _block(kind: str, lines: list[str]) -> str:
    match kind:
        case "table":
            return _table(lines)
        case "heading":
            level = len(lines[0]) - len(lines[0].lstrip("#"))
            return f"<h{level}>{_inline(lines[0].lstrip('# '))}</h{level}>"
        case "list":
            items = "".join(f"<li>{_inline(line[2:])}</li>" for line in lines)
            return f"<ul>{items}</ul>"
        case "pre":
            code = "\n".join(html.escape(line.strip()) for line in lines)
            return f"<pre>{code}</pre>"
    return f"<p>{_inline(' '.join(lines))}</p>" if kind else ""


def _inline(text: str) -> str:
    """Returns a line with its code and links."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    # Pages of the web, and files beside this one.
    link = r"\[([^\]]+)\]\((https://[^)]+|[\w.]+)\)"
    return re.sub(link, r'<a href="\2">\1</a>', text)


def _table(rows: Sequence[str]) -> str:
    """Returns a table; its second line aligns the columns."""
    cells = [
        [_inline(cell.strip()) for cell in row.strip("|").split("|")] for row in rows
    ]
    head = "".join(f'<th scope="col">{cell}</th>' for cell in cells[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in cells[2:]
    )
    return (
        '<div class="wide" role="region" aria-label="Table" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
