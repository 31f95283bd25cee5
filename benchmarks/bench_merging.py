"""Times the steps of a merge of two ResNet-20s, each as a share of the whole.

    python -m benchmarks.bench_merging [--width 4] [--images 512] [--smoke]

Absolute seconds depend on the machine; the ratios of one run are what to compare.
"""

from collections.abc import Callable
from typing import Any

import jax

import zipjax
from benchmarks.pair import make_pair, parser
from benchmarks.timing import timed


def main() -> None:
    """Prints a table of steps."""
    options = parser(__doc__).parse_args()
    if options.smoke:
        options.width, options.images = 0.5, 16
    pair = make_pair(options.width, options.images)
    apply_fn, models, spec = pair.network.apply, pair.models, pair.spec
    recipe = zipjax.zipit(alpha=0.3, beta=0.125)
    steps: dict[str, tuple[float, float]] = {}

    def step(name: str, function: Callable[..., Any], *arguments: Any, **named: Any):
        result, first = timed(function, *arguments, **named)
        _, again = timed(function, *arguments, **named)
        steps[name] = first, again
        return result

    moments = step(
        "moments", zipjax.collect_moments, apply_fn, models, spec, pair.batches
    )
    assignments = step(
        "match (12 perms)", zipjax.match, models, spec, recipe, moments=moments
    )
    merged = step("merge (einsum)", zipjax.merge_units, models, spec, assignments)
    reset = (apply_fn, merged, pair.batches)
    step("reset batch stats", zipjax.reset_batch_stats, *reset)
    print_steps(f"{pair.title}, {jax.devices()[0].device_kind}", steps)


def print_steps(title: str, steps: dict[str, tuple[float, float]]) -> None:
    """Prints a table.

    Args:
      title: the line above the table.
      steps: seconds of the first call and of the next one, by name.
    """
    total = sum(again for _, again in steps.values())
    print(title)
    print(f"{'step':20} {'first call':>10} {'again':>10} {'share':>7}")
    for name, (first, again) in steps.items():
        print(f"{name:20} {first:9.2f}s {again:9.2f}s {again / total:6.1%}")


if __name__ == "__main__":
    main()
