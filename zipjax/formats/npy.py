"""Arrays in numpy's format: .npz files, and Equinox's, which are records in a row."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

from zipjax.formats.stored import MappedFile, StoredArray
from zipjax.types import Shape

_LOCAL_HEADER = 30  # Bytes before the name in a zip archive's header of a file.
_BFLOAT16 = np.dtype(jnp.bfloat16)


def npz_arrays(path: Path) -> dict[str, StoredArray]:
    """Returns the arrays of a .npz file by key; those not compressed are mapped.

    Raises:
      ValueError: if it holds pickled objects.
    """
    mapped = MappedFile(path)
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        return {
            info.filename.removesuffix(".npy"): _member(archive, file, info, mapped)
            for info in archive.infolist()
        }


def _member(
    archive: zipfile.ZipFile, file: IO[bytes], info: zipfile.ZipInfo, mapped: MappedFile
) -> StoredArray:
    with archive.open(info) as member:
        shape, fortran, dtype = npy_header(member)
        header = member.tell()
    if info.compress_type != zipfile.ZIP_STORED:
        path = Path(str(archive.filename))
        return StoredArray(shape, dtype, lambda: _unpacked(path, info.filename, dtype))
    file.seek(info.header_offset)
    lengths = struct.unpack("<HH", file.read(_LOCAL_HEADER)[26:])
    start = info.header_offset + _LOCAL_HEADER + sum(lengths) + header
    return npy_array(mapped, start, shape, fortran, dtype)


def _unpacked(path: Path, name: str, dtype: np.dtype) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False).view(dtype)


def npy_array(
    mapped: MappedFile, start: int, shape: Shape, fortran: bool, dtype: np.dtype
) -> StoredArray:
    """Returns the array of a record whose data begin at a byte of a file."""
    if fortran:
        turned = shape[::-1]
        return StoredArray(shape, dtype, lambda: mapped.array(start, turned, dtype).T)
    return StoredArray(shape, dtype, lambda: mapped.array(start, shape, dtype))


def npy_header(file: IO[bytes]) -> tuple[Shape, bool, np.dtype]:
    """Reads the header of a record.

    Returns:
      Shape, whether the data are in Fortran's order, and dtype; bfloat16, of which
      numpy writes only that it takes two bytes, is recognised.

    Raises:
      ValueError: if there is none, or if it holds pickled objects.
    """
    version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
    read: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array in numpy's format {version}, which is unknown")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("pickled objects are refused: a pickle can run any code")
    if dtype.kind == "V" and dtype.itemsize == _BFLOAT16.itemsize:
        dtype = _BFLOAT16
    return shape, fortran, dtype


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by key, one after the other, not compressed."""
    # Not np.savez: a key "file" or "allow_pickle" would be taken for its own argument.
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
