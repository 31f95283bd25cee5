"""Times the steps of a merge of two ResNet-20s, each as a share of the whole.

    python benchmarks/bench_merging.py [--width 4] [--images 512] [--smoke]

Absolute seconds depend on the machine; the ratios of one run are what to compare.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import zipjax
from zipjax.models import resnet


def seconds(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """Returns the result with the seconds of the first call and of the next one."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    first = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, first - start, time.perf_counter() - first


def main() -> None:
    """Prints a table of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=4)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only")
    options = parser.parse_args()
    width, count = (0.5, 16) if options.smoke else (options.width, options.images)
    network = resnet.ResNet20(outputs=10, width=width)
    images = np.random.default_rng(0).normal(size=(count, 32, 32, 3)).astype("float32")
    models = [network.init(jax.random.key(seed), images[:1]) for seed in (0, 1)]
    spec = resnet.spec(network)
    batches = np.array_split(images, max(count // 128, 2))

    moments, *collecting = seconds(
        lambda: zipjax.collect_moments(network.apply, models, spec, batches)
    )
    recipe = zipjax.zipit(alpha=0.3, beta=0.125)
    assignments, *matching = seconds(
        lambda: zipjax.match(models, spec, recipe, moments=moments)
    )
    merged, *merging = seconds(lambda: zipjax.merge_units(models, spec, assignments))
    _, *resetting = seconds(
        lambda: zipjax.reset_batch_stats(network.apply, merged, batches)
    )

    steps = {
        "moments": collecting,
        "match (12 perms)": matching,
        "merge (einsum)": merging,
        "reset batch stats": resetting,
    }
    total = sum(again for _, again in steps.values())
    print(f"ResNet-20, width {width}, {count} images, {jax.devices()[0].device_kind}")
    print(f"{'step':20} {'first call':>10} {'again':>10} {'share':>7}")
    for name, (first, again) in steps.items():
        print(f"{name:20} {first:9.2f}s {again:9.2f}s {again / total:6.1%}")


if __name__ == "__main__":
    main()
