"""Datasets, as arrays in memory."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zipjax.types import AnyArray

NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100} | {
    f"noise{count}": count for count in (10, 100)
}
"""Of every dataset that :func:`load_dataset` knows."""

_DECODED_TOGETHER = 1000


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of the pixels, one number per channel or one for all.

    Hashable, so that it may be static data of a jitted function.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def normalised(
        self, images: AnyArray
    ) -> Float[jax.Array, "batch height width channels"]:
        """Returns images as networks see them, computed on the device."""
        return (jnp.asarray(images, jnp.float32) - jnp.array(self.mean)) / jnp.array(
            self.std
        )


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of a dataset.

    Attributes:
      images: ``[examples, height, width, channels]``, as they are stored.
      labels: ``[examples]``.
      pixels: how images are normalised.
      ids: the examples' names ``[examples]``, where the dataset gives them any.
    """

    images: np.ndarray
    labels: np.ndarray
    pixels: Pixels = Pixels()
    ids: np.ndarray | None = None

    def take(self, chosen: np.ndarray | slice) -> "Split":
        """Returns some examples, by number, by a mask or by a slice."""
        ids = None if self.ids is None else self.ids[chosen]
        return Split(self.images[chosen], self.labels[chosen], self.pixels, ids)

    def first(self, count: int) -> "Split":
        """Returns the first examples of every class, at most ``count`` of each."""
        classes = np.unique(self.labels)
        first = [np.flatnonzero(self.labels == label)[:count] for label in classes]
        return self.take(np.concatenate(first))

    def batches(
        self, size: int, number: int = 0, count: int = 1
    ) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """Yields normalised batches in order; the last one may be smaller.

        Args:
          size: number of images in a batch.
          number: the first batch.
          count: every which batch; processes that share the data take turns.
        """
        for start in range(0, len(self.labels), size)[number::count]:
            stop = start + size
            images = self.pixels.normalised(self.images[start:stop])
            yield images, self.labels[start:stop]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test examples of numbered classes."""

    train: Split
    test: Split
    num_classes: int

    def first(self, count: int) -> "Dataset":
        """Returns the first examples of every class of both splits."""
        train, test = self.train.first(count), self.test.first(count)
        return Dataset(train, test, self.num_classes)


def load_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Loads a dataset by name.

    Args:
      name: "digits" (ships with scikit-learn), "cifar10" or "cifar100" (prepared by
        TensorFlow Datasets as array_record files), or "noise10" and "noise100": random
        images in the shape of CIFAR's, to try out code that needs these.
      data_dir: the folder of TensorFlow Datasets; its own default if None.

    Raises:
      ValueError: if there is no dataset of that name.
      FileNotFoundError: if its files do not exist, with the command that makes them.
    """
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": _digits,
        "cifar10": functools.partial(_prepared, "cifar10", data_dir, _CIFAR10),
        "cifar100": functools.partial(_prepared, "cifar100", data_dir, _CIFAR100),
        "noise10": functools.partial(_noise, 10),
        "noise100": functools.partial(_noise, 100),
    }
    if name not in loaders:
        raise ValueError(f"dataset {name!r} is unknown: choose among {sorted(loaders)}")
    return loaders[name]()


def _digits() -> Dataset:
    """Returns scikit-learn's handwritten digits, 8x8; a quarter is for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = ((pixels - pixels.mean()) / pixels.std()).astype(np.float32)
    images = images.reshape(-1, 8, 8, 1)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0
    )
    return Dataset(
        Split(images[train], labels[train]), Split(images[test], labels[test]), 10
    )


_CIFAR10 = Pixels((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))
_CIFAR100 = Pixels((129.304, 124.070, 112.434), (68.170, 65.392, 70.418))


def _prepared(name: str, data_dir: str | None, pixels: Pixels) -> Dataset:
    """Reads a dataset of TensorFlow Datasets; TensorFlow is not needed."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if not builder.is_prepared():
        option = f" --data_dir={data_dir}" if data_dir else ""
        raise FileNotFoundError(
            f"dataset {name!r} is not in {builder.data_path}: download and prepare it "
            f"with `tfds build {name} --file_format=array_record{option}` (needs `pip "
            "install tensorflow`, which reading it does not), or name the folder that "
            "holds it with --config.data_dir"
        )
    sources: Any = builder.as_data_source()
    train, test = (_decoded(sources[split], pixels) for split in ("train", "test"))
    return Dataset(train, test, int(test.labels.max()) + 1)


def _decoded(source: Any, pixels: Pixels) -> Split:
    """Decodes all examples, many at once: this is several times faster."""
    examples = [
        example
        for start in range(0, len(source), _DECODED_TOGETHER)
        for example in source.__getitems__(
            range(start, min(start + _DECODED_TOGETHER, len(source)))
        )
    ]
    images, labels, ids = (
        np.array([example[field] for example in examples])
        for field in ("image", "label", "id")
    )
    return Split(images, labels, pixels, np.char.decode(ids))


def _noise(num_classes: int) -> Dataset:
    """Returns random images of CIFAR's shape, two of every class."""
    shape = (2 * num_classes, 32, 32, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = np.arange(2 * num_classes) % num_classes
    split = Split(images, labels, _CIFAR10)
    return Dataset(split, split, num_classes)
