"""Runs an experiment: python -m experiments.run --config configs/digits.py.

A word after a colon, as in ``configs/digits.py:finetuned``, is the config's ``init``.

A second run in the same folder goes on where the first one ended, or was killed. It may
change any field but those that make another table, see `experiments.workdirs`. What the
user can mend is told in one line, and the exit code is 1.
"""

import errno
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from experiments.checks import check_config
from experiments.experiment import Experiment
from experiments.workdirs import claimed

_DEFAULT = Path(__file__).parent.parent / "configs" / "digits.py"
_ROOT = Path(__file__).parent.parent
# What a folder, a disk or a missing file may be the reason of.
_OF_FILES = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
}
_CONFIG = config_flags.DEFINE_config_file(
    "config", str(_DEFAULT), "The experiment's configuration.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for results; workdir/<config's name>[_init] by default."
)


def main(arguments: Sequence[str]) -> None:
    """Runs the configured experiment; what the user can mend is told in one line."""
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        if not _is_told(error):
            raise
        sys.exit(f"error: {_in_one_line(error)}")


def _in_one_line(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror} ({error.filename})"
    return " ".join(str(error).split())


def _is_told(error: ValueError | OSError) -> bool:
    """Returns whether an error speaks to the user: not one of a bug further in."""
    if isinstance(error, OSError):
        # Its text is written for the user if it has no number, as of missing data.
        return error.errno is None or error.errno in _OF_FILES
    raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return any(raised.is_relative_to(_ROOT / x) for x in ("experiments", "zipjax"))


def run(arguments: Sequence[str]) -> None:
    """Runs the configured experiment.

    Raises:
      ValueError: if the config, the folder, the data or the networks do not allow it.
      OSError: if files cannot be read or written.
    """
    if len(arguments) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(arguments[1:])}")
    if not flags.FLAGS["verbosity"].present:
        # The terminal is for progress and the table; --verbosity=0 shows the log too.
        logging.set_verbosity(logging.WARNING)
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    if _CONFIG.value.init != "scratch":
        name = f"{name}_{_CONFIG.value.init}"
    workdir = Path(_WORKDIR.value or Path("workdir") / name).absolute()
    check_config(_CONFIG.value)
    _join(_CONFIG.value.distributed)
    with claimed(workdir, _CONFIG.value):
        _keep_programs(workdir / "compiled")
        console = Console(quiet=jax.process_index() > 0)
        Experiment(_CONFIG.value, workdir, console).run()


def _join(place: str | None) -> None:
    """Joins the other processes; see the config's field ``distributed``.

    Raises:
      app.UsageError: if it is neither "auto" nor "host:port,count,number".
    """
    if place is None:
        return
    if place == "auto":
        jax.distributed.initialize()
        return
    address, *numbers = place.split(",")
    if len(numbers) != 2 or not all(x.isdecimal() for x in numbers):
        raise app.UsageError(
            f"config.distributed = {place!r}: pass 'auto', or 'host:port,count,number' "
            "with the address of process 0, how many there are, and this one's number"
        )
    jax.distributed.initialize(address, int(numbers[0]), int(numbers[1]))


def _keep_programs(folder: Path) -> None:
    """Keeps compiled programs for the next run, unless JAX is told where already."""
    # Where these cannot be kept, they are compiled again: nothing to warn of.
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation")
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


if __name__ == "__main__":
    app.run(main)
