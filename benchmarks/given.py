"""Experiments on networks of a folder, as commands of benchmarks ask for them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.experiment import Experiment
from experiments.parents.trained import Parents


def given_networks(
    config: Any,
    counts: Sequence[str],
    description: str | None,
    argv: Sequence[str] | None,
) -> tuple[Experiment, Parents]:
    """Reads the command line, and the networks that it names.

    Args:
      config: the experiment's; its folders are set.
      counts: its fields that are set to the number of images.
      description: what the command does.
      argv: command line, ``sys.argv[1:]`` if None.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--checkpoints", required=True)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args(argv)
    config.data_dir, config.checkpoints = options.data_dir, options.checkpoints
    for field in counts:
        config[field] = options.images
    experiment = Experiment(config, Path("unused"), Console())
    (parents,) = experiment.parents()
    return experiment, parents
