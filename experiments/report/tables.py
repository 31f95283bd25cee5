"""The table of a run, laid out once and written as Markdown, CSV or to a terminal."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any

import rich.box
import rich.table
from rich.console import Console
from rich.text import Text

from experiments.results import (
    ENSEMBLE,
    Mean,
    Result,
    Summary,
    is_ensemble,
    is_model,
    letter,
    summarise,
)
from zipjax.markdown import markdown_table

MODELS = "Trained networks"
MERGED = "Merged into one network"
PARTIAL = "Merged in part: a shared trunk and a head for each network"
BOUND = "Upper bound"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A formatted figure.

    Attributes:
      mean: the mean over seeds.
      std: the standard deviation; "" for one seed.
      best: whether it is the best of its column.
    """

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


def make_table(results: Iterable[Result]) -> Table:
    """Lays out the results: sections from the trained networks to the upper bound.

    The best accuracies among the networks merged into one are marked: these all cost
    what one network costs, so that they can be compared.

    Args:
      results: one result per method and seed.

    Returns:
      The table, every figure formatted.

    Raises:
      ValueError: if there are no results or their seeds or tasks do not match.
    """
    summaries = summarise(results)
    if not summaries:
        raise ValueError("no results to report")
    unit, scale = _flops_unit(max(summary.flops for summary in summaries))
    tasks = [f"Task {letter(index)}" for index in range(len(summaries[0].tasks))]
    sections = [
        Section(title, _rows(members, scale, mark=title == MERGED))
        for title, members in _grouped(summaries).items()
        if members
    ]
    return Table(
        ("Method", unit, "Joint", *tasks, "Average"),
        tuple(sections),
        _caption(summaries[0].seeds),
    )


def print_table(table: Table, console: Console) -> None:
    """Prints a table to a terminal."""
    printed = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption=table.caption)
    for index, column in enumerate(table.columns):
        printed.add_column(column, justify="right" if index else "left")
    for section in table.sections:
        for method, cells in section.rows:
            styled = [Text(str(cell), "bold" if cell.best else "") for cell in cells]
            printed.add_row(Text(method), *styled)
        printed.add_section()
    console.print(printed)


def markdown(table: Table) -> str:
    """Returns a table in Markdown, with its caption below."""
    rows = [
        [method, *(f"**{cell}**" if cell.best else str(cell) for cell in cells)]
        for section in table.sections
        for method, cells in section.rows
    ]
    written = markdown_table(table.columns, rows, text_columns=1)
    return f"{written}\n\n{table.caption} {ENSEMBLE}: the upper bound.\n"


def results_csv(results: Sequence[Result]) -> str:
    """Returns all figures in CSV, one line per result, to the last digit."""
    tasks = [f"task_{letter(i).lower()}" for i in range(len(results[0].tasks))]
    columns = ["method", "seed", "layers", "flops", "joint", *tasks, "average"]
    rows = (
        (r.method, r.seed, r.layers, r.flops, r.joint, *r.tasks, r.average)
        for r in results
    )
    return csv_text(columns, rows)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns lines in CSV below a line of column names."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def _grouped(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Sorts rows into sections; a merge that costs more than a network is partial."""
    models = [row for row in summaries if is_model(row.method)]
    one_network = max((row.flops for row in models), default=summaries[0].flops)
    groups: dict[str, list[Summary]] = {MODELS: models}
    groups |= {MERGED: [], PARTIAL: [], BOUND: []}
    for row in summaries:
        if is_ensemble(row.method):
            groups[BOUND].append(row)
        elif row not in models:
            full = row.flops <= one_network * (1 + 1e-6)
            groups[MERGED if full else PARTIAL].append(row)
    return groups


def _rows(
    summaries: Sequence[Summary], scale: float, *, mark: bool
) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    """Formats rows, and marks the best accuracy of every column if asked to."""
    columns = zip(*(row.accuracies for row in summaries), strict=True)
    best = [max(round(100 * accuracy.mean, 1) for accuracy in c) for c in columns]
    rows = []
    for row in summaries:
        accuracies = [
            _accuracy(accuracy, len(row.seeds), top if mark else None)
            for accuracy, top in zip(row.accuracies, best, strict=True)
        ]
        rows.append((row.method, (Cell(_flops(row.flops / scale)), *accuracies)))
    return tuple(rows)


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
