"""How matching grows with the number of units and of models."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import cpu_timed, exponent
from zipjax.matching.align import match_align
from zipjax.matching.zipping import match_zip

MATCHERS: dict[str, Callable[..., np.ndarray]] = {
    "zip": functools.partial(match_zip, alpha=0.3, beta=0.125, overwrite=True),
    "zip, beta 0": functools.partial(match_zip, beta=0.0, overwrite=True),
    "align": match_align,
}


def measure(smoke: bool) -> dict[str, Any]:
    """Returns CPU seconds by width, and the exponents of the growth."""
    widths = [64, 128, 256] if smoke else [1024, 2048, 4096, 8192]
    counts = [2, 4] if smoke else [2, 4, 8]
    found: dict[str, Any] = {}
    for name, matcher in MATCHERS.items():
        seconds = [_seconds(matcher, n, 2) for n in widths]
        by_models = [_seconds(matcher, widths[0] // 2, count) for count in counts]
        found[name] = {
            **{f"n = {n:,}": x for n, x in zip(widths, seconds, strict=True)},
            **{
                f"N = {count}, n = {widths[0] // 2:,}": x
                for count, x in zip(counts, by_models, strict=True)
            },
            "exponent of n": exponent(widths, seconds),
            "exponent of N": exponent(counts, by_models),
        }
    return found


def correlations(size: int, seed: int) -> np.ndarray:
    """Returns ``[size, size]`` correlations of random features that share factors.

    Args:
      size: number of units of all models.
      seed: of the random features.
    """
    rng = np.random.default_rng(seed)
    samples, factors = 256, 8
    shared = rng.normal(size=(size, factors)) @ rng.normal(size=(factors, samples))
    features = shared / factors + rng.normal(size=(size, samples))
    return np.asarray(np.corrcoef(features))


def _seconds(matcher: Callable[..., np.ndarray], units: int, models: int) -> float:
    similarity = correlations(units * models, seed=units)
    return cpu_timed(lambda: matcher(similarity, models))[1]
