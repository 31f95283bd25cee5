"""Moments beside forward passes, and beside the products that they need at least."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zipjax
from benchmarks.networks import Pair, pair
from benchmarks.timing import cpu_timed
from zipjax.similarity.gram import gram

Batches = Sequence[np.ndarray]


def measure(smoke: bool) -> dict[str, Any]:
    """Returns ratios to the forward passes of both models, of batches after the first.

    ``floor`` is that of the forward passes and the symmetric products of all samples.
    What is done once, however many images there are, is given in CPU seconds.
    """
    if smoke:
        chosen = [pair("two blocks", 32, 16)]
    else:
        chosen = [pair("ResNet-20x4", 512, 128), pair("ViT-S", 64, 8, 224)]
    return {own.name: _ratios(own) for own in chosen}


def _ratios(own: Pair) -> dict[str, float]:
    forward = jax.jit(own.apply_fn)

    def forwards(batches: Batches) -> list[Any]:
        return [forward(model, x) for x in batches for model in own.models]

    def moments(positions: Any) -> Callable[[Batches], Any]:
        return lambda batches: zipjax.collect_moments(
            own.apply_fn, own.models, own.spec, batches, positions=positions
        )

    each, _ = _split(forwards, own.batches)
    all_positions, once = _split(moments("all"), own.batches)
    found = moments("all")(own.batches[:1])
    samples = {perm: int(np.max(moment.count)) for perm, moment in found.items()}
    # A sixteenth of the widest perm's samples, as of a larger set of images.
    widest = max(found, key=lambda perm: found[perm].m2.shape[-1])
    few, _ = _split(moments(max(samples[widest] // 16, 1)), own.batches)
    products = jax.jit(gram)
    floor = each
    for perm, moment in found.items():
        x = jnp.zeros((samples[perm], moment.m2.shape[-1]), jnp.float32)
        floor += _second(lambda x=x: products(x))
    return {
        "floor": floor / each,
        "moments of all positions": all_positions / each,
        "moments of a sixteenth": few / each,
        "forward CPU seconds of a batch": each,
        "moments, CPU seconds once": once,
    }


def _split(function: Callable[[Batches], Any], batches: Batches) -> tuple[float, float]:
    """Returns the CPU seconds of each further batch, and those that are spent once."""
    half = len(batches) // 2
    few, many = (_second(lambda n=n: function(batches[:n])) for n in (half, 2 * half))
    return (many - few) / half, 2 * few - many


def _second(function: Callable[[], Any]) -> float:
    """Returns the CPU seconds of a second call, which compiles nothing."""
    jax.block_until_ready(function())
    return cpu_timed(function)[1]
