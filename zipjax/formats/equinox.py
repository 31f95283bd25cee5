"""Equinox's files: the leaves of a model in its own order, without names."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zipjax.formats.npy import npy_array, npy_header
from zipjax.formats.stored import (
    Layout,
    MappedFile,
    Slot,
    Stored,
    StoredArray,
    of_arrays,
)
from zipjax.trees import path_leaves
from zipjax.types import PyTree

EQUINOX = "equinox"


def open_equinox(path: Path, template: PyTree) -> Stored:
    """Opens what ``equinox.tree_serialise_leaves`` wrote.

    The pytree is the template's, with its arrays alone: as ``eqx.filter(model,
    eqx.is_array)``.

    Args:
      path: the file.
      template: a model of the same structure, of arrays or their shapes.

    Raises:
      ValueError: if the template is missing, or has more or fewer leaves or others.
    """
    if template is None:
        raise ValueError(
            f"{str(path)!r} is a file of Equinox, whose arrays have no names: pass a "
            "model of the same structure, template=model"
        )
    records = _records(path)
    leaves, structure = jax.tree_util.tree_flatten(template)
    stored = [k for k, leaf in enumerate(leaves) if _is_stored(leaf)]
    if len(stored) != len(records):
        raise ValueError(
            f"{str(path)!r} holds {len(records)} leaves, but the template has "
            f"{len(stored)}: pass the model with the hyper-parameters that were saved"
        )
    slots: list[Any] = [None] * len(leaves)
    others = {}
    for number, k in enumerate(stored):
        if is_array(leaves[k]):
            slots[k] = Slot(str(number), records[number].shape, records[number].dtype)
        else:
            others[number] = records[number].read()
    tree = jax.tree_util.tree_unflatten(structure, slots)
    _check_shapes(path, tree, template)
    arrays = {str(number): record for number, record in enumerate(records)}
    return of_arrays(Layout(EQUINOX, others=others), tree, arrays)


def write_equinox(path: Path, tree: PyTree, others: Mapping[int, np.ndarray]) -> None:
    """Writes leaves as ``equinox.tree_serialise_leaves`` does.

    Args:
      path: the file.
      tree: a model, or its arrays alone.
      others: the records that are no arrays of the model, by their number.
    """
    leaves = iter(x for x in jax.tree_util.tree_leaves(tree) if _is_stored(x))
    count = sum(map(_is_stored, jax.tree_util.tree_leaves(tree))) + len(others)
    with path.open("wb") as file:
        for number in range(count):
            record = others[number] if number in others else np.asarray(next(leaves))
            np.lib.format.write_array(file, record, allow_pickle=False)


def is_array(leaf: Any) -> bool:
    """Returns whether a leaf is an array, or the shape of one."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _is_stored(leaf: Any) -> bool:
    return is_array(leaf) or isinstance(leaf, np.generic | bool | int | float | complex)


def _records(path: Path) -> list[StoredArray]:
    mapped, found, start = MappedFile(path), list[StoredArray](), 0
    while start < len(mapped):
        size = min(_HEADER, len(mapped) - start)
        head = io.BytesIO(mapped.data(start, size).tobytes())
        shape, fortran, dtype = npy_header(head)
        start += head.tell()
        found.append(npy_array(mapped, start, shape, fortran, dtype))
        start += int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return found


_HEADER = 1 << 16  # Bytes that hold the header of any record without fields.


def _check_shapes(path: Path, tree: PyTree, template: PyTree) -> None:
    wanted = path_leaves(template)
    for name, slot in path_leaves(tree).items():
        leaf = wanted[name]
        if (slot.shape, slot.dtype) != (tuple(leaf.shape), np.dtype(leaf.dtype)):
            raise ValueError(
                f"{name!r} is {slot.dtype}{list(slot.shape)} in {str(path)!r}, but "
                f"{leaf.dtype}{list(leaf.shape)} in the template: pass the model with "
                "the hyper-parameters that were saved"
            )
