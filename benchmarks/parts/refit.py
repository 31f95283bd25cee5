"""A refit beside forward passes: CPU seconds, memory, compilations."""

from typing import Any

import jax

import zipjax
from benchmarks.networks import Pair, pair
from benchmarks.timing import compilations, cpu_timed, peak_megabytes


def measure(smoke: bool) -> dict[str, Any]:
    """Returns figures of a refit after a merge by position."""
    if smoke:
        return {own.name: _refit(own) for own in [pair("two blocks", 16, 16)]}
    return {own.name: _refit(own) for own in [pair("ResNet-20", 1500, 250)]}


def _refit(own: Pair) -> dict[str, Any]:
    merged = zipjax.merge(own.models, own.spec, zipjax.average())
    forward = jax.jit(own.apply_fn)

    def forwards() -> list[Any]:
        trees = [*own.models, merged.params()]
        return [forward(tree, x) for x in own.batches for tree in trees]

    jax.block_until_ready(forwards())
    _, passes = cpu_timed(forwards)
    before = peak_megabytes()
    with compilations() as compiled:
        _, seconds = cpu_timed(
            lambda: zipjax.refit(own.apply_fn, own.models, merged, own.batches)
        )
    return {
        "CPU s": seconds,
        "forward passes of all networks": seconds / passes,
        "MB above the forward passes": peak_megabytes() - before,
        "compilations": len(compiled),
    }
