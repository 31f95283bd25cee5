"""Runs an experiment: python -m experiments.run --config configs/digits.py.

A word after a colon, as in ``configs/digits.py:finetuned``, is the config's ``init``.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from experiments.experiment import Experiment

_DEFAULT = Path(__file__).parent.parent / "configs" / "digits.py"
_CONFIG = config_flags.DEFINE_config_file(
    "config", str(_DEFAULT), "The experiment's configuration.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for results; workdir/<config's name>[_init] by default."
)


def main(arguments: Sequence[str]) -> None:
    """Runs the configured experiment."""
    if len(arguments) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(arguments[1:])}")
    if not flags.FLAGS["verbosity"].present:
        # The terminal is for progress and the table; --verbosity=0 shows the log too.
        logging.set_verbosity(logging.WARNING)
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    if _CONFIG.value.init != "scratch":
        name = f"{name}_{_CONFIG.value.init}"
    workdir = Path(_WORKDIR.value or Path("workdir") / name).absolute()
    _join(_CONFIG.value.distributed)
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
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


if __name__ == "__main__":
    app.run(main)
