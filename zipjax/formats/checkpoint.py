"""``read_checkpoint`` and ``write_checkpoint``: parameters in any of the formats."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from zipjax.arguments import shown
from zipjax.files import check_free, write_whole
from zipjax.formats.choosing import (
    Select,
    chosen,
    placed_back,
    warn_of_texts,
    without_optimiser,
)
from zipjax.formats.equinox import EQUINOX, is_array, write_equinox
from zipjax.formats.msgpack import MSGPACK, write_msgpack
from zipjax.formats.npy import write_npz
from zipjax.formats.orbax import ORBAX, write_orbax
from zipjax.formats.recognise import NPZ, SAFETENSORS, recognised
from zipjax.formats.safetensors import write_safetensors
from zipjax.formats.stored import Layout, Slot, Stored
from zipjax.merging.merged import Merged
from zipjax.trees import check_same_keys, from_leaves, host_array, path_leaves
from zipjax.types import Leaves, PyTree

# Names under which nothing but an array lies: Variables of NNX, boxes of Linen.
_BOXES = ("/value", "/raw_value")

_GENERATORS = ("threefry2x32", "rbg", "unsafe_rbg")

# Formats of files, by the endings of their names; a name without one is a folder.
_SUFFIXES = {
    ".npz": NPZ,
    ".safetensors": SAFETENSORS,
    ".msgpack": MSGPACK,
    ".eqx": EQUINOX,
    "": ORBAX,
}


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    template: PyTree = None,
    select: Select = None,
    step: int | None = None,
) -> PyTree:
    """Reads parameters that another library wrote.

    The format is told by the content: a folder of Orbax (of a StandardCheckpointer or
    PyTreeCheckpointer, of one step, or of all steps of a CheckpointManager), Flax's
    ``to_bytes``, safetensors, .npz, or Equinox's ``tree_serialise_leaves``. Pickles are
    never read. Arrays of files are mapped: their bytes are read when they are used.

    Args:
      path: the file or folder.
      template: a pytree of the wanted structure, of arrays or of their shapes
        (``jax.eval_shape``), such as an NNX state. Arrays come back with the shardings
        of the template, if these are named ones. Equinox's files need it: the model;
        its arrays are returned, with None in the place of what is no array. Without
        one, parameters come back as nested dictionaries, as they were stored, the paths
        of safetensors and .npz being the keys split at "/" or ".".
      select: the path of a part, such as "params" in a TrainState, which is returned;
        or several paths, ("params", "batch_stats"), which come back as a dictionary. By
        default everything but the optimiser's state, which a warning names.
      step: the step of a CheckpointManager; the last one by default.

    Returns:
      A pytree of numpy arrays, or of JAX's where the template has shardings.

    Raises:
      FileNotFoundError: if there is nothing at the path.
      ValueError: if the format is unknown, listing what was looked for; if the file is
        a pickle or is damaged; if there is no such part or step; or if the template has
        other paths, shapes or dtypes.
    """
    what = repr(os.fspath(path))
    stored = recognised(Path(path), template=template, step=step)
    _check_select(what, stored, select)
    warn_of_texts(what, stored)
    tree = chosen(what, stored.tree, select)
    if template is None or stored.layout.format == EQUINOX:
        keys: dict[str, Any] = {x.key: None for x in jax.tree_util.tree_leaves(tree)}
        arrays = stored.read(keys)
        return jax.tree_util.tree_map(lambda slot: arrays[slot.key], tree)
    wanted = without_optimiser("the template", template) if select is None else template
    leaves, slots = path_leaves(wanted), path_leaves(tree)
    names = _matched(
        f"the arrays of {what} and those of the template differ", leaves, slots
    )
    found = {name: slots[own] for name, own in names.items()}
    for name, slot in found.items():
        _check_slot(what, name, slot, leaves[name])
    arrays = stored.read({x.key: _sharding(leaves[n]) for n, x in found.items()})
    return from_leaves(
        {name: _like(arrays[x.key], leaves[name]) for name, x in found.items()}, wanted
    )


def write_checkpoint(
    path: str | os.PathLike[str],
    params: PyTree,
    *,
    like: str | os.PathLike[str] | None = None,
    template: PyTree = None,
    select: Select = None,
    step: int | None = None,
) -> None:
    """Writes parameters for another library; the path appears once all is written.

    Args:
      path: a file or folder that does not exist yet. Unless ``like`` says how it is
        laid out, its ending does: ".npz", ".safetensors", ".msgpack" (Flax), ".eqx"
        (Equinox), or none (a folder of Orbax).
      params: a parameter pytree, or a merged model without heads.
      like: a checkpoint whose format, names and structure are used: one of the models
        that were merged. Widths may differ.
      template: that with which ``like`` is read.
      select: that with which ``like`` was read: parameters are written where it finds
        them. What else there was, such as a step number, is not written.
      step: that with which ``like`` was read.

    Raises:
      FileNotFoundError: if there is nothing at ``like``.
      ValueError: if the path exists, since nothing is overwritten; if ``like`` cannot
        be read or has other parameters; if leaves are no arrays; or if the model has
        several heads.
      OSError: if it cannot be written, for instance to a full disk.
    """
    target = Path(path).absolute()
    check_free(target)
    tree = _parameters(params)
    if like is None:
        layout = Layout(_format_of(target))
    else:
        what = repr(os.fspath(like))
        stored = recognised(Path(like), template=template, step=step)
        _check_select(what, stored, select)
        layout = stored.layout
        slots = chosen(what, stored.tree, select)
        tree = _as_stored(what, layout, slots, tree)
    tree = placed_back(jax.tree_util.tree_map(_on_host, tree), select)
    if layout.format != EQUINOX:  # Which skips what is no array.
        _check_arrays(tree)
    write = _WRITERS[layout.format]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda temporary: write(temporary, tree, layout))


def _parameters(params: PyTree) -> PyTree:
    """Returns the pytree to write, checked."""
    if isinstance(params, Merged):
        if params.heads:
            raise ValueError(
                f"the merged model has {len(params.heads)} heads, each a network of "
                "its own: write them one by one, merged.params(number); zipjax.save "
                "writes it whole"
            )
        params = params.params()
    if not path_leaves(params):
        raise ValueError("there are no parameters: pass a pytree of arrays")
    return params


def _check_arrays(tree: PyTree) -> None:
    for path, leaf in path_leaves(tree).items():
        if not hasattr(leaf, "dtype") and not isinstance(leaf, float):
            raise ValueError(
                f"parameter {path!r} is {shown(leaf)}, not an array: leave it out"
            )


def _check_select(what: str, stored: Stored, select: Select) -> None:
    if select is not None and stored.layout.format == EQUINOX:
        raise ValueError(
            f"select = {select!r}, but {what} is a file of Equinox, which is read as a "
            "whole: leave it out"
        )


def _as_stored(what: str, layout: Layout, slots: PyTree, params: PyTree) -> PyTree:
    """Returns parameters in the structure of a checkpoint."""
    if layout.format == EQUINOX:
        params = jax.tree_util.tree_map(lambda x: x if is_array(x) else None, params)
    leaves = path_leaves(params)
    names = _matched(
        f"the parameters and those of {what}, which is to be written alike, differ",
        path_leaves(slots),
        leaves,
    )
    return from_leaves({own: leaves[name] for own, name in names.items()}, slots)


def _matched(what: str, wanted: Leaves, found: Leaves) -> dict[str, str]:
    """Returns the path that is found for every wanted one.

    They may differ by the boxes that arrays lie in.

    Raises:
      ValueError: if there is none for one, or more.
    """
    if set(wanted) == set(found):
        return {name: name for name in wanted}
    bare = {_unboxed(name): name for name in found}
    names = {name: _unboxed(name) for name in wanted}
    if len(bare) != len(found) or set(names.values()) != set(bare):
        remedy = "Pass a pytree of that structure, or choose a part with select=."
        check_same_keys(what, wanted, found, remedy)
    return {name: bare[own] for name, own in names.items()}


def _unboxed(path: str) -> str:
    return next((path.removesuffix(x) for x in _BOXES if path.endswith(x)), path)


def _check_slot(what: str, name: str, slot: Slot, leaf: Any) -> None:
    """Checks that what is stored fits the template's leaf."""
    shape, dtype = np.shape(leaf), leaf.dtype
    if _is_key(dtype) and not _is_key(slot.dtype):
        data = jax.eval_shape(jax.random.key_data, leaf)
        shape, dtype = data.shape, data.dtype
    # Counters are as wide as the machine's integers.
    counters = not any(jnp.issubdtype(x, jnp.inexact) for x in (slot.dtype, dtype))
    if slot.shape != tuple(shape) or (slot.dtype != dtype and not counters):
        raise ValueError(
            f"{name!r} is {slot.dtype}{list(slot.shape)} in {what}, but "
            f"{dtype}{list(shape)} in the template: pass a template of the network "
            "that was saved, in its dtype"
        )


def _like(array: Any, leaf: Any) -> Any:
    """Returns what was read, as the template's leaf has it."""
    if _is_key(leaf.dtype) and not _is_key(array.dtype):
        # Of a shape alone, JAX does not tell the generator.
        (impl,) = (
            x for x in _GENERATORS if jax.random.key(0, impl=x).dtype == leaf.dtype
        )
        return jax.random.wrap_key_data(array, impl=impl)
    return array if array.dtype == leaf.dtype else array.astype(leaf.dtype)


def _sharding(leaf: Any) -> NamedSharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _on_host(leaf: Any) -> Any:
    """Returns what is written: of arrays of several processes, these themselves."""
    if not hasattr(leaf, "dtype"):
        return leaf
    return leaf if not getattr(leaf, "is_fully_addressable", True) else host_array(leaf)


def _format_of(target: Path) -> str:
    if target.suffix not in _SUFFIXES:
        known = ", ".join(suffix for suffix in _SUFFIXES if suffix)
        raise ValueError(
            f"{str(target)!r} ends in {target.suffix!r}: it can be {known}, or nothing "
            "(a folder of Orbax); or pass like=, a checkpoint to write it like"
        )
    return _SUFFIXES[target.suffix]


def _keyed(tree: PyTree, layout: Layout) -> dict[str, np.ndarray]:
    """Returns arrays by the keys of a format without structure."""
    return {
        path.replace("/", layout.separator): np.asarray(leaf)
        for path, leaf in path_leaves(tree).items()
    }


def _dictionaries(tree: PyTree) -> dict[str, Any]:
    """Returns a pytree as nested dictionaries, whatever its nodes are."""
    found: dict[str, Any] = {}
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, leaf in flat:
        *parents, name = (jax.tree_util.keystr((key,), simple=True) for key in path)
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.asarray(leaf)
    return found


_WRITERS: Mapping[str, Callable[[Path, PyTree, Layout], None]] = {
    NPZ: lambda path, tree, layout: write_npz(path, _keyed(tree, layout)),
    SAFETENSORS: lambda path, tree, layout: write_safetensors(
        path, _keyed(tree, layout)
    ),
    MSGPACK: lambda path, tree, layout: write_msgpack(path, _dictionaries(tree)),
    EQUINOX: lambda path, tree, layout: write_equinox(path, tree, layout.others),
    ORBAX: write_orbax,
}
