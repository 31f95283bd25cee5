"""The command line: ``zipjax merge|inspect|verify|apply-spec|convert``.

What the user can mend is told in one line, and the exit code is 1; a wrong command line
ends with 2, an interrupted run with 130. Nothing is written unless all of it is.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zipjax.command.merging import run_merge
from zipjax.command.settings import (
    RECIPES,
    parsed_setting,
    parsed_value,
    read_settings,
)
from zipjax.command.terminal import Warnings, tell
from zipjax.command.tools import (
    apply_spec,
    convert,
    inspect_checkpoint,
    inspect_function,
    verify,
)
from zipjax.version import __version__

_PACKAGE = Path(__file__).parent.parent
_OTHERS = ("command", "config", "explain", "spec", "permutations", "like")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      argv: the command line; ``sys.argv[1:]`` if None.

    Returns:
      The exit code.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = vars(_parser().parse_args(arguments))
    flags = {
        k: v for k, v in options.items() if k not in _OTHERS and v not in (None, [])
    }
    if "settings" in flags:
        flags["settings"] = dict(flags["settings"])
    try:
        with Warnings() as warnings:
            _run(options, flags, arguments, warnings)
    except KeyboardInterrupt:
        tell("interrupted: nothing was written")
        return 130
    except (ValueError, OSError, ImportError) as error:
        if not _is_told(error):
            raise
        tell(f"error: {_in_one_line(error)}")
        return 1
    return 0


def _run(
    options: dict[str, Any],
    flags: dict[str, Any],
    arguments: Sequence[str],
    warnings: Warnings,
) -> None:
    config = options.get("config")
    match options["command"]:
        case "merge":
            wanted = ("models", "apply", "batches", "out")
            run_merge(read_settings(config, flags, wanted), arguments, warnings)
        case "inspect" if options["apply"] is None:
            inspect_checkpoint(_of_one(flags))
        case "inspect":
            settings = _of_one(flags, "apply", "batches")
            inspect_function(settings, options["explain"], options["spec"])
        case "verify":
            verify(_of_one(flags, "apply", "batches"), options["spec"])
        case "apply-spec":
            apply_spec(_of_one(flags), options["spec"], options["permutations"])
        case "convert":
            convert(_of_one(flags, "out"), options["like"])


def _of_one(flags: dict[str, Any], *wanted: str) -> Any:
    """Returns the settings of a tool, which one model is enough for."""
    return read_settings(None, flags, wanted)


class _Parser(argparse.ArgumentParser):
    """A parser that takes flags with dashes as well as with the fields' underscores."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        dashed = (x.replace("_", "-") for x in names if x.startswith("--"))
        return super().add_argument(*dict.fromkeys([*names, *dashed]), **options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "zipjax", description="Merges trained JAX networks, and looks at checkpoints."
    )
    parser.add_argument("--version", action="version", version=f"zipjax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_merge(commands.add_parser("merge", help="merge models; writes a folder"))
    tool = commands.add_parser("inspect", help="what a checkpoint or a function holds")
    tool.add_argument("models", nargs=1, metavar="CHECKPOINT")
    _add_network(tool)
    tool.add_argument("--explain", action="store_true", help="all frozen axes, and why")
    tool.add_argument("--spec", help="file to write the spec to, as JSON")
    tool = commands.add_parser("verify", help="check a spec against the function")
    tool.add_argument("models", nargs="+", metavar="CHECKPOINT")
    _add_network(tool)
    tool.add_argument("--spec", help="spec as JSON; the inferred one by default")
    tool.add_argument("--seed", type=int)
    tool = commands.add_parser("apply-spec", help="reorder a checkpoint's units")
    tool.add_argument("models", nargs=1, metavar="CHECKPOINT")
    tool.add_argument("--spec", required=True, help="spec as JSON")
    tool.add_argument("--permutations", help=".npz of new orders; random by default")
    tool.add_argument("--out", help="where to write; by default the spec is checked")
    tool.add_argument("--seed", type=int)
    _add_reading(tool)
    tool = commands.add_parser("convert", help="write a checkpoint in another format")
    tool.add_argument("models", nargs=1, metavar="CHECKPOINT")
    tool.add_argument("out", metavar="TARGET", help=".npz, .safetensors, .msgpack, ...")
    tool.add_argument("--like", help="a checkpoint to write it like")
    _add_reading(tool)
    return parser


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", default=None, metavar="CHECKPOINT")
    parser.add_argument(
        "--config", help="Python file whose get_config() has the fields"
    )
    parser.add_argument("--out", help="folder to write, which does not exist yet")
    _add_network(parser)
    parser.add_argument("--held_out", help="like --batches, for the comparison")
    parser.add_argument("--recipe", help=", ".join(RECIPES))
    parser.add_argument(
        "--set",
        dest="settings",
        type=parsed_setting,
        action="append",
        metavar="NAME=VALUE",
        help="a setting of the recipe, such as alpha=0.3; may be repeated",
    )
    parser.add_argument("--stop_at", type=parsed_value, help="perm or number of a cut")
    parser.add_argument("--weights", help="interpolation weights, as 0.7,0.3")
    parser.add_argument("--carry", type=int, help="model whose counters are kept")
    for name, text in (
        ("reset", "estimate BatchNorm's statistics again"),
        ("repair", "give units their parents' statistics (REPAIR)"),
        ("refit", "fit layers again by least squares"),
        ("verify", "verify the spec before the merge"),
        ("report", "write report.html"),
        ("dry_run", "say what would be done, and stop"),
    ):
        action = argparse.BooleanOptionalAction
        parser.add_argument(f"--{name}", action=action, default=None, help=text)
    parser.add_argument("--positions", type=parsed_value, help="few, all or a number")
    parser.add_argument("--memory_limit", type=int, help="bytes that moments may take")
    parser.add_argument("--seed", type=int)


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--apply", help="package.module:function of (params, *inputs)")
    parser.add_argument(
        "--batches", help="package.module:function, .npy, .npz, or a folder of these"
    )
    parser.add_argument("--inputs", help="names of a batch's inputs, with commas")
    parser.add_argument("--batch_size", type=int, help="examples per batch of an array")
    parser.add_argument("--num_batches", type=int, help="the most that are read")
    _add_reading(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--select", help="part of a checkpoint, such as params")
    parser.add_argument("--step", type=int, help="step of an Orbax manager")
    parser.add_argument(
        "--template", help="package.module:function that returns the parameters' shapes"
    )


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror} ({error.filename})"
    return " ".join(str(error).split())


def _is_told(error: Exception) -> bool:
    """Returns whether an error speaks to the user: not one of a bug further in."""
    if isinstance(error, OSError):
        return True
    raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return raised.is_relative_to(_PACKAGE)
