"""The papers' CIFAR tables and the benchmarks on an accelerator, in eight minutes.

    python -m benchmarks.accelerator --data_dir DIR --out DIR
    python -m benchmarks.accelerator --smoke --out DIR     # on noise, also on a CPU

Trains five pairs of ResNet-20 x4 on CIFAR-10 in bfloat16, on a random split of the
classes each, for as many epochs as fit; merges them, and prints ZipIt!'s Table 1a
beside the paper's numbers. Then a pair of ResNet-20 x8 on CIFAR-100, Table 1b, if time
is left, and how fast the parts of a merge are: wall-clock seconds, in ratios to forward
passes and to plain products of matrices. Nothing is downloaded: DIR holds the data in
the form of TensorFlow Datasets.

Every part is added to ``DIR/accelerator.json`` when it is done. The settings of zips
are those of `configs/cifar10_resnet20.py`; nothing is chosen on test images.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

import zipjax
from benchmarks.networks import Pair, pair
from benchmarks.timing import timed
from configs import cifar10_resnet20, cifar100_resnet20
from experiments.experiment import Experiment
from experiments.parents.train import Config, train_network
from experiments.parents.trained import keys_of
from experiments.results import Result, summarise
from zipjax.files import write_text
from zipjax.markdown import markdown_table
from zipjax.similarity.gram import gram

ROWS = ("average", "git_rebasin", "permute", "zipit", "zipit_refit_ensemble")
PARTIAL = ("zipit", "zipit_refit_ensemble")

# ZipIt!, Tables 1a and 1b: joint accuracy and the average of both tasks', in percent.
PAPER = {
    "cifar10": {
        "Average": (43.0, 60.8),
        "Git Re-Basin": (46.2, 79.8),
        "Permute": (58.4, 87.4),
        "ZipIt! 20/20": (79.1, 92.1),
        "ZipIt! 13/20": (83.8, 94.6),
        "Ensemble": (87.4, 96.6),
    },
    "cifar100": {
        "Average": (17.0, 24.3),
        "Git Re-Basin": (40.9, 57.0),
        "Permute": (42.8, 61.0),
        "ZipIt! 20/20": (54.9, 68.0),
        "ZipIt! 13/20": (70.2, 80.2),
        "Ensemble": (73.5, 82.8),
    },
}

# What part of the minutes is for training; merging and compiling take the rest.
_TRAINING = {"cifar10": 0.45, "cifar100": 0.15}
_MOST_EPOCHS = 100
# What part of the minutes must be left for a part to begin.
_LEAST = {"cifar10": 0.0, "speed": 0.1, "cifar100": 0.3}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts one after the other, as long as there is time.

    Args:
      argv: command line, ``sys.argv[1:]`` if None.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--data_dir", help="folder of TensorFlow Datasets")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on noise")
    options = parser.parse_args(argv)
    clock = Clock(60 * options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"device": device()}
    print(json.dumps(found["device"]), flush=True)
    parts = {
        "cifar10": lambda: table("cifar10", options, clock),
        "speed": lambda: speed(smoke=options.smoke),
    }
    if not options.smoke:  # The same code as CIFAR-10's.
        parts["cifar100"] = lambda: table("cifar100", options, clock)
    for name, part in parts.items():
        if clock.left() < _LEAST[name] * clock.seconds:
            found[name] = "no time was left"
        else:
            found[name] = part()
        found["seconds"] = clock.seconds - clock.left()
        text = json.dumps(found, indent=1) + "\n"
        write_text(options.out / "accelerator.json", text)


class Clock:
    """Tells how much of the time is left.

    Attributes:
      seconds: all of it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begun = time.monotonic()

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self.seconds - (time.monotonic() - self._begun)


def device() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    first = jax.devices()[0]
    return {
        "kind": first.device_kind,
        "platform": first.platform,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
    }


def table(dataset: str, options: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Trains and merges pairs; prints their table beside the paper's.

    Args:
      dataset: "cifar10" or "cifar100".
      options: the command line's.
      clock: tells how much time is left.

    Returns:
      The epochs of the training, the number of pairs, the seconds that everything
      took, and by method the means of the joint and the average accuracy, in percent.
    """
    begun = clock.left()
    config = chosen(dataset, options)
    console = Console()
    if not options.smoke:
        share = _TRAINING[dataset] * clock.seconds
        config.train.epochs = epochs_that_fit(config, options.out, share)
    folder = options.out / dataset
    results = Experiment(config, folder, console).run()
    own = compared(results, PAPER[dataset])
    pairs = len({result.seed for result in results})
    print(f"{dataset}: {config.train.epochs} epochs, {pairs} pairs\n")
    rows = [row(*x) for x in own.items()]
    print(markdown_table(("Method", *FIGURES), rows, text_columns=1), flush=True)
    return {
        "epochs": config.train.epochs,
        "pairs": pairs,
        "seconds": begun - clock.left(),
        "methods": own,
    }


def chosen(dataset: str, options: argparse.Namespace) -> Config:
    """Returns the config of a table."""
    module = {"cifar10": cifar10_resnet20, "cifar100": cifar100_resnet20}[dataset]
    config = module.get_config()
    config.network.width = {"cifar10": 4.0, "cifar100": 8.0}[dataset]
    config.classes = ()
    config.seeds = tuple(range(5)) if dataset == "cifar10" else (0,)
    config.data_dir, config.smoke = options.data_dir, options.smoke
    config.train.precision = "bfloat16"
    config.calibration_images, config.refit_images = 5000, 2000
    config.rows, config.partial_rows, config.cut_layers = ROWS, PARTIAL, (13,)
    if options.smoke:
        config.rows, config.partial_rows = ("zipit",), ()
    config.plane.points = 0
    return config


def epochs_that_fit(config: Config, out: Path, seconds: float) -> int:
    """Returns for how many epochs all networks can be trained in some seconds.

    An epoch is timed on the first network, after one in which everything compiles.
    """
    experiment = Experiment(config, out / "timed", Console(quiet=True))
    split_key, key, *_ = keys_of(config, config.seeds[0])
    task = experiment.kind.suite(split_key).tasks[0]
    recipe = config.train.copy_and_resolve_references()
    recipe.epochs = 3
    begun: list[float] = []

    def track(steps: Iterable[Any], title: str) -> Iterator[Any]:
        del title
        for step in steps:
            begun.append(time.perf_counter())
            yield step

    train_network(
        *(task.network, task.train, task.objective, key, recipe, track),
        *(lambda number, figures: None, "epochs are timed"),
    )
    # From the second epoch's beginning to the third's.
    each = begun[2] - begun[1]
    networks = len(config.seeds) * config.num_tasks
    return max(1, min(int(seconds / (each * networks)), _MOST_EPOCHS))


FIGURES = ("joint", "average", "joint, paper", "average, paper")


def compared(
    results: Sequence[Result], paper: Mapping[str, tuple[float, float]]
) -> dict[str, dict[str, float]]:
    """Returns joint and average accuracies by method, ours and the paper's."""
    found = {}
    for own in summarise(results):
        scores = [None if x is None else 100 * x.mean for x in (own.joint, own.average)]
        scores += paper.get(own.method, (None, None))
        named = zip(FIGURES, scores, strict=True)
        found[own.method] = {name: x for name, x in named if x is not None}
    return found


def row(method: str, scores: Mapping[str, float]) -> list[str]:
    """Returns a method's cells."""
    return [method, *(f"{scores[x]:.1f}" if x in scores else "" for x in FIGURES)]


def speed(*, smoke: bool) -> dict[str, Any]:
    """Returns how fast the parts of a merge are, by network."""
    if smoke:
        return {
            "products": products(256),
            "two blocks": steps(pair("two blocks", 8, 8)),
        }
    return {
        "products": products(8192),
        "ResNet-20x4": steps(pair("ResNet-20x4", 4096, 512)),
        "ResNet-50": steps(pair("ResNet-50", 512, 64, 224)),
        "ViT-B": steps(pair("ViT-B", 512, 64, 224)),
    }


def products(units: int) -> dict[str, float]:
    """Returns the rate of second moments beside that of plain products, in TFLOP/s.

    A second moment counts all of its products, of which about half are computed.
    """
    x = jax.random.normal(jax.random.key(0), (units, units))
    found = {}
    for name in ("float32", "bfloat16"):
        precision = {"float32": "highest", "bfloat16": "default"}[name]
        own = x.astype(name)
        plain = jax.jit(lambda a, p=precision: jnp.matmul(a.T, a, precision=p))
        second = jax.jit(lambda a, p=precision: gram(a, jax.lax.Precision(p)))
        for title, function in (("product", plain), ("second moment", second)):
            found[f"{title}, {name}"] = 2 * units**3 / fastest(function, own) / 1e12
    return found


def steps(own: Pair) -> dict[str, float]:
    """Returns the seconds of a merge's steps, without and with compilation."""
    forward = jax.jit(own.apply_fn)
    found: dict[str, float] = {}

    def step(name: str, function: Any) -> Any:
        result, found[f"{name}, with compilation"] = timed(function)
        found[name] = fastest(function)
        return result

    def collect(positions: Any) -> Any:
        return zipjax.collect_moments(
            own.apply_fn, own.models, own.spec, own.batches, positions=positions
        )

    step(
        "forward passes",
        lambda: [forward(model, x) for x in own.batches for model in own.models],
    )
    moments = step("moments of all positions", lambda: collect("all"))
    step("moments of few positions", lambda: collect("few"))
    recipe = zipjax.zipit(alpha=0.5)
    units = step(
        "matching", lambda: zipjax.match(own.models, own.spec, recipe, moments=moments)
    )
    merged = step("merge", lambda: zipjax.merge_units(own.models, own.spec, units))
    whole = merged.params()
    step(
        "statistics",
        lambda: zipjax.reset_batch_stats(own.apply_fn, whole, own.batches),
    )
    few = own.batches[:2]
    step("refit", lambda: zipjax.refit(own.apply_fn, own.models, merged, few))
    for name in ("moments of all positions", "moments of few positions"):
        found[f"{name} / forward passes"] = found[name] / found["forward passes"]
    memory = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        found["peak memory until here, GB"] = memory["peak_bytes_in_use"] / 1e9
    return found


def fastest(function: Any, *arguments: Any) -> float:
    """Returns the fewest seconds of two calls, after a first one."""
    jax.block_until_ready(function(*arguments))
    return min(timed(function, *arguments)[1] for _ in range(2))


if __name__ == "__main__":
    main()
