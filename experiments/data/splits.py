"""Examples of a data set: chosen, in batches, shuffled."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import jax
import numpy as np

from experiments.data.framing import Framing
from experiments.data.pixels import PLAIN, Pixels
from experiments.data.sources import Arrays, Source
from experiments.data.streams import Reader, on_device, streamed
from experiments.fingerprints import array_digest, text_digest

Track: TypeAlias = Callable[[Iterable[int], str], Iterable[int]]
Batch: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Images as they are stored, and their labels or dense targets."""

LABEL = "label"
"""The target that is one class for a whole image."""

_DECODED_TOGETHER = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples of a data set.

    Attributes:
      source: where they are read from.
      numbers: which examples of the source these are.
      labels: ``[examples]``, the class of every image; 0 where images have none, only
        dense targets.
      pixels: how images are normalised.
      ids: the examples' names ``[examples]``, where the data set gives them any.
      target: what batches come with: "label", or the name of a dense target.
      framing: how images are brought to one size; None: they have one.
      reading: how the source is read in the background; None: it is in memory.
    """

    source: Source
    numbers: np.ndarray
    labels: np.ndarray
    pixels: Pixels = PLAIN
    ids: np.ndarray | None = None
    target: str = LABEL
    framing: Framing | None = None
    reading: Reader | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, chosen: np.ndarray | slice) -> "Split":
        """Returns some examples, by number, by a mask or by a slice."""
        ids = None if self.ids is None else self.ids[chosen]
        return dataclasses.replace(
            self, numbers=self.numbers[chosen], labels=self.labels[chosen], ids=ids
        )

    def first(self, count: int) -> "Split":
        """Returns the first examples of every class, at most ``count`` of each."""
        classes = np.unique(self.labels)
        first = [np.flatnonzero(self.labels == label)[:count] for label in classes]
        return self.take(np.sort(np.concatenate(first)))

    def example(self) -> jax.Array:
        """Returns the first image, normalised, as a batch of one."""
        image, _ = next(self.take(slice(1)).batches(1))
        return image

    def towards(self, target: str) -> "Split":
        """Returns the same examples with another target: "label", or a dense one."""
        return dataclasses.replace(self, target=target)

    def batches(
        self, size: int, number: int = 0, count: int = 1
    ) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """Yields normalised batches in order; the last one may be smaller.

        Args:
          size: number of images in a batch.
          number: the first batch.
          count: every which batch; processes that share the data take turns.
        """
        everything, starts = np.arange(len(self)), range(0, len(self), size)
        chosen = [everything[start : start + size] for start in starts]
        loaded = self._loaded(self.read, chosen[number::count])
        return on_device(loaded, self._normalised)

    def shuffled(
        self,
        size: int,
        key: jax.Array,
        epoch: int,
        *,
        number: int = 0,
        count: int = 1,
        start: int = 0,
    ) -> Iterator[Batch]:
        """Returns an epoch's batches in random order, for training.

        The order, and the part of an image that is cropped where images differ in
        size, follow from the key, the epoch and the example alone: neither threads nor
        where an epoch was begun matter. Examples that do not fill a batch of every
        process are left out.

        Args:
          size: number of images in a batch, of one process.
          key: PRNG key of all epochs.
          epoch: its number.
          number: this process, of those that share the data.
          count: number of these processes.
          start: batches that an earlier run has had; they are not read.

        Returns:
          An iterator of images as they are stored and their targets. That of a split
          which is not in memory has ``get_state()`` and ``set_state(state)``.
        """
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(self))
        steps = len(self) // (size * count) * count
        chosen = np.asarray(order)[: steps * size].reshape(steps, size)
        seed = (*jax.random.key_data(key).ravel().tolist(), epoch)
        read = functools.partial(self.read, seed=seed)
        return self._loaded(read, list(chosen[number::count][start:]))

    def read(self, places: np.ndarray, seed: tuple[int, ...] | None = None) -> Batch:
        """Reads some examples at once, of one size.

        Args:
          places: which of the split's examples.
          seed: what random crops follow from; None: the centre is cropped.

        Raises:
          ValueError: if an example cannot be decoded, naming the file.
        """
        numbers = self.numbers[places]
        dense = () if self.target == LABEL else (self.target,)
        names = ("image",) if self.target == LABEL else ("image", self.target)
        fields = self.source.read(numbers, names)
        columns = [fields[name] for name in names]
        if self.framing is not None:
            columns = _framed(self.framing, numbers, columns, seed)
        images, *dense = map(np.asarray, columns)
        return images, dense[0] if dense else self.labels[places]

    def kept(self, track: Track, title: str) -> "Split":
        """Returns the same examples in memory.

        Args:
          track: wraps the steps in a progress bar with a title.
          title: the title.
        """
        starts = range(0, len(self), _DECODED_TOGETHER)
        everything = np.arange(len(self))
        parts = [
            self.read(everything[start : start + _DECODED_TOGETHER])
            for start in track(starts, title)
        ]
        images, targets = map(np.concatenate, zip(*parts, strict=True))
        fields = {"image": images}
        if self.target != LABEL:
            fields[self.target] = targets
        return dataclasses.replace(
            self, source=Arrays(fields), numbers=everything, framing=None, reading=None
        )

    def digest(self) -> str:
        """Returns a digest of the examples, of their labels and of their size."""
        parts = (self.source.digest(self.numbers), array_digest(self.labels))
        return text_digest(repr((*parts, self.target, self.framing)))

    def _normalised(self, batch: Batch) -> tuple[jax.Array, np.ndarray]:
        images, targets = batch
        return self.pixels.normalised(images), targets

    def _loaded(
        self, read: Callable[[np.ndarray], Batch], chosen: Sequence[np.ndarray]
    ) -> Iterator[Batch]:
        if self.reading is None or not len(chosen):
            return map(read, chosen)
        return streamed(read, chosen, self.reading)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples for training and testing.

    Attributes:
      train: training examples.
      test: test examples.
      num_classes: classes of the images, or of their pixels; for other dense targets,
        the number of channels.
      validation: further examples, where the data set has any besides these.
    """

    train: Split
    test: Split
    num_classes: int
    validation: Split | None = None

    def first(self, count: int) -> "Dataset":
        """Returns the first examples of every class of all splits."""
        return self._with_each(lambda split: split.first(count))

    def normalised_by(self, mean: Sequence[float], std: Sequence[float]) -> "Dataset":
        """Returns the same examples, normalised otherwise.

        Args:
          mean: of the pixels, one number per channel or one for all; () for their own.
          std: their standard deviation, likewise.
        """

        def normalised(split: Split) -> Split:
            own = split.pixels
            pixels = Pixels(tuple(mean) or own.mean, tuple(std) or own.std)
            return dataclasses.replace(split, pixels=pixels)

        return self._with_each(normalised)

    def _with_each(self, change: Callable[[Split], Split]) -> "Dataset":
        validation = self.validation and change(self.validation)
        train, test = change(self.train), change(self.test)
        return Dataset(train, test, self.num_classes, validation)


def in_memory(
    images: np.ndarray,
    labels: np.ndarray,
    pixels: Pixels = PLAIN,
    ids: np.ndarray | None = None,
) -> Split:
    """Makes a split of arrays.

    Args:
      images: ``[examples, height, width, channels]``, as they are stored.
      labels: ``[examples]``.
      pixels: how images are normalised.
      ids: the examples' names ``[examples]``, if they have any.
    """
    source = Arrays({"image": images})
    return Split(source, np.arange(len(images)), labels, pixels, ids)


def _framed(
    framing: Framing,
    numbers: np.ndarray,
    columns: Sequence[Iterable[np.ndarray]],
    seed: tuple[int, ...] | None,
) -> list[np.ndarray]:
    """Returns images of one size, and their dense targets if these are there too."""
    framed = []
    for number, image, *targets in zip(numbers.tolist(), *columns, strict=True):
        height, width = image.shape[:2]
        if seed is None:
            box = framing.centre(height, width)
        else:
            random = np.random.default_rng((*seed, number))
            box = framing.drawn(height, width, random)
        parts = (framing.target(target, box) for target in targets)
        framed.append((framing.image(image, box), *parts))
    return [np.stack(column) for column in zip(*framed, strict=True)]
