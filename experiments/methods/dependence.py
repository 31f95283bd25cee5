"""What moments and the rows of tables depend on, as JSON data."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import experiments
import zipjax
from experiments.data.splits import Split
from experiments.fingerprints import array_digest, code_digest, versions
from experiments.methods.merges import Setting
from experiments.methods.runner import Runner
from experiments.parents.tasks.suite import Suite, Task
from experiments.parents.train import Variables
from zipjax.evaluation import LOGIT_SCALE

_PACKAGE = Path(zipjax.__file__).parent
_EXPERIMENTS = Path(experiments.__file__).parent


# Saved moments with other fields are made again.
MOMENTS = ("count", "mean", "mean_tail", "m2", "earlier")


def of_moments(
    suite: Suite, models: Sequence[Variables], runner: Runner
) -> dict[str, Any]:
    """Returns what moments depend on, and the fields that are saved of them.

    Args:
      suite: the networks' tasks.
      models: the networks.
      runner: how networks are run.
    """
    folders = [_PACKAGE / name for name in ("tracing", "program", "similarity")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    files += [_PACKAGE / "batches.py", _PACKAGE / "positions.py"]
    return {
        **_shared(suite, models, runner),
        "images": _images(suite.measured),
        "fields": MOMENTS,
        "code": code_digest(files),
        "versions": versions("jax", "flax"),
    }


def of_rows(setting: Setting, runner: Runner, code: str) -> dict[str, Any]:
    """Returns what all rows of some networks depend on.

    Args:
      setting: the networks.
      runner: how networks are run.
      code: what :func:`code_of_rows` returned when the run began.
    """
    suite = setting.suite
    return {
        **_shared(suite, setting.models, runner),
        "calibration": _images(suite.calibration),
        "calibration_tasks": suite.calibration_tasks,
        "tests": _images(task.test for task in suite.tasks),
        "tasks": [_meaning(task) for task in suite.tasks],
        "ddof": runner.ddof,
        "code": code,
        "versions": versions("jax", "jaxlib", "flax", "numpy", "scipy"),
    }


def code_of_rows() -> str:
    """Returns a digest of all code but the report's."""
    report = _EXPERIMENTS / "report"
    files = [*_PACKAGE.rglob("*.py"), *_EXPERIMENTS.rglob("*.py")]
    return code_digest(file for file in files if report not in file.parents)


def _shared(
    suite: Suite, models: Sequence[Variables], runner: Runner
) -> dict[str, Any]:
    return {
        "source": zipjax.source_of(models, suite.specs),
        "batches": runner.batch_size,
        "positions": (runner.positions, jax.process_count()),
    }


def _meaning(task: Task) -> list[Any]:
    """Returns what the outputs of a task's network mean."""
    structure = jax.tree_util.tree_structure(task.objective)
    arrays = map(np.asarray, jax.tree_util.tree_leaves(task.objective))
    return [repr(task.network), str(structure), array_digest(*arrays), LOGIT_SCALE]


def _images(splits: Iterable[Split]) -> list[Any]:
    return [(split.digest(), split.pixels.mean, split.pixels.std) for split in splits]
