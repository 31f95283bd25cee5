"""How long matching takes as networks get wider.

    python -m benchmarks.bench_matching            # n = 256 .. 4096, two models
    python -m benchmarks.bench_matching --smoke    # seconds, for CI

Prints, for each matcher, the time t(n) and the ratio t(2n) / t(n) of the same run: 4 is
quadratic growth, 8 cubic. Similarities are correlations of random features that share a
few factors, as units of trained networks do.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.timing import timed
from zipjax.matching.align import match_align
from zipjax.matching.zipping import match_zip

MATCHERS: dict[str, Callable[..., np.ndarray]] = {
    "zip a=1 b=1": match_zip,
    "zip a=.3 b=.125": partial(match_zip, alpha=0.3, beta=0.125),
    "zip b=0": partial(match_zip, beta=0.0),
    "align": match_align,
}


def correlations(size: int, seed: int) -> np.ndarray:
    """Returns ``[size, size]`` correlations of random features.

    Args:
      size: number of units of all models.
      seed: of the random features.

    Returns:
      A symmetric matrix.
    """
    rng = np.random.default_rng(seed)
    samples, factors = 256, 8
    shared = rng.normal(size=(size, factors)) @ rng.normal(size=(factors, samples))
    features = shared / factors + rng.normal(size=(size, samples))
    return np.asarray(np.corrcoef(features))


def seconds(
    matcher: Callable[..., np.ndarray],
    similarity: np.ndarray,
    num_models: int,
    repeats: int,
) -> float:
    """Returns the shortest of a few runs: other work on the machine only adds.

    Args:
      matcher: the matcher to time.
      similarity: ``[N*n, N*n]``.
      num_models: number of models, N.
      repeats: number of runs.

    Returns:
      Wall-clock seconds.
    """
    return min(timed(matcher, similarity, num_models)[1] for _ in range(repeats))


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table.

    Args:
      argv: command line, ``sys.argv[1:]`` if None.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [256, 512, 1024, 2048, 4096]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    args = parser.parse_args(argv)
    if args.smoke:
        args.sizes, args.repeats = [16, 32], 1

    print(f"{'n':>6}" + "".join(f"{name:>24}" for name in MATCHERS))
    before: dict[str, tuple[int, float]] = {}
    for units in args.sizes:
        similarity = correlations(units * args.models, seed=units)
        line = f"{units:>6}"
        for name, matcher in MATCHERS.items():
            now = seconds(matcher, similarity, args.models, args.repeats)
            last_units, last = before.get(name, (0, 0.0))
            ratio = f"(x{now / last:5.1f})" if units == 2 * last_units else ""
            line += f"{now:>13.4f} s {ratio:>8}"
            before[name] = units, now
        print(line, flush=True)


if __name__ == "__main__":
    main()
