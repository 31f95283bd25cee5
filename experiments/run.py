"""Runs an experiment: python -m experiments.run --config configs/digits.py.

A word after a colon, as in ``configs/digits.py:finetuned``, is the config's ``init``.
"""

from collections.abc import Sequence
from pathlib import Path

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
    Experiment(_CONFIG.value, workdir, Console()).run()


if __name__ == "__main__":
    app.run(main)
