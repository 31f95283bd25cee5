"""Which format a path has: told by what is there, not by its name."""

import dataclasses
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jax.sharding import NamedSharding

from zipjax.formats.equinox import open_equinox
from zipjax.formats.msgpack import open_msgpack
from zipjax.formats.npy import npz_arrays
from zipjax.formats.orbax import is_pytree, items_of, open_orbax, steps_of
from zipjax.formats.safetensors import safetensors_arrays
from zipjax.formats.stored import Stored, of_keys
from zipjax.types import PyTree

T = TypeVar("T")

NPZ, SAFETENSORS = "npz", "safetensors"

_LOOKED_FOR = (
    "a folder of Orbax (_METADATA), of one of its steps (items with _METADATA) or of "
    "a manager (numbered steps); a file of safetensors, .npz, Flax (to_bytes) or "
    "Equinox (tree_serialise_leaves)"
)
_PICKLE = (
    "it is a pickle, which can run any code when it is read, so that zipjax reads "
    "none. If you trust it, read it yourself, in Python: params = pickle.load(open("
    "path, 'rb')); zipjax.write_checkpoint('params.npz', params)"
)
_TORCH = (
    "it is a file of PyTorch's: zipjax.interop.torch reads those of zipjax.models; of "
    "other networks, save the arrays with numpy.savez or safetensors"
)
_KERAS = "it is a file of HDF5: save the arrays with numpy.savez"
# First bytes of a dictionary in msgpack, and of its larger kinds.
_DICTIONARIES = {*range(0x81, 0x90), 0xDE, 0xDF}


def recognised(
    path: Path, *, template: PyTree = None, step: int | None = None
) -> Stored:
    """Opens a checkpoint of any format.

    Args:
      path: a file or a folder.
      template: a pytree of the stored structure, which Equinox's files need.
      step: the number of a manager's step.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is of no known format, or damaged.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no checkpoint at {str(path)!r}{_beside(path)}"
        )
    stored = _told(path, lambda: _opened(path, template, step))

    def read(keys: Mapping[str, NamedSharding | None]) -> dict[str, Any]:
        return _told(path, lambda: stored.read(keys))

    return dataclasses.replace(stored, read=read)


def _opened(path: Path, template: PyTree, step: int | None) -> Stored:
    if path.is_dir():
        if is_pytree(path) or items_of(path) or steps_of(path):
            return open_orbax(path, step)
        raise _unknown(path, f"a folder that holds {_content(path)}")
    if step is not None:
        raise ValueError(
            f"step = {step}, but {str(path)!r} is a file: steps are folders of Orbax"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"PK\x03\x04":
        return _opened_archive(path)
    if head[:6] == b"\x93NUMPY":
        return open_equinox(path, template)
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        raise _refused(path, _KERAS)
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < size:
        return of_keys(SAFETENSORS, safetensors_arrays(path))
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        raise _refused(path, _PICKLE)
    if head and head[0] in _DICTIONARIES:
        return open_msgpack(path)
    raise _unknown(path, f"a file of {size} bytes that begins with {head!r}")


def _opened_archive(path: Path) -> Stored:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        raise _refused(path, _TORCH)
    if all(name.endswith(".npy") for name in names):
        return of_keys(NPZ, npz_arrays(path))
    raise _unknown(path, f"an archive of {names[:5]}")


def _told(path: Path, work: Callable[[], T]) -> T:
    """Does work with a checkpoint; what is wrong with it is told with its name."""
    try:
        return work()
    except MemoryError:
        raise
    except Exception as error:  # Every library has its own.
        # Damaged numbers make the system refuse, too, but not by the file's name.
        if isinstance(error, OSError) and error.filename is not None:
            raise
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if repr(str(path))[1:-1] in text:
            raise
        raise ValueError(
            f"{str(path)!r} cannot be read, most likely because it is damaged or half "
            f"written ({text[:200]}): restore it from a copy or write it again"
        ) from error


def _beside(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f", nor a folder {str(folder)!r}: check the path"
    return f": {str(folder)!r} holds {_content(folder)}"


def _content(folder: Path) -> str:
    names = sorted(x.name for x in folder.iterdir())
    if not names:
        return "nothing"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{names[:6]}{more}"


def _unknown(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{str(path)!r} is {found}, in which no checkpoint was found. Looked for "
        f"{_LOOKED_FOR}"
    )


def _refused(path: Path, why: str) -> ValueError:
    return ValueError(f"{str(path)!r} is not read: {why}")
