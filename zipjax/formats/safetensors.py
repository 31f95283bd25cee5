"""The safetensors format: a header in JSON, then the arrays' bytes.

Written from its specification: https://github.com/huggingface/safetensors.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from zipjax.formats.stored import MappedFile, StoredArray

_DTYPES = {
    "BOOL": np.bool_,
    **{
        f"{kind}{bits}": f"{kind.lower()}{bits // 8}"
        for kind in "IU"
        for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": f"f{bits // 8}" for bits in (16, 32, 64)},
    "C64": "c8",
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"


def safetensors_arrays(path: Path) -> dict[str, StoredArray]:
    """Returns the arrays of a .safetensors file by key, mapped.

    Raises:
      ValueError: if the file is damaged, or holds numbers of an unknown kind.
    """
    mapped = MappedFile(path)
    (length,) = struct.unpack("<Q", mapped.data(0, 8).tobytes())
    header = json.loads(mapped.data(8, length).tobytes())
    header.pop(_METADATA, None)
    return {key: _array(mapped, 8 + length, key, x) for key, x in header.items()}


def _array(
    mapped: MappedFile, base: int, key: str, x: Mapping[str, Any]
) -> StoredArray:
    if x["dtype"] not in _DTYPES:
        raise ValueError(
            f"{key!r} is of dtype {x['dtype']}, which JAX lacks: known are "
            f"{', '.join(_DTYPES)}"
        )
    dtype, shape = np.dtype(_DTYPES[x["dtype"]]), tuple(x["shape"])
    start, end = x["data_offsets"]
    if end - start != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise ValueError(f"{key!r} takes {end - start} bytes, not those of {shape}")
    return StoredArray(shape, dtype, lambda: mapped.array(base + start, shape, dtype))


def write_safetensors(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays by key, one after the other.

    Args:
      path: the file.
      arrays: by key.
      metadata: texts by name for the header.

    Raises:
      ValueError: if the format has no name for an array's dtype.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    start = 0
    # The widest first, so that every array lies on a boundary of its own numbers.
    order = sorted(arrays, key=lambda key: (-arrays[key].dtype.itemsize, key))
    for key in order:
        array = arrays[key]
        if array.dtype not in _NAMES:
            raise ValueError(
                f"{key!r} is of dtype {array.dtype}, which safetensors lacks: cast it"
            )
        offsets = [start, start + array.nbytes]
        name, shape = _NAMES[array.dtype], list(array.shape)
        header[key] = {"dtype": name, "shape": shape, "data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in order:
            array = np.require(arrays[key], requirements="C")
            file.write(array.reshape(-1).view(np.uint8).data)
