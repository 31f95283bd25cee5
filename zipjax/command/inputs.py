"""What the command reads: functions by name, batches, and models."""

import importlib
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.arguments import shown
from zipjax.batches import input_batches
from zipjax.command.settings import Settings
from zipjax.formats.checkpoint import read_checkpoint
from zipjax.formats.npy import npz_arrays
from zipjax.trees import is_weight
from zipjax.types import ApplyFn, PyTree

Batches = Sequence[tuple[Any, ...]]

_ARRAYS = (".npy", ".npz")
_PACKAGE = Path(__file__).parent.parent


def imported(name: str, value: Any) -> Any:
    """Returns what a text "package.module:function" names.

    Args:
      name: the field, for errors.
      value: the text; anything else is returned as it is.

    Raises:
      ValueError: if it cannot be imported.
    """
    if not isinstance(value, str):
        return value
    module, colon, attributes = value.partition(":")
    if not colon or not module or not attributes:
        raise ValueError(
            f"{name} = {value!r}: pass package.module:function, as my_nets.mlp:apply"
        )
    # Console scripts do not look where they are started; python -m does.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # Whatever the user's code raises.
        raise ValueError(
            f"{name} = {value!r}: the module {module!r} cannot be imported "
            f"({type(error).__name__}: {_line(error)}). Start the command where it "
            "can, or install its package"
        ) from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            names = [x for x in dir(found) if not x.startswith("_")]
            raise ValueError(
                f"{name} = {value!r}: {shown_name(found)} has no {attribute!r}; it has "
                f"{', '.join(names[:12])}"
            )
        found = getattr(found, attribute)
    return found


def shown_name(value: Any) -> str:
    """Returns how a function or module is called, for people."""
    if isinstance(value, str):
        return value
    module = getattr(value, "__module__", "")
    name = getattr(value, "__qualname__", getattr(value, "__name__", shown(value)))
    return f"{module}:{name}" if module else name


def read_function(settings: Settings) -> ApplyFn:
    """Returns the function whose parameters are merged.

    Raises:
      ValueError: if it cannot be imported or called.
    """
    function = imported("apply", settings.apply)
    if not callable(function):
        raise ValueError(
            f"apply = {shown_name(settings.apply)} is {shown(function)}: pass a "
            "function, apply_fn(params, *inputs)"
        )
    return function


def read_template(settings: Settings) -> PyTree:
    """Returns the pytree of the parameters, or None."""
    template = imported("template", settings.template)
    if callable(template) and not jax.tree_util.all_leaves([template]):
        return template  # A model that can be called, as Equinox's.
    return template() if callable(template) else template


def read_models(settings: Settings, template: PyTree) -> list[PyTree]:
    """Returns the models' parameters, each array on the default device.

    One array after the other is copied there from its file: no model is in memory
    twice.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if one cannot be read.
    """
    models = []
    for path in settings.models:
        found = read_checkpoint(
            path, template=template, select=settings.select, step=settings.step
        )
        leaves, structure = jax.tree_util.tree_flatten(found)
        del found
        for number in range(len(leaves)):
            leaves[number] = _on_device(leaves[number])
        models.append(jax.tree_util.tree_unflatten(structure, leaves))
    return models


def read_batches(settings: Settings) -> tuple[Batches, Batches]:
    """Returns the batches to calibrate on, and those to compare on.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if there are no batches, or no inputs of these names.
    """
    found = _batches("batches", settings.batches, settings)
    if settings.held_out is not None:
        return found, _batches("held_out", settings.held_out, settings)
    count = max(len(found) // 5, 1)
    # A single batch serves for both.
    return (found[:-count], found[-count:]) if len(found) > 1 else (found, found)


def _batches(name: str, source: Any, settings: Settings) -> Batches:
    try:
        stream = _stream(name, source, settings)
        limited = itertools.islice(stream, settings.num_batches)
        return list(input_batches(limited, _chooser(settings.inputs)))
    except OSError:
        raise
    except Exception as error:  # Whatever the user's code raises.
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = Path(last.filename).is_relative_to(_PACKAGE)
        where = (
            ""
            if own
            else f"{type(error).__name__} in {last.filename}, line {last.lineno}: "
        )
        raise ValueError(
            f"{name} = {shown_name(source)}: {where}{_line(error)}"
        ) from error


def _stream(name: str, source: Any, settings: Settings) -> Iterable[Any]:
    if isinstance(source, str) and (":" not in source or Path(source).exists()):
        return _examples(name, Path(source), settings)
    found = imported(name, source)
    made = found() if callable(found) else found
    if not isinstance(made, Iterable) or isinstance(made, Mapping | str):
        raise ValueError(
            f"{name} = {shown_name(source)} gives {shown(made)}: return a list or "
            "another iterable of batches"
        )
    return made


def _examples(name: str, path: Path, settings: Settings) -> Iterator[Any]:
    """Yields batches of the examples in one file, or in all those of a folder."""
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: there is nothing at {str(path)!r}: pass a .npy or .npz file, a "
            "folder of these, or package.module:function"
        )
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in _ARRAYS]
    if not files:
        raise ValueError(
            f"{name}: {str(path)!r} holds no arrays: pass .npy or .npz files, or "
            "package.module:function"
        )
    for file in files:
        arrays = _arrays(file, settings.inputs)
        lengths = {len(array) if array.ndim else 0 for array in arrays}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"{name}: the arrays of {str(file)!r} have the shapes "
                f"{[list(x.shape) for x in arrays]}: the inputs of a network have one "
                "first axis, the examples. inputs= chooses among them"
            )
        (length,) = lengths
        for start in range(0, length, settings.batch_size):
            yield tuple(x[start : start + settings.batch_size] for x in arrays)


def _arrays(file: Path, inputs: Sequence[str]) -> list[np.ndarray]:
    if file.suffix == ".npy":
        return [np.load(file, mmap_mode="r", allow_pickle=False)]
    stored = npz_arrays(file)
    names = inputs or list(stored)
    if missing := [name for name in names if name not in stored]:
        raise ValueError(f"{str(file)!r} has no {missing}: it has {list(stored)}")
    return [stored[name].read() for name in names]


def _chooser(inputs: Sequence[str]) -> Callable[[Any], Any]:
    """Returns what chooses the inputs of a batch by name, if it has names."""

    def choose(batch: Any) -> Any:
        if not isinstance(batch, Mapping):
            return batch
        missing = [name for name in inputs if name not in batch]
        if missing or not inputs:
            raise ValueError(
                f"a batch holds {list(batch)}: name what the function reads, in its "
                f"order, --inputs {next(iter(batch), 'image')}"
                + (f"; there is no {missing}" if missing else "")
            )
        return tuple(batch[name] for name in inputs)

    return choose


def _on_device(leaf: Any) -> Any:
    """Returns weights on the default device, if JAX has their dtype."""
    same = is_weight(leaf) and jax.dtypes.canonicalize_dtype(leaf.dtype) == leaf.dtype
    return jnp.asarray(leaf) if same else leaf


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
