"""Times sweeps of MuDSC-Zip on two ResNet-20s, by what they do.

    python -m benchmarks.bench_mudsc [--width 4] [--sweeps 10] [--smoke]

Ten sweeps over all perms, however the objective goes. Absolute seconds depend on the
machine; the shares of one run are what to compare.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import numpy as np

import zipjax
from zipjax.models import resnet
from zipjax.recipes import match_and_merge as assign


class Stopwatch:
    """Adds up the seconds that named functions take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, its time counted under a name."""

        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = jax.block_until_ready(function(*args, **options))
            taken = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            return result

        return call


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Counts the parts of a match: they follow one another and do not nest."""
    parts = {
        "weight_similarity": "similarity of weights",
        "activation_similarity": "similarity of activations",
        "match_nest": "matching",
        "matched_similarity": "objective",
    }
    patches = [
        mock.patch.object(assign, name, watch.timed(title, getattr(assign, name)))
        for name, title in parts.items()
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        mock.patch.stopall()


def main() -> None:
    """Prints a table of parts, for a first call and the next one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=4)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only")
    options = parser.parse_args()
    width, sweeps = (0.25, 1) if options.smoke else (options.width, options.sweeps)
    network = resnet.ResNet20(outputs=10, width=width)
    images = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype("float32")
    models = [network.init(jax.random.key(seed), images[:1]) for seed in (0, 1)]
    spec = resnet.spec(network)
    moments = zipjax.collect_moments(network.apply, models, spec, [images])
    schedule = zipjax.Schedule(sweeps=sweeps, patience=sweeps)
    recipe = zipjax.mudsc(0.5, alpha=0.5, beta=1.0, schedule=schedule)
    print(f"ResNet-20, width {width}, up to {sweeps} sweeps")
    for title in ("first call", "again"):
        watch, done = Stopwatch(), []
        start = time.perf_counter()
        with watched(watch):
            assignments = zipjax.match(
                models,
                spec,
                recipe,
                moments=moments,
                key=jax.random.key(0),
                report=done.append,
            )
        matched = time.perf_counter() - start
        merge = watch.timed("merge (einsum)", zipjax.merge_units)
        merge(models, spec, assignments)
        total = matched + watch.seconds["merge (einsum)"]
        watch.seconds["the rest"] = total - sum(watch.seconds.values())
        print(f"{title}: {total:.2f} s, {len(done) - 1} sweeps")
        for name, seconds in watch.seconds.items():
            print(f"  {name:27} {seconds:7.2f} s {seconds / total:6.1%}")


if __name__ == "__main__":
    main()
