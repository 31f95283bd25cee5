"""Writing files that are whole or do not exist."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Writes a file so that its name holds the old content or all of the new.

    Args:
      path: the file, in a folder that exists; or a folder that does not exist yet.
      write: writes the content to the temporary name beside it that it is given.

    Raises:
      OSError: if the file cannot be written; one that existed is unchanged.
    """
    target = Path(path)
    # One fixed name: what a killed run leaves is replaced by the next one.
    temporary = target.with_name(f".{target.name}.tmp")
    _discard(temporary)
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        _discard(temporary)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8; see :func:`write_whole`."""
    write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))


def check_free(path: Path) -> None:
    """Checks that nothing has this name.

    Raises:
      ValueError: if something does, since nothing is overwritten.
    """
    if path.exists():
        raise ValueError(
            f"{str(path)!r} exists already: choose another path, or remove it first"
        )
