"""The report of a run: CSV, Markdown and HTML files."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from experiments.fingerprints import versions
from experiments.report.tables import (
    Table,
    csv_text,
    make_tables,
    markdown,
    results_csv,
    task_headings,
)
from experiments.results import ENSEMBLE, Result
from zipjax import pages
from zipjax.files import write_text

EXPLANATIONS = {
    "Model": "One of the trained networks on its own, evaluated on every task.",
    ENSEMBLE: "All the networks side by side: the most confident prediction wins, or, "
    "where all do one task, the mean of their probabilities. It costs as much as all "
    "of them, and is the upper bound of what a merge can reach.",
    "Average": "The mean of the parameters: unit k of one network with unit k of the "
    "others.",
    "Permute": "The units of the other networks are put in the order that correlates "
    "best with the first network's, one to one, and then averaged.",
    "Git Re-Basin": "The units of the other networks are put in the order in which "
    "their weights agree best with the first network's, one to one, and then averaged.",
    "MuDSC-Align": "As Permute, but matched by activations and weights together: their "
    "similarities are added, with a balance that is chosen on training images.",
    "ZipIt!": "Units are merged with those that they correlate with most, across "
    "networks and within one. n/m: n of m layers are zipped, the others are kept for "
    "each network; full: all layers are.",
    "+ refit": "After the merge, layers are solved again by least squares, so that "
    "their outputs are close to the mean of the networks' own. No labels are used.",
    "+ refit to the ensemble": "As + refit, but the last layer is fitted to the "
    "ensemble's predictions.",
    "(searched)": "With the alpha, beta and balance that did best on training images.",
    "sequential": "Stage by stage: units are matched by their activations after the "
    "stages that are already merged.",
    "allotted widths": "Layers are merged to more or fewer units than a network has, "
    "chosen to lose least within a compute budget.",
    "allotted widths + refit": "Allotted widths, then a refit to the ensemble.",
    "as trained": "With the batch statistics of training; all other rows start from "
    "networks whose statistics were measured again on the calibration images.",
    "W. Zip": "As ZipIt!, but by the similarity of the units' weights.",
    "MuDSC-Zip": "As ZipIt!, but by the balanced similarities of MuDSC.",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of the report with its words.

    Attributes:
      figure: the figure.
      caption: what is drawn, set below it.
      reading: a sentence on what to read in it, set below the caption.
      alt: what it shows, for readers who cannot see it.

    Raises:
      ValueError: if one of the words is missing.
    """

    figure: Figure
    caption: str
    reading: str
    alt: str

    def __post_init__(self) -> None:
        words = {k: getattr(self, k) for k in ("caption", "reading", "alt")}
        if missing := [name for name, text in words.items() if not text.strip()]:
            raise ValueError(f"a picture without {missing}: say it in a sentence")


def write_report(
    results: Sequence[Result],
    pictures: Sequence[Picture],
    config_text: str,
    workdir: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
) -> Path:
    """Writes ``results.csv``, ``results.md`` and ``report.html`` into a folder.

    The HTML file holds all that it shows and loads nothing from the network. Each file
    is replaced as a whole or left unchanged.

    Args:
      results: one result per method and seed.
      pictures: the pictures, in the order in which they are shown.
      config_text: the configuration of the run, shown verbatim.
      workdir: the folder, made if it does not exist.
      title: the report's heading.
      notes: paragraphs of text above the table.

    Returns:
      The path of the HTML file.

    Raises:
      ValueError: if there are no results or their seeds or tasks do not match.
      OSError: if a file cannot be written.
    """
    tables = make_tables(results)
    html = _html(results, tables, pictures, config_text, title, notes)
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.csv", results_csv(results))
    write_text(folder / "results.md", "\n".join(map(markdown, tables)))
    write_text(folder / "report.html", html)
    return folder / "report.html"


def write_seconds(
    seconds: Mapping[tuple[str, str], float], workdir: str | Path
) -> None:
    """Writes how long each step took into ``seconds.csv``.

    Args:
      seconds: by step and method, compilation included.
      workdir: the folder, which exists.

    Raises:
      OSError: if the file cannot be written.
    """
    rows = [(*name, f"{value:.2f}") for name, value in seconds.items()]
    text = csv_text(("step", "method", "seconds"), rows)
    write_text(Path(workdir) / "seconds.csv", text)


def _html(
    results: Sequence[Result],
    tables: Sequence[Table],
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
        tables=tables,
        joint=results[0].joint is not None,
        tasks=task_headings(results[0]),
        methods={
            name: text
            for name, text in EXPLANATIONS.items()
            if any(name in method for method in methods)
        },
        pictures=[
            (Markup(pages.svg(p.figure, f"picture-{number}", p.alt)), p)
            for number, p in enumerate(pictures, start=1)
        ],
        style=Markup(pages.STYLE),
        script=Markup(pages.SCRIPT),
        config_text=config_text,
        seeds=sorted({result.seed for result in results}),
        setting=_setting(),
    )


def _setting() -> dict[str, str]:
    """Returns what the figures may depend on: versions and the devices."""
    devices = jax.devices()
    setting = versions("zipjax", "jax", "flax", "numpy")
    setting["Python"] = platform.python_version()
    setting["System"] = f"{platform.system()} {platform.machine()}"
    kind = f"{devices[0].platform}, {devices[0].device_kind}"
    return setting | {"Devices": f"{len(devices)} ({kind})"}
