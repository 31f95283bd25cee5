"""Whether a diagnosis foretells what a partial zip keeps, on pairs of digits networks.

    python -m benchmarks.diagnosis [--seeds 5] [--workdir DIR]

For each pair of `configs/digits_resnet20.py`, whose settings count, all is zipped
and diagnosed on training images without labels. Then the zip stops at every cut, and is
scored on the test images. Prints means and standard deviations over the pairs, the rank
correlation over cuts of what was foretold with what came, and the cuts that the
diagnosis recommends beside the best ones within the same budgets.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from rich.console import Console
from scipy import stats

import zipjax
from configs import digits_resnet20
from experiments.experiment import Experiment
from experiments.parents.trained import Parents

BUDGETS = (1.3, 1.6, 1.9)


class Pair(NamedTuple):
    """What was foretold of a pair of networks, and what came.

    Attributes:
      found: the diagnosis of the zip of everything.
      refitted: that of the same zip after a refit.
      joint: the joint accuracy of a zip up to each of its cuts, in %.
    """

    found: zipjax.Diagnosis
    refitted: zipjax.Diagnosis
    joint: list[float]


def measured(experiment: Experiment, parents: Parents) -> Pair:
    """Diagnoses a pair, and merges it up to every cut."""
    runner, suite, models = experiment.runner, parents.suite, parents.models
    spec, batches = suite.spec, list(runner.inputs(suite))
    function = suite.tasks[0].apply_fn
    moments = zipjax.collect_moments(function, models, spec, batches, positions="all")
    assignments = zipjax.match(
        models, spec, zipjax.zipit(**experiment.config.zipit), moments=moments
    )

    def zipped(cut: zipjax.Cut | None = None) -> zipjax.Merged:
        own, stop_at = assignments, None
        if cut is not None:
            own, stop_at = {perm: own[perm] for perm in cut.perms}, cut.number
        merged = zipjax.merge_units(models, spec, own, stop_at=stop_at)
        return runner.calibrated(merged, suite)

    def joint(merged: zipjax.Merged) -> float:
        return 100 * (runner.evaluate(merged, suite).joint or 0.0)

    whole = zipped()
    fitted = zipjax.refit(function, models, whole, batches)
    found, refitted = (
        zipjax.diagnose(function, models, x, batches) for x in (whole, fitted)
    )
    return Pair(found, refitted, [joint(zipped(x.cut)) for x in found.cuts])


def lines(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yields the report's lines, in Markdown."""
    cuts = pairs[0].found.cuts
    explained = [[x.explained for x in pair.found.cuts] for pair in pairs]
    refitted = [[x.explained for x in pair.refitted.cuts] for pair in pairs]
    columns = (
        100 * np.array(explained),
        100 * np.array(refitted),
        np.array([pair.joint for pair in pairs]),
    )
    yield "| Zipped layers | Cost | Explained | After a refit | Joint |"
    yield "| ---: | ---: | ---: | ---: | ---: |"
    for number, own in enumerate(cuts):
        values = " | ".join(_spread(column[:, number]) for column in columns)
        yield f"| {own.cut.layers} | {own.cost:.2f} | {values} |"
    ranks = [
        np.corrcoef(stats.rankdata(own), stats.rankdata(pair.joint))[0, 1]
        for own, pair in zip(explained, pairs, strict=True)
    ]
    yield ""
    yield f"Rank correlation over cuts: {_spread(np.array(ranks), 2)}"
    yield ""
    yield "| Budget | Joint at the recommended cut | At the best cut |"
    yield "| ---: | ---: | ---: |"
    for budget in BUDGETS:
        chosen = [_joint_at(pair, budget) for pair in pairs]
        cells = (_spread(np.array(own)) for own in zip(*chosen, strict=True))
        yield f"| {budget} | " + " | ".join(cells) + " |"


def _joint_at(pair: Pair, budget: float) -> tuple[float, float]:
    """Returns the scores of the recommended and of the best cut within a budget."""
    scored = list(zip(pair.found.cuts, pair.joint, strict=True))
    recommended = pair.found.recommended(budget)
    (own,) = [joint for x, joint in scored if x.cut == recommended]
    return own, max(joint for x, joint in scored if x.cost <= budget)


def _spread(values: np.ndarray, digits: int = 1) -> str:
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.{digits}f} ± {deviation:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the report.

    Args:
      argv: command line, ``sys.argv[1:]`` if None.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workdir", type=Path)
    options = parser.parse_args(argv)
    config: Any = digits_resnet20.get_config()
    config.seeds = tuple(range(options.seeds))
    config.inferred = True  # With cuts inside the residual streams.
    with tempfile.TemporaryDirectory() as scratch:
        workdir = options.workdir or Path(scratch)
        experiment = Experiment(config, workdir, Console(stderr=True))
        pairs = [measured(experiment, parents) for parents in experiment.parents()]
    print("\n".join(lines(pairs)))


if __name__ == "__main__":
    flags.FLAGS([""])
    main()
