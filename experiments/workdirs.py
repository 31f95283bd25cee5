"""A run's folder: one run at a time, and one config's results.

    workdir/config.json    which config the folder belongs to
    workdir/.lock          held by the process that writes here; of no meaning else
    workdir/models         trained networks, by what they depend on
    workdir/moments        moments, likewise, and how long they took
    workdir/rows           figures of every row, and what it tells the report, likewise
    workdir/compiled       compiled programs

A run that was killed leaves nothing half written: the next one goes on after the last
network, moments or row that was saved. Pictures are drawn again.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import jax

from experiments.parents.train import Config
from zipjax import hosts
from zipjax.files import write_text

T = TypeVar("T")

# What makes it another table: a second run with these in the same folder would replace
# results that it is no new version of. All other fields may change from run to run.
_IDENTITY = ("title", "dataset", "model", "tasks", "init", "smoke")


@contextlib.contextmanager
def claimed(workdir: Path, config: Config) -> Iterator[None]:
    """Holds a folder for one run; of several processes, the first one holds it.

    Args:
      workdir: the folder, made if it does not exist.
      config: the run's configuration.

    Raises:
      ValueError: if it is no folder that can be written to, if another run holds it, or
        if it has another config's results, in one line with the remedy.
    """
    with contextlib.ExitStack() as held:

        def claim() -> None:
            if jax.process_index() == 0:
                lock = held.enter_context(_opened(workdir))
                _lock(lock, workdir)
                _writing(workdir, lambda: _check_identity(workdir, config))

        hosts.together(claim)
        yield


def _opened(workdir: Path) -> IO[str]:
    def opened() -> IO[str]:
        workdir.mkdir(parents=True, exist_ok=True)
        return (workdir / ".lock").open("a+", encoding="utf-8")

    return _writing(workdir, opened)


def _writing(workdir: Path, write: Callable[[], T]) -> T:
    """Returns what a function does in a folder; what stops it is told in one line."""
    try:
        return write()
    except OSError as error:
        raise ValueError(
            f"the folder {str(workdir)!r} cannot be used ({error.strerror or error}): "
            "pass --workdir with one that can be written to and has space left"
        ) from error


def _lock(lock: IO[str], workdir: Path) -> None:
    """Locks an open file, as long as it is open and the process lives."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "just begun"
        raise ValueError(
            f"another run works in {str(workdir)!r} ({holder}): wait until it has "
            "ended, or pass another --workdir"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {os.uname().nodename}")
    lock.flush()


def _check_identity(workdir: Path, config: Config) -> None:
    """Checks whose results a folder has, and notes that they are this config's."""
    file, own = workdir / "config.json", {name: config[name] for name in _IDENTITY}
    if not file.exists():
        write_text(file, json.dumps(own, indent=1))
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        there = {name: found[name] for name in _IDENTITY}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(
            f"{str(file)!r} does not say whose results the folder has: pass another "
            "--workdir, or remove this file if they are this config's"
        ) from None
    other = [f"{k} = {there[k]!r}, not {own[k]!r}" for k in own if own[k] != there[k]]
    if other:
        raise ValueError(
            f"the folder {str(workdir)!r} has the results of another config "
            f"({'; '.join(other)}), which this run would replace: pass another "
            "--workdir"
        )
