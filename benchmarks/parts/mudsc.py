"""MuDSC-Zip's sweeps: CPU seconds, what takes them, and compilations."""

from typing import Any

import jax

import zipjax
from benchmarks.networks import Pair, pair
from benchmarks.timing import compilations, cpu_timed


def measure(smoke: bool) -> dict[str, Any]:
    """Returns figures of one sweep and of three; moments are not counted."""
    if smoke:
        return {own.name: _sweeps(own, 1) for own in [pair("two blocks", 32, 16)]}
    chosen = [pair("ResNet-50", 64, 16, 64), pair("ViT-S", 16, 8, 224)]
    return {own.name: _sweeps(own, 3) for own in chosen}


def _sweeps(own: Pair, most: int) -> dict[str, Any]:
    moments = zipjax.collect_moments(own.apply_fn, own.models, own.spec, own.batches)

    def match(sweeps: int) -> Any:
        schedule = zipjax.Schedule(sweeps=sweeps, patience=sweeps)
        recipe = zipjax.mudsc(0.5, alpha=0.5, schedule=schedule)
        return zipjax.match(
            own.models, own.spec, recipe, moments=moments, key=jax.random.key(0)
        )

    with compilations() as compiled:
        _, first = cpu_timed(lambda: match(most))
    _, one = cpu_timed(lambda: match(1))
    return {
        "sweeps": most,
        "CPU s": first,
        "CPU s, of one": one,
        "compilations": len(compiled),
        "widths": len({moment.m2.shape[-1] for moment in moments.values()}),
    }
