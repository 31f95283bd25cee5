"""``zipjax inspect``, ``verify``, ``apply-spec`` and ``convert``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zipjax.command.inputs import (
    read_batches,
    read_function,
    read_models,
    read_template,
)
from zipjax.command.merging import inferred_spec, tell_spec
from zipjax.command.settings import Settings
from zipjax.command.terminal import megabytes, say
from zipjax.files import check_free, write_text
from zipjax.formats.checkpoint import read_checkpoint, write_checkpoint
from zipjax.formats.npy import npz_arrays
from zipjax.formats.recognise import recognised
from zipjax.formats.stored import Slot
from zipjax.inspect import table
from zipjax.spec.explanation import explain
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.spec.verify import permute_params, random_permutations, verify_spec
from zipjax.trees import path_leaves


def inspect_checkpoint(settings: Settings) -> None:
    """Prints what a checkpoint holds: its format and, by path, its arrays."""
    path = Path(settings.models[0])
    stored = recognised(path, template=read_template(settings), step=settings.step)
    slots: Mapping[str, Slot] = path_leaves(stored.tree)
    size = sum(slot.nbytes for slot in slots.values())
    kind = ", ".join([stored.layout.format, *stored.layout.inside])
    say(f"{path}: {kind}, {len(slots)} arrays, {megabytes(size)}")
    width = max(map(len, slots), default=0)
    for name, slot in slots.items():
        say(f"  {name:{width}}  {slot.dtype}{list(slot.shape)}")
    for name in stored.left_out:
        say(f"  {name:{width}}  no array")


def inspect_function(settings: Settings, full: bool, spec_file: str | None) -> None:
    """Prints the spec of a function with a checkpoint's parameters.

    Args:
      settings: which function, checkpoint and inputs.
      full: whether all members and all frozen axes are told.
      spec_file: a file to write the spec to; None: none.
    """
    apply_fn = read_function(settings)
    batches, _ = read_batches(settings)
    (model, *_) = read_models(settings, read_template(settings))
    spec = inferred_spec(apply_fn, model, batches[0], settings.select)
    tell_spec(spec)
    if full:
        say()
        say(explain(spec))
    if spec_file is not None:
        check_free(Path(spec_file))
        write_text(spec_file, spec.to_json())
        say(f"wrote {spec_file}")


def verify(settings: Settings, spec_file: str | None) -> None:
    """Checks that reordered units leave the outputs of every model as they are.

    Args:
      settings: which function, checkpoints and inputs.
      spec_file: the spec; None: the inferred one.

    Raises:
      zipjax.SpecError: if the outputs change.
    """
    apply_fn = read_function(settings)
    batches, _ = read_batches(settings)
    models = read_models(settings, read_template(settings))
    if spec_file is None:
        spec = inferred_spec(apply_fn, models[0], batches[0], settings.select)
    else:
        spec = read_spec(spec_file)
    for number, (path, model) in enumerate(zip(settings.models, models, strict=True)):
        key = jax.random.fold_in(jax.random.key(settings.seed), number)
        error = verify_spec(apply_fn, model, spec, *batches[0], key=key)
        say(f"{path}: {len(spec.perms)} perms hold, outputs change by {error:.1e}")


def apply_spec(settings: Settings, spec_file: str, permutations: str | None) -> None:
    """Reorders a checkpoint's units by a spec: the function stays the same.

    Args:
      settings: which checkpoint; where to write, or None to check that the spec fits.
      spec_file: the spec.
      permutations: a .npz file with the new order of the units by perm; None: a random
        one, of the seed.

    Raises:
      ValueError: if the spec does not fit the parameters, or the permutations the spec.
    """
    spec, template = read_spec(spec_file), read_template(settings)
    source = settings.models[0]
    options: dict[str, Any] = {
        "template": template,
        "select": settings.select,
        "step": settings.step,
    }
    params = read_checkpoint(source, **options)
    spec.validate(params)
    say(table(spec))
    say(f"{source}: the spec fits")
    if settings.out is None:
        return
    check_free(Path(settings.out))
    if permutations is None:
        orders = random_permutations(spec, jax.random.key(settings.seed))
    else:
        arrays = npz_arrays(_existing(permutations))
        orders = {perm: np.array(array.read()) for perm, array in arrays.items()}
    moved = permute_params(params, spec, orders)
    write_checkpoint(settings.out, moved, like=source, **options)
    say(f"wrote {settings.out}, with the units of {len(orders)} perms reordered")


def convert(settings: Settings, like: str | None) -> None:
    """Writes a checkpoint in another format.

    Args:
      settings: which checkpoint, what of it, and where to write.
      like: a checkpoint to write it like; None: the ending of the name tells how.
    """
    source, target = settings.models[0], str(settings.out)
    check_free(Path(target))
    template = read_template(settings)
    params = read_checkpoint(
        source, template=template, select=settings.select, step=settings.step
    )
    write_checkpoint(target, params, like=like, template=template if like else None)
    say(f"wrote {target}: {len(path_leaves(params))} arrays")


def read_spec(path: str) -> PermutationSpec:
    """Reads a spec from a JSON file.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is no spec.
    """
    file = _existing(path)
    try:
        return PermutationSpec.from_json(file.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path!r} is no spec ({type(error).__name__}): zipjax inspect --spec and "
            "zipjax merge write one"
        ) from error


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path!r}: check the path")
    return Path(path)
