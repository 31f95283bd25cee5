"""A checkpoint that is open: what it holds and where, before any array is read."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from zipjax.trees import nested, summary
from zipjax.types import PyTree, Shape


class StoredArray(NamedTuple):
    """An array in a file.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      read: returns it, where possible without copying it to memory.
    """

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of an array in a checkpoint: a leaf of the stored pytree.

    Attributes:
      key: by which the array is read.
      shape: its shape.
      dtype: its dtype.
    """

    key: str
    shape: Shape
    dtype: Any

    @property
    def nbytes(self) -> int:
        """The memory that the array takes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint is laid out, so that another can be written alike.

    Attributes:
      format: the format's name.
      separator: what joins the parts of a path in keys that are plain text.
      inside: folders of an Orbax step: ("default",), or ("100", "default") where a
        manager's steps lie beside each other; () for a pytree by itself.
      items: whether the pytree's first keys are the names of an Orbax step's items.
      others: records of an Equinox file that hold no arrays of the model, by number.
    """

    format: str
    separator: str = "/"
    inside: tuple[str, ...] = ()
    items: bool = False
    others: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A checkpoint that is open.

    Attributes:
      layout: how it is laid out.
      tree: the stored pytree, with a :class:`Slot` in the place of every array.
      read: returns the arrays of these keys. The values are the sharding that an array
        shall have, or None for an array on the host.
      left_out: paths of what is no array, such as texts.
    """

    layout: Layout
    tree: PyTree
    read: Callable[[Mapping[str, NamedSharding | None]], dict[str, Any]]
    left_out: tuple[str, ...] = ()


def of_arrays(
    layout: Layout, tree: PyTree, arrays: Mapping[str, StoredArray]
) -> Stored:
    """Returns an open checkpoint whose arrays are read one by one."""

    def read(keys: Mapping[str, NamedSharding | None]) -> dict[str, Any]:
        return {key: placed(arrays[key].read(), to) for key, to in keys.items()}

    return Stored(layout, tree, read)


def placed(array: np.ndarray, sharding: NamedSharding | None) -> Any:
    """Returns an array with a sharding; every device reads no more than its part."""
    if sharding is None:
        return array
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.ascontiguousarray(array[index])
    )


def of_keys(name: str, arrays: Mapping[str, StoredArray]) -> Stored:
    """Returns an open checkpoint whose keys are paths, joined by "/" or else by ".".

    Raises:
      ValueError: if a key is also the beginning of another.
    """
    separator = "/" if any("/" in key for key in arrays) else "."
    slots = {
        key.replace(separator, "/"): Slot(key, array.shape, array.dtype)
        for key, array in arrays.items()
    }
    heads = {path[:k] for path in slots for k, x in enumerate(path) if x == "/"}
    if both := heads & set(slots):
        raise ValueError(
            f"the keys {summary(both)} are arrays and the beginning of other keys: "
            "rename them"
        )
    return of_arrays(Layout(name, separator), nested(slots), arrays)


class MappedFile:
    """The bytes of a file, read by the system when they are looked at."""

    def __init__(self, path: Path) -> None:
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else None

    def array(self, start: int, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """Returns an array that lies in the file, in C order.

        Raises:
          ValueError: if the file ends before the array does.
        """
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self.data(start, size).view(dtype).reshape(shape)

    def data(self, start: int, size: int) -> np.ndarray:
        """Returns bytes of the file.

        Raises:
          ValueError: if the file ends before.
        """
        if not size:
            return np.zeros(0, np.uint8)
        length = 0 if self._bytes is None else self._bytes.size
        if self._bytes is None or start < 0 or start + size > length:
            raise ValueError(f"the file ends at byte {length}, not {start + size}")
        return self._bytes[start : start + size].view(np.ndarray)

    def __len__(self) -> int:
        return 0 if self._bytes is None else self._bytes.size
