"""What results depend on besides their configuration: data, code and versions."""

import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from zipjax.types import AnyArray


def text_digest(text: str) -> str:
    """Returns a digest of a text."""
    return _short(hashlib.sha256(text.encode()))


def array_digest(*arrays: AnyArray) -> str:
    """Returns a digest of arrays: their types, shapes and values."""
    digest = hashlib.sha256()
    for array in map(np.asarray, arrays):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return _short(digest)


def code_digest(files: Iterable[Path]) -> str:
    """Returns a digest of source files: their names and contents."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return _short(digest)


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of packages by name."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _short(digest: Any) -> str:
    return digest.hexdigest()[:12]
