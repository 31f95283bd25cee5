"""Results that a run keeps for the next one."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.fingerprints import text_digest
from zipjax import checkpoints, hosts
from zipjax.files import write_text

# Of a checkpoint, in bytes: what orbax notes besides the arrays, in small files.
_OVERHEAD = 2**17

_log = logging.getLogger(__name__)


def remember(
    path: Path, inputs: Any, make: Callable[[], Any]
) -> tuple[dict[str, Any], bool]:
    """Returns a pytree of arrays from a checkpoint, or makes and saves it.

    A checkpoint that is damaged is made again, which the log tells.

    Args:
      path: the checkpoint's folder; a digest of ``inputs`` is added to its name, so
        that a result of other inputs is never mistaken for this one.
      inputs: JSON data that determine the result.
      make: computes it, the same in all processes.

    Returns:
      The pytree, always as it was restored from the checkpoint, and whether it existed
      already.

    Raises:
      OSError: if the checkpoint cannot be written.
    """
    target = target_of(path, inputs)
    # One process looks for all: what exists here may be what another has just begun.
    tree: Any = None

    def look() -> dict[str, np.ndarray]:
        nonlocal tree
        tree = _restored(target)
        return {"whole": np.array(tree is not None)}

    reused = bool(hosts.once(look)["whole"])
    if not reused:
        _replace(target, make(), json.dumps(inputs, sort_keys=True))
    if tree is None:
        tree, _ = checkpoints.load_tree(target)
    return tree, reused


def remember_figures(
    path: Path, inputs: Any, make: Callable[[], Any]
) -> tuple[Any, bool]:
    """Returns JSON data from a file, or makes and saves them.

    A file that is damaged is made again, which the log tells.

    Args:
      path: the file, without a suffix; a digest of ``inputs`` is added to its name, as
        :func:`remember` does.
      inputs: JSON data that determine the result.
      make: computes it, the same in all processes.

    Returns:
      The data, always as they are restored from the file, and whether it existed
      already.

    Raises:
      OSError: if the file cannot be written.
    """
    target = target_of(path, inputs)
    target = target.with_name(f"{target.name}.json")

    # The first process alone reads and writes, and tells the others what it found.
    def look() -> dict[str, np.ndarray]:
        text = _figures(target)
        return {} if text is None else {"text": np.frombuffer(text.encode(), np.uint8)}

    found = hosts.once(look)
    if found:
        return json.loads(found["text"].tobytes()), True
    text = json.dumps(made := make())
    kept = {"inputs": inputs, "figures": made}

    def write() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps({"digest": _digest_of(kept), **kept}, indent=1))

    _in_first_process(write)
    return json.loads(text), False


def _figures(target: Path) -> str | None:
    """Returns the data of a file as text; None if there is none, or not a whole one."""
    try:
        found = json.loads(target.read_text(encoding="utf-8"))
        kept = {name: found[name] for name in ("inputs", "figures")}
        whole = found["digest"] == _digest_of(kept)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        whole, kept = False, {}
    if not whole:
        _log.warning("made again: the file %r is damaged", str(target))
        return None
    return json.dumps(kept["figures"])


def _digest_of(kept: dict[str, Any]) -> str:
    return text_digest(json.dumps(kept, sort_keys=True))


def target_of(path: Path, inputs: Any) -> Path:
    """Returns the name of what these inputs determine."""
    text = json.dumps(inputs, sort_keys=True)
    return path.with_name(f"{path.name}_{text_digest(text)}")


def _restored(target: Path) -> dict[str, Any] | None:
    """Returns what a checkpoint holds; None if there is none, or not a whole one."""
    if not target.exists():
        return None
    try:
        return checkpoints.load_tree(target)[0]
    except ValueError as error:
        _log.warning("made again: %s", error)
        return None


def _replace(target: Path, tree: Any, text: str) -> None:
    """Saves a pytree under a name of its own, and then in place of what was there.

    A run that is killed in between leaves the old checkpoint, or none.
    """
    new = target.with_name(f".{target.name}.new")

    def clear() -> None:
        # With what orbax has of one that is half written.
        for path in new.parent.glob(f"{new.name}*"):
            shutil.rmtree(path)
        _check_space(new, tree)

    _in_first_process(clear)
    checkpoints.save_tree(new, tree, {"inputs": text})

    def move() -> None:
        if target.exists():
            shutil.rmtree(target)
        os.replace(new, target)

    _in_first_process(move)


def _check_space(target: Path, tree: Any) -> None:
    """Checks that a pytree fits on the disk: orbax would leave part of it there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves(tree))
    if shutil.disk_usage(target.parent).free < size + _OVERHEAD:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))


def _in_first_process(work: Callable[[], object]) -> None:
    """Does something to files in one process, while the others wait."""
    hosts.together(lambda: work() if jax.process_index() == 0 else None)
