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
    AS_TRAINED,
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
OWN = "Own network"
"""Every task's own network, where tables have tasks as rows."""

_MOST_COLUMNS = 6


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
    """The table as every format shows it.

    Attributes:
      columns: their headings; the first is that of the rows' names.
      sections: the rows.
      caption: how to read it.
      unit: the unit of the operations, which a column or a row is named after.
    """

    columns: tuple[str, ...]
    sections: tuple[Section, ...]
    caption: str
    unit: str


def make_tables(results: Iterable[Result]) -> list[Table]:
    """Lays out the results, with a table for every group of them.

    Raises:
      ValueError: if there are no results or their seeds or tasks do not match.
    """
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.group, []).append(result)
    if not found:
        raise ValueError("no results to report")
    return [make_table(own) for own in found.values()]


def make_table(results: Sequence[Result]) -> Table:
    """Lays out one table: sections from the trained networks to the upper bound.

    Tasks are columns, or rows if they are many. The best scores are marked among the
    networks merged into one, or merged in part, if all of these cost the same.

    Args:
      results: of one group.

    Returns:
      The table, every figure formatted.

    Raises:
      ValueError: if there are no results or their seeds or tasks do not match.
    """
    if results and len(results[0].tasks) > _MOST_COLUMNS:
        return _with_tasks_as_rows(results)
    summaries = summarise(results)
    if not summaries:
        raise ValueError("no results to report")
    unit, scale = _flops_unit(max(summary.flops for summary in summaries))
    first, tasks = results[0], task_headings(results[0])
    joint = [] if first.joint is None else ["Joint"]
    average = ["Average"] if len(tasks) > 1 else []
    sections = [
        Section(title, _rows(members, scale, mark=title == MERGED))
        for title, members in _grouped(summaries).items()
        if members
    ]
    best = "Bold: the best of those merged into one network."
    return Table(
        ("Method", unit, *joint, *tasks, *average),
        tuple(sections),
        _caption(first, summaries[0].seeds, best),
        unit,
    )


def _with_tasks_as_rows(results: Sequence[Result]) -> Table:
    """Lays out a table of many tasks, with a column for every method."""
    first, separate = results[0], [r for r in results if is_model(r.method)]
    others = [r for r in results if not is_model(r.method)]
    summaries = summarise([*_own_networks(separate), *others])
    unit, scale = _flops_unit(max(summary.flops for summary in summaries))
    grouped = _grouped(summaries)
    merged = grouped[MERGED] or grouped[PARTIAL]
    same = len({_flops(row.flops / scale) for row in merged}) == 1
    rows = [
        row
        for members in grouped.values()
        for row in _rows(members, scale, mark=members is merged and same)
    ]
    cost, *scores = zip(*(cells for _, cells in rows), strict=True)
    headings, metric = _shared_metric(task_headings(first))
    joint = [] if first.joint is None else ["Joint"]
    *named, average = zip([*joint, *headings, "Average"], scores, strict=True)
    best = "Bold: the best merge." if same else ""
    caption = _caption(first, summaries[0].seeds, best)
    return Table(
        ("Task", *(method for method, _ in rows)),
        (Section("Tasks", tuple(named)), Section("All", (average, (unit, cost)))),
        f"{metric[:1].upper()}{metric[1:]}. {caption}" if metric else caption,
        unit,
    )


def _own_networks(results: Sequence[Result]) -> list[Result]:
    """Returns the trained networks as one method: every task by its own."""
    found = []
    for suffix in ("", AS_TRAINED):
        own = [r for r in results if r.method.endswith(AS_TRAINED) == bool(suffix)]
        for seed in dict.fromkeys(r.seed for r in own):
            here = [r for r in own if r.seed == seed]
            joint = [r.joint for r in here if r.joint is not None]
            tasks = [
                [r.tasks[k] for r in here if r.method == f"Model {letter(k)}{suffix}"]
                for k in range(len(here[0].tasks))
            ]
            found.append(
                dataclasses.replace(
                    here[0],
                    method=f"{OWN}{suffix}",
                    flops=_mean([r.flops for r in here]),
                    joint=_mean(joint) if joint else None,
                    tasks=tuple(_mean(scores) if scores else None for scores in tasks),
                )
            )
    return found


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _shared_metric(headings: Sequence[str]) -> tuple[Sequence[str], str]:
    """Returns headings without the metric that all of them name, and that metric."""
    parts = [heading.rpartition(", ") for heading in headings]
    metric = parts[0][-1]
    if any((comma, own) != (", ", metric) for _, comma, own in parts):
        return headings, ""
    return [name for name, _, _ in parts], metric


def task_headings(result: Result) -> Sequence[str]:
    """Returns the headings of the tasks' columns."""
    named = [f"Task {letter(number)}" for number in range(len(result.tasks))]
    return result.headings or named


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
    grouped = any(r.group for r in results)
    rows = (
        (r.method, r.seed, r.layers, r.flops, r.joint, *r.tasks, r.average)
        + ((r.group,) if grouped else ())
        for r in results
    )
    return csv_text([*columns, *(["group"] if grouped else [])], rows)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns lines in CSV below a line of column names."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def _grouped(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Sorts rows into sections; a merge that costs more than a network is partial."""
    models = [r for r in summaries if is_model(r.method) or r.method.startswith(OWN)]
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
    """Formats rows, and marks the best score of every column if asked to."""
    columns = zip(*(row.scores for row in summaries), strict=True)
    best = [max((_percent(x) for x in c if x), default=None) for c in columns]
    rows = []
    for row in summaries:
        scores = [
            _score(score, len(row.seeds), top if mark else None)
            for score, top in zip(row.scores, best, strict=True)
        ]
        rows.append((row.method, (Cell(_flops(row.flops / scale)), *scores)))
    return tuple(rows)


def _score(score: Mean | None, seeds: int, best: float | None) -> Cell:
    if score is None:
        return Cell("")
    std = f"{100 * score.std:.1f}" if seeds > 1 else ""
    return Cell(f"{100 * score.mean:.1f}", std, _percent(score) == best)


def _percent(score: Mean) -> float:
    return round(100 * score.mean, 1)


def _flops_unit(largest: float) -> tuple[str, float]:
    for unit, scale in (("TFLOPs", 1e12), ("GFLOPs", 1e9), ("MFLOPs", 1e6)):
        if largest >= scale:
            return unit, scale
    return "kFLOPs", 1e3


def _flops(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


def _caption(first: Result, seeds: Sequence[int], best: str) -> str:
    spread = (
        f"mean ± standard deviation over {len(seeds)} seeds"
        if len(seeds) > 1
        else f"seed {seeds[0]}"
    )
    accuracies = not any(", " in heading for heading in first.headings)
    what = "Accuracy in %" if accuracies else "In %"
    group = first.group
    several = len(first.tasks) > 1
    mean = "every task in the mean of its own" if several else "the mean over them"
    merged = f"{group}: {mean}. " if group else ""
    return f"{merged}{what}, {spread}. {best}".rstrip()
