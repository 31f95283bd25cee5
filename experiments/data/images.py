"""Encoded images, decoded; what cannot be decoded is named."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

# What Pillow raises for files that are damaged, of another kind, or far too large.
_FAULTS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def decode_image(data: bytes, name: str, channels: int = 3) -> np.ndarray:
    """Returns the pixels of an encoded image ``[height, width, channels]``, as bytes.

    Args:
      data: the file's content.
      name: the file, for messages.
      channels: 3 for colours, 1 for greys, whichever of these the file has.

    Raises:
      ValueError: if it cannot be decoded.
    """
    pixels = _decoded(data, name, "RGB" if channels == 3 else "L")
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_target(data: bytes, name: str) -> np.ndarray:
    """Returns the pixels of an encoded dense target, as they are stored.

    Args:
      data: the file's content.
      name: the file, for messages.

    Returns:
      ``[height, width]`` or ``[height, width, channels]``; of a palette, the numbers of
      its colours, which are classes.

    Raises:
      ValueError: if it cannot be decoded.
    """
    return _decoded(data, name, None)


def read_image(path: Path) -> np.ndarray:
    """Reads an image from a file; see :func:`decode_image`."""
    return decode_image(path.read_bytes(), str(path))


def read_target(path: Path) -> np.ndarray:
    """Reads a dense target from a file; see :func:`decode_target`."""
    return decode_target(path.read_bytes(), str(path))


def _decoded(data: bytes, name: str, mode: str | None) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image if mode is None else image.convert(mode))
    except _FAULTS as error:
        raise ValueError(
            f"{name} cannot be decoded ({error}): get this file again"
        ) from error
