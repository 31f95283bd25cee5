"""Times the inference of specs, from shapes alone.

python -m benchmarks.bench_inference [--smoke]
"""

import argparse
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import zipjax
from benchmarks.timing import timed
from benchmarks.zoo.decoder import Llama
from zipjax.models import resnet, swin, vit

IMAGES = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 128), jnp.int32)
MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "ResNet-50": (resnet.resnet50, IMAGES),
    "ViT-B/16": (vit.vit_base, IMAGES),
    "Swin-T": (swin.swin_tiny, IMAGES),
    "decoder of 32 blocks": (lambda: Llama(32, rotary=False), TOKENS),
    "the same, rotary": (lambda: Llama(32), TOKENS),
}


def main() -> None:
    """Prints a table: perms, layers and seconds of each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the first model only")
    smoke = parser.parse_args().smoke
    for name in list(MODELS)[: 1 if smoke else None]:
        make, x = MODELS[name]
        model = make()
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        _, tracing = timed(jax.make_jaxpr(model.apply), params, x)
        jax.clear_caches()  # A function that was traced before is not traced again.
        spec, total = timed(zipjax.infer_spec, model.apply, params, x)
        print(f"{name:22} {len(spec.perms):4} perms {spec.layers:4} layers", end="")
        print(f"  {tracing:6.2f} s to a jaxpr  {total:6.2f} s in all", flush=True)


if __name__ == "__main__":
    main()
