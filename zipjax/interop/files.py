"""State dictionaries in files; only PyTorch's own format needs PyTorch."""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zipjax.files import check_free, write_whole
from zipjax.formats.npy import npz_arrays, write_npz
from zipjax.formats.safetensors import safetensors_arrays, write_safetensors
from zipjax.formats.stored import StoredArray

StateDict = dict[str, np.ndarray]

_WRAPPERS = ("state_dict", "model")


def load_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Reads a state dictionary.

    Args:
      path: a ".safetensors" or ".npz" file, or PyTorch's ".pt", ".pth" or ".th", which
        need the extra ``torch``. If a PyTorch file holds a dictionary with the key
        "state_dict" or "model", that entry is read.

    Returns:
      Arrays by key. Values in bfloat16, which numpy lacks, become float32.

    Raises:
      ValueError: if the file is of another kind, or holds anything but arrays: pickled
        objects are refused, since they could run any code.
      ImportError: if PyTorch is missing, with the command that installs it.
    """
    read = _of_suffix(path, _READERS)
    try:
        state = read(Path(path))
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # Every library has its own.
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read: it is damaged, or it holds more than "
            "tensors, which is refused because a pickle can run any code "
            f"({type(error).__name__}). Save the network's state_dict() alone"
        ) from error
    return as_arrays(f"{os.fspath(path)!r}", state)


def save_state_dict(
    path: str | os.PathLike[str], state_dict: Mapping[str, Any]
) -> None:
    """Writes a state dictionary; the file appears only once it is complete.

    Args:
      path: a file ".safetensors" or ".npz" that does not exist yet.
      state_dict: arrays by key.

    Raises:
      ValueError: if the path exists, since nothing is overwritten, or its suffix is
        unknown.
    """
    write, target = _of_suffix(path, _WRITERS), Path(path).absolute()
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    arrays = as_arrays("the state dictionary", state_dict)
    write_whole(target, lambda file: write(file, arrays))


def as_arrays(what: str, state_dict: Any) -> StateDict:
    """Returns contiguous arrays by key, from arrays or tensors.

    Raises:
      ValueError: if anything else is among them.
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"{what} holds a {type(state_dict).__name__}, not tensors by key: pass the "
            "result of a network's state_dict()"
        )
    return {key: _as_array(what, key, value) for key, value in state_dict.items()}


def _as_array(what: str, key: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    array = np.asarray(value)
    if array.dtype.kind in "OUS" or not hasattr(value, "dtype"):
        raise ValueError(
            f"{key!r} in {what} is a {type(value).__name__}, not a tensor: keep the "
            "tensors only"
        )
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    # safetensors writes raw memory. ascontiguousarray would make scalars vectors.
    return np.require(array, requirements="C")


def _in_memory(arrays: Mapping[str, StoredArray]) -> StateDict:
    return {key: np.array(array.read()) for key, array in arrays.items()}


def _read_torch(path: Path) -> Any:
    # Before 2.6, PyTorch could be made to run code in spite of weights_only; the extra
    # requires 2.6.
    state = _import("torch").load(path, map_location="cpu", weights_only=True)
    for name in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            return state[name]
    return state


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": lambda path: _in_memory(safetensors_arrays(path)),
    ".npz": lambda path: _in_memory(npz_arrays(path)),
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".th": _read_torch,
}
_WRITERS: dict[str, Callable[[Path, StateDict], None]] = {
    # Other libraries require a framework's name.
    ".safetensors": lambda path, state: write_safetensors(
        path, state, {"format": "pt"}
    ),
    ".npz": write_npz,
}


def _of_suffix(path: str | os.PathLike[str], table: Mapping[str, Any]) -> Any:
    suffix = Path(path).suffix
    if suffix not in table:
        known = ", ".join(table)
        raise ValueError(f"{os.fspath(path)!r} ends in {suffix!r}: it can be {known}")
    return table[suffix]


def _import(module: str) -> Any:
    # By name: neither the type checker nor users of .npz files need the extra.
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is missing: pip install 'zipjax[torch]'"
        ) from error
