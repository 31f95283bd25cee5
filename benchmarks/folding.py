"""Single networks, folded to a share of their widths: accuracy against cost.

    python -m benchmarks.folding --data_dir DIR --checkpoints DIR [--images 2000]

Folds each of the four CIFAR-10 ResNet-20s of `configs/cifar10_third_party.py`, whose
settings count, by activations and by weights, resets its batch statistics, or refits it
to the network that it was, and prints accuracies on test images: means and standard
deviations over the networks.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

import zipjax
from benchmarks.given import given_networks
from configs import cifar10_third_party
from experiments.experiment import Experiment
from experiments.methods.merges import plain
from experiments.parents.trained import Parents

SHARES = (0.75, 0.5, 0.25)
RECIPES = {"activations": zipjax.zipit, "weights": zipjax.weight_zip}


def folded(experiment: Experiment, own: Parents, share: float) -> dict[str, Any]:
    """Returns the variables of one network, folded in every way, by the ways' names.

    Args:
      experiment: says what images and settings are.
      own: the network.
      share: of its widths that is left.
    """
    runner, suite = experiment.runner, own.suite
    batches = list(runner.inputs(suite))
    moments = zipjax.collect_moments(suite.functions, own.models, suite.spec, batches)
    widths = {perm: round(share * n) for perm, n in suite.spec.sizes.items()}
    found = {}
    for name, recipe in RECIPES.items():
        merged = zipjax.merge(
            own.models,
            suite.spec,
            recipe(num_units=widths),
            moments=moments,
            key=jax.random.key(0),
        )
        merged = runner.calibrated(merged, suite)
        fitted = zipjax.refit(suite.functions, own.models, merged, batches)
        found |= {name: plain(merged), f"{name} + refit": plain(fitted)}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a Markdown table.

    Args:
      argv: command line, ``sys.argv[1:]`` if None.
    """
    counts = "calibration_images", "test_images"
    config = cifar10_third_party.get_config()
    experiment, parents = given_networks(config, counts, __doc__, argv)
    networks = [parents.subset([number]) for number in range(len(parents.models))]

    def scores(own: Parents, model: Any) -> float:
        found = experiment.runner.evaluate(model, own.suite, 0)
        return 100 * (found.tasks[0] or 0.0)

    def row(share: float, values: dict[str, list[float]], cost: float) -> None:
        cells = [f"{np.mean(x):.1f} ± {np.std(x, ddof=1):.1f}" for x in values.values()]
        print(f"| {share:.0%} | {cost / 1e6:.1f} | " + " | ".join(cells) + " |")

    names = [f"{name}{end}" for name in RECIPES for end in ("", " + refit")]
    print("| Width | MFLOPs | " + " | ".join(names) + " |")
    print("| ---: |" + " ---: |" * (1 + len(names)))
    image = networks[0].suite.tasks[0].train.example()
    flops = functools.partial(zipjax.flops, networks[0].suite.tasks[0].apply_fn)
    full = [scores(own, own.models[0]) for own in networks]
    row(1.0, dict.fromkeys(names, full), flops(networks[0].models[0], image))
    for share in SHARES:
        ways = [folded(experiment, own, share) for own in networks]
        values = {
            name: [
                scores(own, way[name]) for own, way in zip(networks, ways, strict=True)
            ]
            for name in names
        }
        row(share, values, flops(ways[0][names[0]], image))


if __name__ == "__main__":
    flags.FLAGS([""])
    main()
