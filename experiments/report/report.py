"""The report of a run: a table in the terminal, and CSV, Markdown and HTML files."""

import base64
import csv
import dataclasses
import importlib.metadata
import io
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jinja2
import rich.box
import rich.table
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from experiments.results import (
    ENSEMBLE,
    Mean,
    Result,
    Row,
    is_ensemble,
    is_model,
    letter,
    summarise,
    write_whole,
)

MODELS = "Trained networks"
MERGED = "Merged into one network"
PARTIAL = "Merged in part: a shared trunk and a head for each network"
BOUND = "Upper bound"

METHODS = {
    "Model": "One of the trained networks on its own, asked about every task.",
    ENSEMBLE: "All networks side by side, the surest answer wins. It costs as much as "
    "all of them and is the upper bound of what a merge can reach.",
    "Average": "The mean of the parameters, unit k of one network with unit k of the "
    "others.",
    "Permute": "The units of the other networks are put in the order that correlates "
    "best with the first network's, one to one, and then averaged.",
    "Git Re-Basin": "The units of the other networks are put in the order in which "
    "their weights agree best with the first network's, one to one, and then averaged.",
    "MuDSC-Align": "As Permute, but activations and weights both have a say: their "
    "similarities are added up, with a balance that was chosen on training images.",
    "ZipIt!": "Units are merged with those they correlate with most, across networks "
    "and within one. n/m: n of m layers are zipped, the others are kept for each "
    "network; full: all layers are.",
    "+ refit": "Layers are solved anew by least squares, so that they make of their "
    "inputs the mean of what the networks make of theirs; at the output also what the "
    "ensemble would answer.",
    "(searched)": "With the alpha, beta and balance that did best on training images.",
    "sequential": "Stage by stage, units are matched by what they do behind the "
    "stages that are merged already.",
    "allotted widths": "Layers are merged to more or fewer units than a network has, "
    "so that least is lost at the same cost, or at a given one.",
    "as trained": "With the batch statistics of training; all other rows start from "
    "networks whose statistics were measured anew on the calibration images.",
    "W. Zip": "As ZipIt!, but by the similarity of the units' weights.",
    "MuDSC-Zip": "As ZipIt!, but by the balanced similarities of MuDSC.",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of the report with its words.

    Attributes:
      figure: the figure.
      caption: one or two sentences on how to read it, set below it.
      alt: what it shows, for readers who do not see it.
    """

    figure: Figure
    caption: str
    alt: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """A formatted figure: its mean, the deviation ("" for one seed), if it is best."""

    mean: str
    std: str = ""
    best: bool = False

    def __str__(self) -> str:
        return f"{self.mean} ± {self.std}" if self.std else self.mean


@dataclasses.dataclass(frozen=True)
class Section:
    """Rows of the table that belong together: (method, cells)."""

    title: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """The table as every format shows it."""

    columns: tuple[str, ...]
    sections: tuple[Section, ...]
    caption: str


def write_report(
    results: Sequence[Result],
    figures: Sequence[Picture],
    config_text: str,
    workdir: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
) -> Path:
    """Writes ``results.csv``, ``results.md`` and ``report.html`` into a folder.

    The HTML file holds all it shows and asks the network for nothing. Each file is
    replaced as a whole or left as it was.

    Args:
      results: one result a method and seed.
      figures: the pictures, in the order in which they are shown.
      config_text: the configuration that ran, shown as it is.
      workdir: the folder, made if it is not there.
      title: the report's heading.
      notes: paragraphs of text above the table.

    Returns:
      The HTML file.

    Raises:
      ValueError: if there are no results or their seeds or tasks do not match.
      OSError: if a file cannot be written.
    """
    table = make_table(results)
    html = _html(results, table, figures, config_text, title, notes)
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "results.csv", _csv(results))
    write_whole(folder / "results.md", _markdown(table))
    write_whole(folder / "report.html", html)
    return folder / "report.html"


def write_seconds(
    seconds: Mapping[tuple[str, str], float], workdir: str | Path
) -> None:
    """Writes how long steps took into ``seconds.csv``.

    Args:
      seconds: by step and method, with compilation.
      workdir: the folder, which exists.

    Raises:
      OSError: if the file cannot be written.
    """
    rows = [(*name, f"{value:.2f}") for name, value in seconds.items()]
    write_whole(
        Path(workdir) / "seconds.csv", _lines(("step", "method", "seconds"), rows)
    )


def print_table(results: Sequence[Result], console: Console) -> None:
    """Prints the table of the report to a terminal.

    Args:
      results: one result a method and seed.
      console: where it goes.

    Raises:
      ValueError: if there are no results or their seeds or tasks do not match.
    """
    table = make_table(results)
    printed = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption=table.caption)
    for index, column in enumerate(table.columns):
        printed.add_column(column, justify="right" if index else "left")
    for section in table.sections:
        for method, cells in section.rows:
            styled = [Text(str(cell), "bold" if cell.best else "") for cell in cells]
            printed.add_row(Text(method), *styled)
        printed.add_section()
    console.print(printed)


def make_table(results: Iterable[Result]) -> Table:
    """Lays out the results: sections from the trained networks to the upper bound.

    The best accuracies among the networks merged into one are marked: these cost what
    one network costs, so that they can be compared.

    Args:
      results: one result a method and seed.

    Returns:
      The table, every figure formatted.

    Raises:
      ValueError: if there are no results or their seeds or tasks do not match.
    """
    rows = summarise(results)
    if not rows:
        raise ValueError("no results to report")
    unit, scale = _flops_unit(max(row.flops for row in rows))
    tasks = [f"Task {letter(index)}" for index in range(len(rows[0].tasks))]
    sections = [
        Section(title, _cells(members, scale, mark=title == MERGED))
        for title, members in _grouped(rows).items()
        if members
    ]
    return Table(
        ("Method", unit, "Joint", *tasks, "Average"),
        tuple(sections),
        _caption(rows[0].seeds),
    )


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Sorts rows into sections; what costs more than one network is no full merge."""
    models = [row for row in rows if is_model(row.method)]
    one_network = max((row.flops for row in models), default=rows[0].flops)
    groups: dict[str, list[Row]] = {MODELS: models, MERGED: [], PARTIAL: [], BOUND: []}
    for row in rows:
        if is_ensemble(row.method):
            groups[BOUND].append(row)
        elif row not in models:
            full = row.flops <= one_network * (1 + 1e-6)
            groups[MERGED if full else PARTIAL].append(row)
    return groups


def _cells(rows: Sequence[Row], scale: float, *, mark: bool) -> tuple:
    columns = zip(*(row.accuracies for row in rows), strict=True)
    best = [max(round(100 * accuracy.mean, 1) for accuracy in c) for c in columns]
    return tuple(
        (
            row.method,
            (
                Cell(_flops(row.flops / scale)),
                *(
                    _accuracy(accuracy, len(row.seeds), top if mark else None)
                    for accuracy, top in zip(row.accuracies, best, strict=True)
                ),
            ),
        )
        for row in rows
    )


def _accuracy(accuracy: Mean, seeds: int, best: float | None) -> Cell:
    std = f"{100 * accuracy.std:.1f}" if seeds > 1 else ""
    mean = 100 * accuracy.mean
    return Cell(f"{mean:.1f}", std, round(mean, 1) == best)


def _flops_unit(largest: float) -> tuple[str, float]:
    for unit, scale in (("TFLOPs", 1e12), ("GFLOPs", 1e9), ("MFLOPs", 1e6)):
        if largest >= scale:
            return unit, scale
    return "kFLOPs", 1e3


def _flops(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


def _caption(seeds: Sequence[int]) -> str:
    spread = (
        f"mean ± standard deviation over {len(seeds)} seeds"
        if len(seeds) > 1
        else f"seed {seeds[0]}"
    )
    return f"Accuracy in %, {spread}. Bold: the best of those merged into one network."


def _csv(results: Sequence[Result]) -> str:
    tasks = [f"task_{letter(i).lower()}" for i in range(len(results[0].tasks))]
    columns = ["method", "seed", "layers", "flops", "joint", *tasks, "average"]
    return _lines(
        columns,
        (
            (r.method, r.seed, r.layers, r.flops, r.joint, *r.tasks, r.average)
            for r in results
        ),
    )


def _lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _markdown(table: Table) -> str:
    lines = [
        _markdown_line(table.columns),
        _markdown_line(["---"] + ["---:"] * (len(table.columns) - 1)),
    ]
    for section in table.sections:
        for method, cells in section.rows:
            figures = [f"**{cell}**" if cell.best else str(cell) for cell in cells]
            lines.append(_markdown_line([method.replace("|", "\\|"), *figures]))
    bound = f" {ENSEMBLE}: the upper bound."
    return "\n".join([*lines, "", table.caption + bound, ""])


def _markdown_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _html(
    results: Sequence[Result],
    table: Table,
    pictures: Sequence[Picture],
    config_text: str,
    title: str,
    notes: Sequence[str],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    methods = {result.method for result in results}
    return environment.get_template("report.html").render(
        title=title,
        notes=notes,
        table=table,
        methods={
            name: text
            for name, text in METHODS.items()
            if any(name in method for method in methods)
        },
        pictures=[(_data_uri(p.figure), p.caption, p.alt) for p in pictures],
        config_text=config_text,
        seeds=sorted({result.seed for result in results}),
        setting=_setting(),
    )


def _data_uri(figure: Figure) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, facecolor="white")
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"


def _setting() -> dict[str, str]:
    """Returns what the figures may depend on: versions and the devices."""
    devices = jax.devices()
    setting = {name: _version(name) for name in ("zipjax", "jax", "flax", "numpy")}
    setting["Python"] = platform.python_version()
    setting["System"] = f"{platform.system()} {platform.machine()}"
    kind = f"{devices[0].platform}, {devices[0].device_kind}"
    return setting | {"Devices": f"{len(devices)} ({kind})"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
