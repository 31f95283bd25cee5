"""Two ResNet-20s to merge, with images: what several benchmarks time."""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

import zipjax
from zipjax.models import resnet


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two untrained networks and images to collect moments from.

    Attributes:
      network: the ResNet-20.
      models: the variables of both.
      spec: their spec.
      batches: random images, in batches.
      title: width and number of images, for the head of a table.
    """

    network: resnet.ResNet20
    models: list[Any]
    spec: zipjax.PermutationSpec
    batches: list[np.ndarray]
    title: str


def make_pair(width: float, images: int) -> Pair:
    """Makes two networks of a width and that many images.

    Args:
      width: multiplies the channels of a ResNet-20.
      images: number of images, in at least two batches.
    """
    network = resnet.ResNet20(outputs=10, width=width)
    shape = (images, 32, 32, 3)
    drawn = np.random.default_rng(0).normal(size=shape).astype("float32")
    return Pair(
        network=network,
        models=[network.init(jax.random.key(seed), drawn[:1]) for seed in (0, 1)],
        spec=resnet.spec(network),
        batches=np.array_split(drawn, max(images // 128, 2)),
        title=f"ResNet-20, width {width}, {images} images",
    )


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a command line with the options of all benchmarks of a pair."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--width", type=float, default=4)
    found.add_argument("--images", type=int, default=512)
    found.add_argument("--smoke", action="store_true", help="a few seconds only")
    return found
