"""What a merge leaves behind: a checkpoint, a manifest, a model card and a report."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zipjax.checkpoints import save
from zipjax.command.costs import Memory
from zipjax.command.inputs import Batches, shown_name
from zipjax.command.matching import Matched
from zipjax.command.scores import Score, score_table
from zipjax.command.settings import Settings
from zipjax.files import write_text
from zipjax.formats.checkpoint import write_checkpoint
from zipjax.markdown import markdown_table
from zipjax.merging.merged import Merged
from zipjax.spec.explanation import explain
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import host_array, path_leaves
from zipjax.types import PyTree
from zipjax.version import __version__

_PACKAGES = (
    *("jax", "jaxlib", "numpy", "scipy", "flax", "orbax-checkpoint"),
    *("dm-haiku", "equinox"),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A merge and all that is told about it.

    Attributes:
      settings: what was asked for.
      arguments: the command line.
      parents: what the manifest says of them.
      spec: their permutation spec.
      merged: the merged model.
      batches: what it was calibrated on.
      held_out: what it was compared on.
      matched: how units were matched, by perm.
      scores: how outputs compare.
      memory: what was foretold.
      steps: the calibrations, in their order.
      warnings: what was warned of.
    """

    settings: Settings
    arguments: Sequence[str]
    parents: Sequence[Mapping[str, Any]]
    spec: PermutationSpec
    merged: Merged
    batches: Batches
    held_out: Batches
    matched: Sequence[Matched]
    scores: Sequence[Score]
    memory: Memory
    steps: Sequence[str]
    warnings: Sequence[str]


def write_outputs(folder: Path, outcome: Outcome, template: PyTree) -> None:
    """Writes everything but the report.

    Args:
      folder: an empty folder.
      outcome: the merge.
      template: with which the models were read.
    """
    _write_parameters(folder, outcome, template)
    write_text(folder / "spec.json", outcome.spec.to_json())
    write_text(folder / "spec.txt", explain(outcome.spec) + "\n")
    manifest = json.dumps(_manifest(outcome), indent=2)
    write_text(folder / "manifest.json", manifest + "\n")
    write_text(folder / "README.md", model_card(outcome))


def model_card(outcome: Outcome) -> str:
    """Returns a model card in Markdown."""
    settings = outcome.settings
    own = ", ".join(f"{k}={v}" for k, v in settings.settings.items())
    matched = [
        [
            x.perm,
            str(x.units),
            str(x.merged),
            "-" if x.correlation is None else f"{x.correlation:.2f}",
        ]
        for x in outcome.matched
    ]
    columns = ["Perm", "units", "merged", "correlation"]
    lines = [
        f"# Merged from {len(settings.models)} models",
        "",
        "Made without training by [zipjax](https://github.com/zipjax/zipjax) "
        f"{__version__}: `{settings.recipe}({own})`"
        + (f", then {', '.join(outcome.steps)}" if outcome.steps else "")
        + ".",
        "",
        f"- Parents: {', '.join(f'`{path}`' for path in settings.models)}",
        f"- Function: `{shown_name(settings.apply)}`",
        f"- Parameters: {', '.join(f'`{x}`' for x in parameter_names(outcome))}",
        f"- Heads: {len(outcome.merged.heads) or 'none, one network'}"
        + (f"; zipped up to {settings.stop_at!r}" if outcome.merged.heads else ""),
        f"- Calibrated on {_examples(outcome.batches)} examples of "
        f"`{shown_name(settings.batches)}`, compared on {_examples(outcome.held_out)}",
        "",
        "## Outputs",
        "",
        "Without labels: how near the outputs are to those of the parents. The error "
        "is relative to the deviation of the reference's outputs; agreement is the "
        "share of positions with the same largest output. Whether the merged model is "
        "any good at a task, only labels can tell.",
        "",
        score_table(outcome.scores),
        "",
        "## Units",
        "",
        "The correlation is the mean over units that were merged with each other.",
        "",
        markdown_table(columns, matched, text_columns=1),
        "",
        "## Reproduce",
        "",
        f"    {shlex.join(['zipjax', *outcome.arguments])}",
        "",
        "[`manifest.json`](manifest.json) has versions, settings, seed and "
        "fingerprints of all inputs.",
        "",
    ]
    if outcome.warnings:
        lines += ["## Warnings", "", *(f"- {text}" for text in outcome.warnings), ""]
    return "\n".join(lines)


def model_entry(path: str, model: PyTree) -> dict[str, Any]:
    """Returns what the manifest says of one parent."""
    leaves = path_leaves(model)
    return {
        "path": str(Path(path).absolute()),
        "fingerprint": array_fingerprint(leaves),
        "parameters": sum(int(np.size(x)) for x in leaves.values()),
    }


def array_fingerprint(leaves: Mapping[str, Any]) -> str:
    """Returns a digest of arrays by name: of names, dtypes, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, leaf in leaves.items():
        array = host_array(leaf)
        digest.update(f"{name} {array.dtype}{list(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def parameter_names(outcome: Outcome) -> list[str]:
    """Returns the names of the files and folders that hold parameters."""
    merged, source = outcome.merged, Path(outcome.settings.models[0])
    suffix = source.suffix if source.is_file() else ""
    if merged.own is not None:
        return ["merged"]
    if merged.heads:
        heads = [f"params_{head}{suffix}" for head in range(len(merged.heads))]
        return [*heads, "merged"]
    return [f"params{suffix}"]


def _write_parameters(folder: Path, outcome: Outcome, template: PyTree) -> None:
    """Writes the merged model in the form of the first parent."""
    merged, settings = outcome.merged, outcome.settings
    for head, name in enumerate(parameter_names(outcome)):
        if name == "merged":
            # The trunk once, with every head: what zipjax.load reads.
            save(folder / name, merged)
            continue
        write_checkpoint(
            folder / name,
            merged.params(head),
            like=settings.models[0],
            template=template,
            select=settings.select,
            step=settings.step,
        )


def _manifest(outcome: Outcome) -> dict[str, Any]:
    settings = outcome.settings
    return {
        "zipjax": __version__,
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "devices": [str(device) for device in jax.devices()],
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "arguments": list(outcome.arguments),
        "settings": _plain(dataclasses.asdict(settings)),
        "steps": list(outcome.steps),
        "models": list(outcome.parents),
        "batches": _batch_entry(outcome.batches),
        "held_out": _batch_entry(outcome.held_out),
        "spec": {
            "file": "spec.json",
            "perms": len(outcome.spec.perms),
            "layers": outcome.spec.layers,
            "cuts": len(outcome.spec.cuts),
            "fingerprint": hashlib.blake2b(
                outcome.spec.to_json().encode(), digest_size=16
            ).hexdigest(),
        },
        "matched": [dataclasses.asdict(x) for x in outcome.matched],
        "scores": [_plain(dataclasses.asdict(score)) for score in outcome.scores],
        "memory": dataclasses.asdict(outcome.memory),
        "warnings": list(outcome.warnings),
        "parameters": parameter_names(outcome),
    }


def _batch_entry(batches: Batches) -> dict[str, Any]:
    arrays = {
        f"{number}/{k}": x
        for number, batch in enumerate(batches)
        for k, x in enumerate(jax.tree_util.tree_leaves(batch))
    }
    return {
        "batches": len(batches),
        "examples": _examples(batches),
        "fingerprint": array_fingerprint({k: np.asarray(x) for k, x in arrays.items()}),
    }


def _examples(batches: Batches) -> int:
    firsts = [jax.tree_util.tree_leaves(batch)[0] for batch in batches]
    return sum(int(np.shape(x)[0]) for x in firsts if np.ndim(x))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it; functions by their names."""
    match value:
        case Mapping():
            return {str(key): _plain(own) for key, own in value.items()}
        case list() | tuple():
            return [_plain(own) for own in value]
        case float():
            return value if math.isfinite(value) else None  # Which JSON lacks.
        case str() | int() | bool() | None:
            return value
    return shown_name(value)
