"""How many samples correlations need: assignments and accuracy against positions.

    python -m benchmarks.samples --data_dir DIR --checkpoints DIR [--images 2000]

Merges a pair of CIFAR-10 networks (see `configs/cifar10_resnet20.py`) with moments of
more and more positions, and prints how many units are matched as with all of them, over
all perms, and the joint accuracy on the test images. The last row compares all
positions of the first half of the images with all of the second: what other images
change, no number of positions can make good. Settings are the config's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import zipjax
from benchmarks.given import given_networks
from configs import cifar10_resnet20
from experiments.methods.merges import plain
from zipjax.positions import Positions

SAMPLES = [2**k for k in range(9, 18, 2)]


def agreement(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Returns the share of units that have the same partners in both assignments.

    Args:
      one: assignments by perm.
      other: the same of another match.
    """
    same = [_partners(one[perm]) == _partners(other[perm]) for perm in one]
    return float(np.mean(np.concatenate(same)))


def _partners(assignment: np.ndarray) -> np.ndarray:
    """Returns, for every unit, the set of units that it is merged with."""
    members = [frozenset(np.flatnonzero(assignment == m)) for m in assignment]
    found = np.empty(len(members), object)
    found[:] = members
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a Markdown table.

    Args:
      argv: command line, ``sys.argv[1:]`` if None.
    """
    config: Any = cifar10_resnet20.get_config()
    counts = ("calibration_images",)
    experiment, parents = given_networks(config, counts, __doc__, argv)
    runner, suite = experiment.runner, parents.suite
    batches = list(runner.inputs(suite))
    recipes = {
        "Permute": zipjax.permute(),
        "ZipIt!": zipjax.zipit(**config.zipit),
    }

    def matched(positions: Positions, own: list[Any]) -> dict[str, Any]:
        moments = zipjax.collect_moments(
            suite.functions, parents.models, suite.spec, own, positions=positions
        )
        return {
            name: zipjax.match(parents.models, suite.spec, recipe, moments=moments)
            for name, recipe in recipes.items()
        }

    def accuracy(assignments: Any) -> float:
        merged = zipjax.merge_units(parents.models, suite.spec, assignments)
        merged = plain(runner.calibrated(merged, suite))
        return 100 * (runner.evaluate(merged, suite).joint or 0.0)

    def row(title: str, found: dict[str, Any], against: dict[str, Any]) -> None:
        cells = [
            f"{100 * agreement(found[name], against[name]):.1f} | "
            f"{accuracy(found[name]):.1f}"
            for name in recipes
        ]
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)

    print("| Samples | " + " | ".join(f"{x}: agree | joint" for x in recipes) + " |")
    print("|---|" + "---|" * 2 * len(recipes))
    every = matched("all", batches)
    for samples in SAMPLES:
        row(f"{samples:,}", matched(max(samples // len(batches), 1), batches), every)
    row("all", every, every)
    half = len(batches) // 2
    row("all, half", matched("all", batches[:half]), matched("all", batches[half:]))


if __name__ == "__main__":
    flags.FLAGS([""])
    main()
