"""All benchmarks, as ratios within one run.

    python -m benchmarks.run --out DIR             # some 20 minutes on two cores
    python -m benchmarks.run --smoke               # for CI: checks counts and exponents
    python -m benchmarks.run --only matching memory
    python -m benchmarks.run --reference DIR       # a checkout of ZipIt!'s code

Writes ``benchmarks.json``, ``benchmarks.md`` and ``benchmarks.png``. Every part runs in
a process of its own; its module in `benchmarks/parts` says what it measures. The smoke
run fails if a count or an exponent is not what it should be; seconds are never checked.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts import reference
from zipjax.files import write_text, write_whole
from zipjax.markdown import markdown_table

PARTS = (
    "moments",
    "matching",
    "merging",
    "mudsc",
    "refit",
    "memory",
    "devices",
    "reference",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts, prints their tables and writes the files.

    Args:
      argv: command line, ``sys.argv[1:]`` if None.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the files")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, with checks")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--reference", help="folder of the reference implementation")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.part:
        module = importlib.import_module(f"benchmarks.parts.{options.part}")
        print(json.dumps(module.measure(options.smoke)))
        return
    if options.reference:
        os.environ[reference.DIRECTORY] = str(Path(options.reference).absolute())
    results: dict[str, Any] = {"machine": _machine()}
    for name in options.only:
        results[name] = _measured(name, smoke=options.smoke)
        print(f"## {name}\n\n{table(results[name])}\n", flush=True)
    if options.smoke:
        check(results)
    if options.out:
        write(results, options.out)


def table(figures: Mapping[str, Any]) -> str:
    """Returns a part's figures as a Markdown table.

    Args:
      figures: numbers, or mappings of them, by name.
    """
    rows = [
        (group, name, f"{value:,.3g}")
        for group, inside in figures.items()
        for name, value in (
            inside.items() if isinstance(inside, Mapping) else [("", inside)]
        )
    ]
    return (
        markdown_table(("of", "figure", "value"), rows, text_columns=2)
        if rows
        else "(not run)"
    )


def check(results: Mapping[str, Any]) -> None:
    """Checks what does not depend on the machine.

    Args:
      results: figures by part.

    Raises:
      SystemExit: naming the figures that are wrong.
    """
    wrong = []
    for name, found in results.get("matching", {}).items():
        if found["exponent of n"] > 3.5:
            wrong.append(f"matching, {name}: grows by {found['exponent of n']:.1f}")
    for name, found in results.get("merging", {}).items():
        again = [k for k in found if k.endswith("again, compilations") and found[k]]
        wrong += [f"merging, {name}: {key} = {found[key]}" for key in again]
    for name, found in results.get("mudsc", {}).items():
        if found["compilations"] > 4 * found["widths"]:
            wrong.append(f"mudsc, {name}: {found['compilations']} compilations")
    for name, found in results.get("memory", {}).items():
        if found["allotted"] > 1.1 * found["predicted"]:
            wrong.append(f"memory, {name}: {found}")
    if wrong:
        raise SystemExit("\n".join(wrong))


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Writes the figures, their tables and a picture.

    Args:
      results: figures by part.
      folder: where to; made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "benchmarks.json", json.dumps(results, indent=1) + "\n")
    parts = {name: own for name, own in results.items() if name != "machine"}
    texts = [f"## {name}\n\n{table(own)}\n" for name, own in parts.items()]
    write_text(folder / "benchmarks.md", "\n".join([results["machine"], "", *texts]))
    write_whole(folder / "benchmarks.png", lambda path: _draw(results, path))


def _measured(name: str, *, smoke: bool) -> Any:
    command = [sys.executable, "-m", "benchmarks.run", "--part", name]
    # The threads of OpenBLAS take CPU seconds while they wait for work.
    environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(
        command + ["--smoke"] * smoke,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {sys.version[:6]}"


def _draw(results: Mapping[str, Any], path: Path) -> None:
    """Draws ratios to forward passes, and how matching grows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, (name, own) in enumerate(results.get("moments", {}).items()):
        ratios = {k: v for k, v in own.items() if "seconds" not in k}
        for k, (title, value) in enumerate(ratios.items()):
            label = title if place == 0 else None
            left.bar(place + 0.25 * (k - 1), value, 0.22, color=f"C{k}", label=label)
        left.text(place, -0.25, name, ha="center", va="top")
    left.axhline(1, color="black", linewidth=0.8)
    left.set(xticks=[], ylabel="CPU time / forward passes", title="Moments")
    left.legend(frameon=False)
    widths: list[int] = []
    for name, own in results.get("matching", {}).items():
        points = {k: v for k, v in own.items() if k.startswith("n = ")}
        widths = [int(k.removeprefix("n = ").replace(",", "")) for k in points]
        right.loglog(widths, list(points.values()), marker="o", label=name)
    right.set(xlabel="units of each of two models", ylabel="CPU seconds")
    right.set_xticks(widths, [f"{n:,}" for n in widths])
    right.minorticks_off()
    right.set_title("Matching")
    right.legend(frameon=False)
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
