"""Datasets, as arrays in memory."""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
    """Images ``[examples, height, width, channels]`` and labels ``[examples]``."""

    images: np.ndarray
    labels: np.ndarray

    def of_classes(self, classes: tuple[int, ...]) -> "Split":
        """Returns the examples of some classes."""
        chosen = np.isin(self.labels, classes)
        return Split(self.images[chosen], self.labels[chosen])

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields batches in order; the last one may be smaller."""
        for start in range(0, len(self.labels), size):
            stop = start + size
            yield self.images[start:stop], self.labels[start:stop]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test examples of numbered classes."""

    train: Split
    test: Split
    num_classes: int


def load(name: str) -> Dataset:
    """Loads a dataset by name.

    Raises:
      ValueError: if there is no dataset of that name.
    """
    loaders = {"digits": _digits}
    if name not in loaders:
        raise ValueError(f"dataset {name!r} is unknown: choose among {sorted(loaders)}")
    return loaders[name]()


def _digits() -> Dataset:
    """Handwritten digits, 8x8, shipped with scikit-learn; a quarter is for testing."""
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
