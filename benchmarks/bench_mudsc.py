"""Times the parts of MuDSC-Zip's sweeps on two ResNet-20s.

    python -m benchmarks.bench_mudsc [--width 4] [--images 64] [--sweeps 10] [--smoke]

Ten sweeps over all perms, whether or not the objective improves. Absolute seconds
depend on the machine; the shares of one run are what to compare.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax

import zipjax
from benchmarks.pair import make_pair, parser
from benchmarks.timing import timed
from zipjax.recipes import problem
from zipjax.similarity.measures import WeightSpace


class Stopwatch:
    """Adds up the seconds that named functions take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, its time counted under a name."""

        def call(*args: Any, **options: Any) -> Any:
            result, taken = timed(function, *args, **options)
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            return result

        return call


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Counts the parts of a match: they follow one another and do not nest."""
    parts = [
        (problem, "activation_similarity", "similarity of activations"),
        (problem, "weight_rows", "rows of weights"),
        (WeightSpace, "of", "rows of weights"),
        (WeightSpace, "similarity", "similarity of weights"),
        (problem, "match_nest", "matching"),
        (WeightSpace, "matched", "objective"),
        (problem, "matched_similarity", "objective"),
    ]
    patches = [
        mock.patch.object(owner, name, watch.timed(title, getattr(owner, name)))
        for owner, name, title in parts
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        mock.patch.stopall()


def main() -> None:
    """Prints a table of parts, for a first call and the next one."""
    command_line = parser(__doc__)
    command_line.add_argument("--sweeps", type=int, default=10)
    command_line.set_defaults(images=64)
    options = command_line.parse_args()
    if options.smoke:
        options.width, options.sweeps = 0.25, 1
    pair = make_pair(options.width, options.images)
    models, spec = pair.models, pair.spec
    moments = zipjax.collect_moments(pair.network.apply, models, spec, pair.batches)
    schedule = zipjax.Schedule(sweeps=options.sweeps, patience=options.sweeps)
    recipe = zipjax.mudsc(0.5, alpha=0.5, beta=1.0, schedule=schedule)
    settings = {"moments": moments, "key": jax.random.key(0)}
    print(f"{pair.title}, up to {options.sweeps} sweeps")
    for title in ("first call", "again"):
        watch, done = Stopwatch(), []
        start = time.perf_counter()
        with watched(watch):
            assignments = zipjax.match(
                models, spec, recipe, report=done.append, **settings
            )
        watch.timed("merge (einsum)", zipjax.merge_units)(models, spec, assignments)
        total = time.perf_counter() - start
        watch.seconds["the rest"] = total - sum(watch.seconds.values())
        print(f"{title}: {total:.2f} s, {len(done) - 1} sweeps")
        for name, seconds in watch.seconds.items():
            print(f"  {name:27} {seconds:7.2f} s {seconds / total:6.1%}")


if __name__ == "__main__":
    main()
