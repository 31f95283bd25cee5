"""Moments beside forward passes, and beside the products that they need at least."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zipjax
from benchmarks.networks import Pair, pair
from benchmarks.timing import cpu_timed
from zipjax.similarity.gram import gram


def measure(smoke: bool) -> dict[str, Any]:
    """Returns ratios to the forward passes of both models.

    ``floor`` is that of the forward passes and the symmetric products of all samples.
    """
    if smoke:
        chosen = [pair("two blocks", 32, 16)]
    else:
        chosen = [pair("ResNet-20x4", 512, 256), pair("ViT-S", 32, 8, 224)]
    return {own.name: _ratios(own) for own in chosen}


def _ratios(own: Pair) -> dict[str, float]:
    forward = jax.jit(own.apply_fn)

    def forwards() -> list[Any]:
        return [forward(model, x) for x in own.batches for model in own.models]

    def moments(positions: Any) -> Any:
        return zipjax.collect_moments(
            own.apply_fn, own.models, own.spec, own.batches, positions=positions
        )

    def second(function: Any) -> tuple[Any, float]:
        jax.block_until_ready(function())
        return cpu_timed(function)

    _, passes = second(forwards)
    every, all_positions = second(lambda: moments("all"))
    # A sixteenth of the widest perm's samples, as of a larger set of images.
    widest = max(every.values(), key=lambda moment: moment.m2.shape[-1])
    most = int(np.max(widest.count)) // len(own.batches)
    _, few = second(lambda: moments(max(most // 16, 1)))
    products = jax.jit(gram)
    floor = passes
    for moment in every.values():
        samples = int(np.max(moment.count)) // len(own.batches)
        x = jnp.zeros((samples, moment.m2.shape[-1]), jnp.float32)
        floor += len(own.batches) * second(lambda x=x: products(x))[1]
    return {
        "floor": floor / passes,
        "moments of all positions": all_positions / passes,
        "moments of a sixteenth": few / passes,
        "forward CPU seconds": passes,
    }
