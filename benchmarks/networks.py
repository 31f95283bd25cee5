"""Networks to time: two models each, random, with random images."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import zipjax
from zipjax.models import resnet, vit


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two untrained networks of one architecture, and images.

    Attributes:
      name: the architecture.
      apply_fn: the function of both.
      models: their parameters.
      spec: their spec.
      batches: random images, in batches.
    """

    name: str
    apply_fn: Callable[..., Any]
    models: list[Any]
    spec: zipjax.PermutationSpec
    batches: list[np.ndarray]


def pair(name: str, images: int, batch: int, side: int = 32) -> Pair:
    """Makes a pair.

    Args:
      name: "two blocks", "ResNet-20", "ResNet-20x4", "ResNet-50", "ViT-S" or "ViT-B".
      images: number of images.
      batch: number of images in a batch.
      side: their height and width.
    """
    networks: dict[str, tuple[Callable[[], Any], Any]] = {
        "two blocks": (
            lambda: resnet.ResNet(10, (1, 1), resnet.basic, width=0.25),
            resnet,
        ),
        "ResNet-20": (lambda: resnet.ResNet20(outputs=10), resnet),
        "ResNet-20x4": (lambda: resnet.ResNet20(outputs=10, width=4), resnet),
        "ResNet-50": (resnet.resnet50, resnet),
        "ViT-S": (vit.vit_small, vit),
        "ViT-B": (vit.vit_base, vit),
    }
    make, module = networks[name]
    network = make()
    drawn = np.random.default_rng(0).normal(size=(images, side, side, 3))
    drawn = drawn.astype(np.float32)
    init = jax.jit(network.init)
    return Pair(
        name,
        network.apply,
        [init(jax.random.key(seed), drawn[:1]) for seed in (0, 1)],
        module.spec(network),
        [drawn[k : k + batch] for k in range(0, images, batch)],
    )
