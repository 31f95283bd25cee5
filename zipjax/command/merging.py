"""``zipjax merge``: from checkpoints, a function and batches to a merged model."""

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zipjax.calibration.batch_stats import reset_batch_stats
from zipjax.calibration.refit import refit
from zipjax.calibration.repair import repair
from zipjax.command.costs import needed_memory
from zipjax.command.inputs import (
    Batches,
    read_batches,
    read_function,
    read_models,
    read_template,
)
from zipjax.command.matching import matched_units
from zipjax.command.outputs import Outcome, model_entry, write_outputs
from zipjax.command.report import write_page
from zipjax.command.scores import compare, score_table
from zipjax.command.settings import Settings
from zipjax.command.terminal import Progress, Warnings, megabytes, say
from zipjax.files import check_free, write_whole
from zipjax.inspect import table
from zipjax.merging.assembling import merge_units
from zipjax.merging.merged import Merged
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.spec.verify import verify_spec
from zipjax.tracing.infer import infer_spec
from zipjax.trees import collections, path_leaves, running_stats
from zipjax.types import ApplyFn, PyTree

_REASONS = 12  # Reasons that are listed; spec.txt has every frozen axis.


def run_merge(settings: Settings, arguments: Sequence[str], warnings: Warnings) -> None:
    """Merges, and writes ``settings.out`` once everything is done.

    Args:
      settings: what is asked for.
      arguments: the command line, for the manifest.
      warnings: what is warned of on the way.

    Raises:
      ValueError: if what was asked for does not fit together.
      OSError: if files cannot be read or written.
    """
    target = Path(str(settings.out)).absolute()
    check_free(target)
    if settings.report and importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "report.html needs matplotlib: pip install 'zipjax[command]', or pass "
            "--no-report"
        )
    recipe, apply_fn = settings.make_recipe(), read_function(settings)
    template = read_template(settings)
    batches, held_out = read_batches(settings)
    models = read_models(settings, template)
    spec = inferred_spec(apply_fn, models[0], batches[0], settings.select)
    _tell_models(settings, models)
    tell_spec(spec)
    _tell_batches(batches, held_out)
    memory = needed_memory(models, spec, recipe, batches, settings)
    say(f"memory: {memory.text()}")
    if not spec.perms and recipe.similarity is not None:
        raise ValueError(
            "no units of this function can be reordered, so that there is nothing to "
            "match: see above what is frozen and why, or pass --recipe average"
        )
    if settings.dry_run:
        say(f"dry run: nothing was computed; {str(target)!r} would be written")
        return
    keys = jax.random.split(jax.random.key(settings.seed), 3)
    if settings.verify:
        error = verify_spec(apply_fn, models[0], spec, *batches[0], key=keys[0])
        say(f"verified: reordered units change the outputs by {error:.1e} at most")
    assignments, matched = matched_units(
        settings, apply_fn, models, spec, recipe, batches, (keys[1], keys[2])
    )
    merged = merge_units(
        models,
        spec,
        assignments,
        stop_at=settings.stop_at,
        weights=settings.weights,
        carry=settings.carry,
    )
    merged, steps = _calibrated(settings, apply_fn, models, merged, batches)
    scores = compare(apply_fn, models, merged, held_out)
    say()
    say(score_table(scores))
    parents = [model_entry(*own) for own in zip(settings.models, models, strict=True)]
    del models  # Which writing needs no more.
    outcome = Outcome(
        settings,
        arguments,
        parents,
        spec,
        merged,
        batches,
        held_out,
        matched,
        scores,
        memory,
        steps,
        warnings.messages,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda folder: _write(folder, outcome, template))
    say()
    say(f"wrote {settings.out}: {', '.join(sorted(os.listdir(target)))}")


def inferred_spec(
    apply_fn: ApplyFn, model: PyTree, inputs: Sequence[Any], select: Any = None
) -> PermutationSpec:
    """Returns the permutation spec of the function, with the parameters' names.

    Raises:
      ValueError: if the parameters or the inputs do not fit the function.
    """
    try:
        return infer_spec(apply_fn, model, *inputs)
    except ValueError as error:
        tops = collections(path_leaves(model))
        shapes = [list(np.shape(x)) for x in jax.tree_util.tree_leaves(inputs)]
        raise ValueError(
            f"{error}. The parameters are {tops}"
            + (f" (select = {select!r})" if select else " (--select chooses a part)")
            + f", the inputs have the shapes {shapes}"
        ) from error


def tell_spec(spec: PermutationSpec) -> None:
    """Prints perms and cuts, and what is frozen and why."""
    say(f"{len(spec.perms)} perms, {spec.layers} layers, {len(spec.cuts)} cuts")
    say(table(spec))
    reasons = frozen_axes(spec)
    say(f"frozen axes: {sum(map(len, reasons.values()))}")
    for why, axes in list(reasons.items())[:_REASONS]:
        more = f" and {len(axes) - 1} more" if axes[1:] else ""
        say(f"  {why}: {axes[0]}{more}")
    if len(reasons) > _REASONS:
        say(f"  and {len(reasons) - _REASONS} more reasons: zipjax inspect --explain")
    if spec.unread:
        say(f"not read by the function: {', '.join(sorted(spec.unread)[:_REASONS])}")


def frozen_axes(spec: PermutationSpec) -> dict[str, list[str]]:
    """Returns the frozen axes, "path[axis]", by the reason."""
    found: dict[str, list[str]] = {}
    for path, reasons in (spec.notes.frozen if spec.notes else {}).items():
        for number, why in enumerate(reasons):
            if why is not None:
                found.setdefault(why, []).append(f"{path}[{number}]")
    return found


def _tell_models(settings: Settings, models: Sequence[PyTree]) -> None:
    for path, model in zip(settings.models, models, strict=True):
        leaves = path_leaves(model).values()
        numbers = sum(int(np.size(x)) for x in leaves)
        size = megabytes(sum(int(getattr(x, "nbytes", 0)) for x in leaves))
        say(f"model {path}: {len(leaves)} arrays, {numbers:,} numbers, {size}")


def _tell_batches(batches: Batches, held_out: Batches) -> None:
    shapes = [list(np.shape(x)) for x in jax.tree_util.tree_leaves(batches[0])]
    same = ", the same for the comparison" if batches is held_out else ""
    apart = "" if same else f", and {len(held_out)} for the comparison"
    say(f"batches: {len(batches)} of shapes {shapes}{same}{apart}")


def _calibrated(
    settings: Settings,
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    merged: Merged,
    batches: Batches,
) -> tuple[Merged, list[str]]:
    """Returns the model after the calibrations that were asked for, and their names."""
    steps: dict[str, Callable[[Merged], Merged]] = {
        "reset": lambda m: reset_batch_stats(apply_fn, m, Progress("reset", batches)),
        "repair": lambda m: repair(apply_fn, models, m, Progress("repair", batches)),
        "refit": lambda m: refit(apply_fn, models, m, Progress("refit", batches)),
    }
    chosen = [name for name in steps if getattr(settings, name)]
    if settings.reset is None and running_stats(path_leaves(models[0])):
        chosen = ["reset", *chosen]
    return functools.reduce(lambda m, name: steps[name](m), chosen, merged), chosen


def _write(folder: Path, outcome: Outcome, template: PyTree) -> None:
    folder.mkdir()
    write_outputs(folder, outcome, template)
    if outcome.settings.report:
        write_page(folder / "report.html", outcome)
