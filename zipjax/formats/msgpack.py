"""Flax's files: msgpack, with arrays in extensions of Flax's own.

Read here, not by Flax, so that arrays stay in the file until they are looked at; from
the specifications https://github.com/msgpack/msgpack/blob/master/spec.md and
``flax.serialization``.
"""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zipjax.formats.stored import (
    Layout,
    MappedFile,
    Slot,
    Stored,
    StoredArray,
    of_arrays,
)
from zipjax.types import PyTree, Shape

MSGPACK = "flax"

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's extensions.
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK = 1 << 30  # Bytes of an array from which on Flax splits it.
_DEPTH = 200  # Levels of nesting, more than any network's.

# Numbers, by the first byte, as in the specification.
_NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d"},
    **{0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
# How the length of a text, of bytes, a list, a dictionary or an extension is stored.
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_LISTS = {0xDC: ">H", 0xDD: ">I"}
_DICTS = {0xDE: ">H", 0xDF: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class _Span(NamedTuple):
    """Bytes of the file."""

    start: int
    size: int


class _Value(NamedTuple):
    """An array in the file, or one that was split into chunks."""

    dtype: np.dtype
    shape: Shape
    parts: tuple[_Span, ...]


def open_msgpack(path: Path) -> Stored:
    """Opens what ``flax.serialization.to_bytes`` wrote; arrays are mapped.

    Lists come back as dictionaries with the keys "0", "1", ..., as Flax stores them.

    Raises:
      ValueError: if it is no such file.
    """
    mapped = MappedFile(path)
    reader = _Reader(mapped)
    found = reader.value()
    if reader.place != len(mapped):
        raise ValueError(f"{len(mapped) - reader.place} bytes follow the end")
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not parameters by name")
    arrays: dict[str, StoredArray] = {}

    def slot(leaf: Any) -> Slot:
        key = str(len(arrays))
        arrays[key] = _stored(mapped, leaf)
        return Slot(key, arrays[key].shape, arrays[key].dtype)

    texts: list[str] = []
    tree = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _without_text(path, leaf, texts, slot),
        found,
        is_leaf=lambda x: isinstance(x, _Value),
    )
    stored = of_arrays(Layout(MSGPACK), tree, arrays)
    return Stored(stored.layout, stored.tree, stored.read, tuple(texts))


def _without_text(path: Any, leaf: Any, texts: list[str], slot: Any) -> Slot | None:
    if isinstance(leaf, str | bytes):
        texts.append(jax.tree_util.keystr(path, simple=True, separator="/"))
        return None
    return slot(leaf)


def _stored(mapped: MappedFile, leaf: Any) -> StoredArray:
    if not isinstance(leaf, _Value):
        # Numbers of Python: the dtypes that JAX gives them.
        number = np.asarray(leaf, jnp.result_type(leaf))
        return StoredArray((), number.dtype, lambda: number)
    dtype, shape, parts = leaf

    def read() -> np.ndarray:
        flat = [
            mapped.array(span.start, (span.size // dtype.itemsize,), dtype)
            for span in parts
        ]
        whole = flat[0] if len(flat) == 1 else np.concatenate(flat)
        return whole.reshape(shape)

    return StoredArray(shape, dtype, read)


def write_msgpack(path: Path, tree: PyTree) -> None:
    """Writes arrays as ``flax.serialization.to_bytes`` does, one after the other.

    Args:
      path: the file.
      tree: nested dictionaries of numpy arrays.
    """
    with path.open("wb") as file:
        _write_value(file, tree)


def _write_value(file: IO[bytes], value: Any) -> None:
    match value:
        case None:
            file.write(b"\xc0")
        case bool():
            file.write(b"\xc3" if value else b"\xc2")
        case int():
            file.write(struct.pack(">BQ", 0xCF, value))
        case str():
            text = value.encode()
            file.write(struct.pack(">BI", 0xDB, len(text)) + text)
        case dict():
            file.write(struct.pack(">BI", 0xDF, len(value)))
            for key, child in value.items():
                _write_value(file, str(key))
                _write_value(file, child)
        case list() | tuple():
            _write_value(file, _numbered(value))
        case _ if value.nbytes > _CHUNK:
            _write_value(file, _split(value))
        case _:
            _write_array(file, value)


def _write_array(file: IO[bytes], array: np.ndarray) -> None:
    head = struct.pack(">BH", 0xDC, array.ndim)
    head += b"".join(struct.pack(">BQ", 0xCF, size) for size in array.shape)
    name = array.dtype.name.encode()
    head = b"\x93" + head + struct.pack(">BB", 0xD9, len(name)) + name
    head += struct.pack(">BI", 0xC6, array.nbytes)
    file.write(struct.pack(">BIb", 0xC9, len(head) + array.nbytes, _ARRAY) + head)
    file.write(np.require(array, requirements="C").reshape(-1).view(np.uint8).data)


def _split(array: np.ndarray) -> dict[str, Any]:
    """Returns an array as Flax splits those that are too large for one value."""
    flat, step = array.reshape(-1), _CHUNK // array.dtype.itemsize
    chunks = [flat[k : k + step] for k in range(0, flat.size, step)]
    return {
        _CHUNKED: True,
        "shape": _numbered(array.shape),
        "chunks": _numbered(chunks),
    }


def _numbered(values: Sequence[Any]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}


class _Reader:
    """Reads one value after the other; of arrays, where they lie."""

    def __init__(self, mapped: MappedFile, place: int = 0) -> None:
        self.place = place
        self._mapped = mapped

    def value(self, depth: int = 0) -> Any:
        """Reads the next value.

        Raises:
          ValueError: if there is none, or one that parameters do not have.
        """
        if depth > _DEPTH:
            raise ValueError(f"nested more than {_DEPTH} levels deep")
        code = self._take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            return self._number(_NUMBERS[code])
        if code < 0x90 or code in _DICTS:
            size = code & 0x0F if code < 0x90 else self._number(_DICTS[code])
            return self._dictionary(size, depth)
        if code < 0xA0 or code in _LISTS:
            size = code & 0x0F if code < 0xA0 else self._number(_LISTS[code])
            return [self.value(depth + 1) for _ in range(size)]
        if code < 0xC0 or code in _TEXTS:
            size = code & 0x1F if code < 0xC0 else self._number(_TEXTS[code])
            return self._take(size).decode()
        if code in _BYTES:
            return self._take(self._number(_BYTES[code]))
        return self._extension(code)

    def span(self) -> _Span:
        """Reads bytes or a text, no more than where they lie."""
        code = self._take(1)[0]
        if 0xA0 <= code < 0xC0:
            size = code & 0x1F
        else:
            size = self._number({**_BYTES, **_TEXTS}[code])
        found = _Span(self.place, size)
        self.place += size
        return found

    def _dictionary(self, size: int, depth: int) -> Any:
        found = {}
        for _ in range(size):
            key = self.value(depth + 1)
            found[str(key)] = self.value(depth + 1)
        return _joined(found) if _CHUNKED in found else found

    def _extension(self, code: int) -> Any:
        if code in _FIXED_EXTENSIONS:
            size = _FIXED_EXTENSIONS[code]
        elif code in _EXTENSIONS:
            size = self._number(_EXTENSIONS[code])
        else:
            raise ValueError(f"byte {code:#x} at {self.place - 1} begins no value")
        kind, end = self._number(">b"), self.place + size
        if kind not in (_ARRAY, _SCALAR):
            what = "complex numbers" if kind == _COMPLEX else f"extension {kind}"
            raise ValueError(f"{what} at byte {self.place}, which are no parameters")
        inner = _Reader(self._mapped, self.place)
        found = inner.array()
        self.place = end
        return found

    def array(self) -> _Value:
        """Reads an array of Flax's: its shape, the name of its dtype, its bytes."""
        if self._take(1) != b"\x93":
            raise ValueError(f"no array at byte {self.place}")
        shape = tuple(self.value())
        name = self.span()
        dtype = np.dtype(self._mapped.data(*name).tobytes().decode())
        if dtype.hasobject:
            raise ValueError("an array of objects, which are refused")
        data = self.span()
        if data.size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of {data.size} bytes, not those of {shape}")
        return _Value(dtype, shape, (data,))

    def _take(self, size: int) -> bytes:
        data = self._mapped.data(self.place, size).tobytes()
        self.place += size
        return data

    def _number(self, kind: str) -> Any:
        (number,) = struct.unpack(kind, self._take(struct.calcsize(kind)))
        return number


def _joined(chunked: dict[str, Any]) -> _Value:
    """Returns an array that Flax split because it is too large for one value."""
    shape = tuple(chunked["shape"][str(k)] for k in range(len(chunked["shape"])))
    chunks = [chunked["chunks"][str(k)] for k in range(len(chunked["chunks"]))]
    parts = tuple(part for chunk in chunks for part in chunk.parts)
    return _Value(chunks[0].dtype, shape, parts)
