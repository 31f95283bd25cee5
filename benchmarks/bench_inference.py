"""Times the inference of specs, from shapes alone.

python -m benchmarks.bench_inference [--smoke]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import zipjax
from tests.zoo import sequences, vits
from tests.zoo.convnets import batch_norm


class ResNet50(nn.Module):
    """Bottleneck blocks with BatchNorm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the outputs."""
        x = nn.relu(batch_norm()(nn.Conv(64, (7, 7), strides=2)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate((3, 4, 6, 3)):
            width = 64 * 2**stage
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                y = nn.relu(batch_norm()(nn.Conv(width, (1, 1))(x)))
                y = nn.relu(batch_norm()(nn.Conv(width, (3, 3), strides=stride)(y)))
                y = batch_norm()(nn.Conv(4 * width, (1, 1))(y))
                if not block:
                    x = batch_norm()(nn.Conv(4 * width, (1, 1), strides=stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(1000)(x.mean((1, 2)))


class ViTB16(nn.Module):
    """ViT-B/16 with Linen's attention and a cls token."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the outputs."""
        x = nn.Conv(768, (16, 16), strides=16)(x).reshape(x.shape[0], -1, 768)
        token = self.param("cls", nn.initializers.zeros, (1, 1, 768))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        for _ in range(12):
            x = x + nn.MultiHeadDotProductAttention(12)(nn.LayerNorm()(x))
            y = nn.gelu(nn.Dense(3072)(nn.LayerNorm()(x)))
            x = x + nn.Dense(768)(y)
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


def _swin() -> nn.Module:
    return vits.Swin((2, 2, 6, 2), width=96, patch=4, window=7, head_dim=32)


IMAGES = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 128), jnp.int32)
MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "ResNet-50": (ResNet50, IMAGES),
    "ViT-B/16": (ViTB16, IMAGES),
    "Swin-T": (_swin, IMAGES),
    "decoder of 32 blocks": (lambda: sequences.Llama(32, rotary=False), TOKENS),
    "the same, rotary": (lambda: sequences.Llama(32), TOKENS),
}


def main() -> None:
    """Prints a table: perms, layers and seconds of every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the first model only")
    smoke = parser.parse_args().smoke
    for name in list(MODELS)[: 1 if smoke else None]:
        make, x = MODELS[name]
        model = make()
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        tracing = _seconds(jax.make_jaxpr(model.apply), params, x)
        jax.clear_caches()  # A function that was traced before is not traced again.
        total = _seconds(zipjax.infer_spec, model.apply, params, x)
        spec = zipjax.infer_spec(model.apply, params, x)
        print(f"{name:22} {len(spec.perms):4} perms {spec.layers:4} layers", end="")
        print(f"  {tracing:6.2f} s to a jaxpr  {total:6.2f} s in all", flush=True)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
