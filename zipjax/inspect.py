"""Shows a model's perms in depth order, and where a partial zip can stop.

    python -m zipjax.inspect resnet20 --output resnet20.png
    python -m zipjax.inspect my_package.models:MyLinenModel --shape 1 28 28 1
    python -m zipjax.inspect my_package.models:make_arguments

``make_arguments()`` returns ``(apply_fn, params, inputs)``, the arguments of
:func:`zipjax.infer_spec`, with the inputs as a tuple; arrays may be
``jax.ShapeDtypeStruct``, since nothing is computed.
"""

import argparse
import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from zipjax.files import write_whole
from zipjax.spec.depth import Cut
from zipjax.spec.explanation import explain
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.tracing.infer import infer_spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = 40  # Characters for the depth of a network.


def table(spec: PermutationSpec) -> str:
    """Returns a spec as a table: one row per perm, and a line wherever a zip can stop.

    The columns are the perm's number and name, its units (after the sizes of its
    groups: 4x8 is 8 units in each of 4 groups), the numbers of these groups, the first
    and the last layer that produce it, the number of parameters that it ties, a bar
    along the network's depth, and the perm's tap, if one was found.
    """
    header = ["#", "perm", "units", "in", "layers", "params", "", "tap"]
    rows = [header, *(_perm_row(spec, name) for name in spec.perms)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ends = [0, *(high for _, high in map(spec.spans.__getitem__, spec.perms))]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
        # Before the first perm that ends behind a cut.
        after = [*ends[number + 1 :], math.inf][0]
        here = [cut for cut in spec.cuts if ends[number] <= cut.layers < after]
        lines += [_cut_line(spec, cut) for cut in here]
    return "\n".join(lines)


def _cut_line(spec: PermutationSpec, cut: Cut) -> str:
    name = "" if cut.boundary is None else f", {cut.name}, inside {cut.perm}"
    return f"=== cut {cut.number}: {cut.layers} of {spec.layers} layers{name}"


def _perm_row(spec: PermutationSpec, name: str) -> list[str]:
    numbers = {perm: str(number) for number, perm in enumerate(spec.perms, 1)}
    taps = spec.notes.taps if spec.notes else {}
    low, high = spec.spans[name]
    return [
        numbers[name],
        name,
        _units(spec, name),
        ",".join(numbers.get(group, group) for group in spec.perms[name].groups),
        f"{low}-{high}" if low < high else f"{low}",
        str(len({path for path, _, _ in spec.members(name)})),
        _bar(spec, name),
        taps.get(name, "-"),
    ]


def draw(spec: PermutationSpec) -> "Figure":
    """Draws the perms as bars along the network's depth, and the cuts as lines.

    A bar reaches from the first to the last layer that produces the perm's units. The
    dashed lines cross no bar; the dotted ones are cuts inside residual streams.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = max(len(spec.perms), 1)
    figure = Figure(figsize=(11, 1.4 + 0.2 * rows), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, perm) in enumerate(spec.perms.items()):
        low, high = spec.spans[name]
        color = "tab:orange" if perm.groups else "tab:blue"
        axes.barh(row, high - low + 1, left=low - 0.5, height=0.7, color=color)
    above = axes.get_xaxis_transform()
    for cut in spec.cuts:
        place, color = cut.layers + 0.5, "tab:red"
        style = "--" if cut.boundary is None else ":"
        axes.axvline(place, color=color, linestyle=style, linewidth=1)
        axes.text(place, 1.003, f"{cut.number}", transform=above, ha="center", c=color)
    labels = [f"{x.removeprefix('params/')}  {_units(spec, x)}" for x in spec.perms]
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlim(0.5, spec.layers + 0.5)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title(
        "perms, with their units, and the layers that produce them (orange: units "
        "within groups)\n"
        "red: the cuts, where a partial zip can stop (dotted: inside a stream)",
        fontsize=9,
        pad=16,
    )
    return figure


def _units(spec: PermutationSpec, name: str) -> str:
    counts, perm = {**spec.sizes, **spec.indices}, spec.perms[name]
    return "x".join(str(n) for n in (*(counts[g] for g in perm.groups), perm.size))


def _bar(spec: PermutationSpec, name: str) -> str:
    """Returns a bar such as "..##": a character stands for one layer or more."""
    low, high = spec.spans[name]
    scale = math.ceil(spec.layers / _BAR)
    marked = range((low - 1) // scale, (high - 1) // scale + 1)
    length = math.ceil(spec.layers / scale)
    return "".join("#" if k in marked else "." for k in range(length))


def main(argv: Sequence[str] | None = None) -> None:
    """Traces a model, prints its table and draws its picture.

    Args:
      argv: the command line; ``sys.argv[1:]`` if None.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="resnet20, or module:factory")
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        default=[1, 32, 32, 3],
        help="shape of a Linen model's input",
    )
    parser.add_argument(
        "--explain", action="store_true", help="say why axes are frozen"
    )
    parser.add_argument(
        "--output", type=Path, help="file for a picture, such as perms.png"
    )
    options = parser.parse_args(argv)
    try:
        apply_fn, params, inputs = _arguments(options.model, options.shape)
    except (ImportError, AttributeError) as error:
        parser.error(f"{options.model!r} is not a model: {error}. Pass module:factory")
    spec = infer_spec(apply_fn, params, *inputs)
    sys.stdout.write(table(spec) + "\n")
    if options.explain:
        sys.stdout.write("\n" + explain(spec) + "\n")
    if options.output:
        _save_picture(draw(spec), options.output)


def _arguments(name: str, shape: Sequence[int]) -> tuple[Any, Any, Sequence[Any]]:
    """Returns ``apply_fn``, the parameters' shapes and the inputs of a named model."""
    if name == "resnet20":
        made = importlib.import_module("zipjax.models.resnet").ResNet20(10)
    else:
        module, _, attribute = name.partition(":")
        made = getattr(importlib.import_module(module), attribute)()
    if isinstance(made, tuple):
        return made
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    return made.apply, jax.eval_shape(made.init, jax.random.key(0), x), (x,)


def _save_picture(figure: "Figure", path: Path) -> None:
    kind = path.suffix.removeprefix(".") or "png"
    write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=150))


if __name__ == "__main__":
    main()
