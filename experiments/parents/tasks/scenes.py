"""Taskonomy's tasks: encoders merged before their last layer (MuDSC, Section 4.2).

Every task has a decoder, which is not merged. Images are rendered here, or those of a
data set, for the tasks that need no more than an image.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import numpy as np

from experiments.data.datasets import DOMAINS, load_dataset
from experiments.data.pixels import Pixels
from experiments.data.sources import Arrays, Source
from experiments.data.sources import Fields as Stored
from experiments.data.splits import Split, Track
from experiments.fingerprints import text_digest
from experiments.parents.architectures import build
from experiments.parents.tasks.scaled import Categories, Distance, Scaled, ScaledImages
from experiments.parents.tasks.separate import SeparateKind
from experiments.parents.tasks.suite import Suite, Task, forwarded, process
from experiments.scenes.labels import NOISE, RANGES, SEGMENTS, image_only_labels
from experiments.scenes.scenes import OBJECT_CLASSES, input_of, render
from zipjax.models.taskonomy import SHRINKAGE

IMAGE_ONLY = ("edge_texture", "keypoints2d", "autoencoding", "denoising")
"""The tasks whose labels any image has."""

SCENES = "scenes"
"""The images that are rendered."""

TASKONOMY = "taskonomy"
"""Taskonomy's own images."""

STORED = tuple(name for name in RANGES if name in {*DOMAINS, *IMAGE_ONLY})
"""The tasks whose labels Taskonomy's images have."""

Fields: TypeAlias = Mapping[str, np.ndarray]
"""Images and their labels by name, one array of all examples each."""

Examples: TypeAlias = Callable[[str], Split]
"""Gives the examples of a task, by its name."""

_log = logging.getLogger(__name__)

_CODE = "encoder/code"
_PIXELS = Pixels((0.5,), (0.25,))
_BYTES = Pixels((127.5,), (127.5,))
_LABELLED_TOGETHER = 200

# A network with at least this part of the error of its outputs for other images hardly
# looks at its own.
_INDIFFERENT = 0.99


class Form(NamedTuple):
    """The outputs of a task's network.

    Attributes:
      outputs: number of channels or classes.
      decoder: the kind of decoder, see `experiments.parents.architectures`.
      objective: what the outputs mean.
    """

    outputs: int
    decoder: str
    objective: Scaled


def form_of(task: str) -> Form:
    """Returns the outputs of a task's network, by the task's name."""
    if task == "segment_semantic":
        count = len(SEGMENTS)
        return Form(count, "logits", ScaledImages(Categories(count, counted=True)))
    if task == "class_object":
        count = len(OBJECT_CLASSES)
        return Form(count, "classes", Scaled(Categories(count, counted=False)))
    channels = 3 if task in ("autoencoding", "denoising", "normal") else 1
    return Form(channels, "dense", ScaledImages(Distance(*RANGES[task])))


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderSuite(Suite):
    """Tasks with an encoder and a decoder; only encoders are merged."""

    @property
    def whole(self) -> int:
        """The number of the cut before the encoder's last layer."""
        return self.spec.stop(_CODE).number - 1

    def scaled(self, models: Sequence[Any], size: int) -> "EncoderSuite":
        """Returns the suite whose metrics are 1 for these networks.

        Args:
          models: the variables of every task's network.
          size: number of images in a batch.
        """
        tasks = []
        for task, model in zip(self.tasks, models, strict=True):
            objective = cast(Scaled, task.objective).scaled(
                functools.partial(forwarded, task.apply_fn, model),
                functools.partial(task.test.batches, size, *process()),
                _targets(task.train, size),
            )
            _check_learned(task.name, objective)
            tasks.append(dataclasses.replace(task, objective=objective))
        return dataclasses.replace(self, tasks=tuple(tasks))


def _check_learned(name: str, objective: Scaled) -> None:
    """Logs a network's error, and warns of one that no scale can be made of."""
    scale = objective.scale
    if scale is None:
        return
    _log.info(
        "%s: the network's error is %.4g, that of its outputs for other images %.4g, "
        "that of the mean of the training labels %.4g",
        *(name, scale.parent, scale.shuffled, scale.estimator),
    )
    remedy = "Train it for longer, or a larger network"
    if scale.parent >= scale.estimator:
        _log.warning(
            "%s: its network's error, %.4g, is no better than %.4g, which the mean of "
            "the training labels has: its scaled performances mean nothing. %s",
            *(name, scale.parent, scale.estimator, remedy),
        )
    elif scale.parent >= _INDIFFERENT * scale.shuffled:
        _log.warning(
            "%s: its network's error, %.4g, is hardly better than %.4g, which its "
            "outputs for other images have: it ignores its input, as a merge then may, "
            "too. Its scaled performances mean little. %s",
            *(name, scale.parent, scale.shuffled, remedy),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ScenesKind(SeparateKind[EncoderSuite]):
    """Suites of Taskonomy's tasks on one set of images: "scenes".

    The config's ``scenes`` names the tasks and the images.

    Attributes:
      config: the experiment's configuration.
      train: gives the training examples of a task, by its name.
      test: the same for testing.
    """

    config: Any
    train: Examples
    test: Examples

    note = (
        "Every task has a network of its own, an encoder and a decoder. Encoders are "
        "merged in pairs, all layers but the last; decoders are not. Scores are scaled "
        "performances (MuDSC, Eq. 9): 100 is as good as the task's own network, 0 no "
        "better than the mean of the training labels."
    )

    @classmethod
    def of(cls, config: Any, track: Track) -> "ScenesKind":
        """Renders, opens or labels the images of a config."""
        known = {SCENES: rendered, TASKONOMY: stored}
        opened = known.get(config.scenes.images, with_labels)
        return cls(config, *opened(config, track))

    def suite(self, key: jax.Array) -> EncoderSuite:
        """Returns the tasks, which are the same for all keys."""
        del key
        names = self.config.scenes.tasks
        tasks = tuple(map(self._task, names))
        images = slice(self.config.calibration_images)
        return EncoderSuite(tasks, tuple(task.train.take(images) for task in tasks))

    def _task(self, name: str) -> Task:
        config, form = self.config, form_of(name)
        sizes = config.network.to_dict()
        side = config.scenes.size // SHRINKAGE
        sizes |= {"decoder": form.decoder, "side": side}
        network, spec = build(config.model, sizes, form.outputs)
        train, test = (examples(name) for examples in (self.train, self.test))
        test = test.take(slice(config.test_images))
        what = form.objective, network, network.apply, spec
        return Task(name, train, test, *what)


def rendered(config: Any, track: Track) -> list[Examples]:
    """Renders scenes for training and for testing.

    Args:
      config: says how many and of which size.
      track: is not needed: they are rendered in one step.
    """
    del track
    chosen, found = config.scenes, []
    for number, count in enumerate((chosen.train, chosen.test)):
        fields = render(jax.random.key(number), count, chosen.size)
        found.append(functools.partial(_split, jax.device_get(fields)))
    return found


def with_labels(config: Any, track: Track) -> list[Examples]:
    """Labels images of a data set for training and for testing.

    Args:
      config: says which data set, where it is, and how many images.
      track: wraps the steps in a progress bar with a title.
    """
    return [
        functools.partial(_split, _labels(split, number))
        for number, split in enumerate(_chosen(config, track))
    ]


def stored(config: Any, track: Track) -> list[Examples]:
    """Opens Taskonomy's images for training and for testing.

    Args:
      config: says where they are, and how many of them are used.
      track: wraps the steps in a progress bar with a title.
    """
    return [functools.partial(_view, split) for split in _chosen(config, track)]


def _chosen(config: Any, track: Track) -> Iterator[Split]:
    """Yields a data set's images for training and for testing.

    They are spread over the data set, whose order is often that of places.
    """
    chosen = config.scenes
    options = {"workers": config.workers, "track": track}
    data = load_dataset(chosen.images, config.data_dir, **options)
    for split, count in ((data.train, chosen.train), (data.test, chosen.test)):
        places = np.linspace(0, len(split) - 1, min(count, len(split)))
        yield split.take(places.round().astype(int))


@dataclasses.dataclass(frozen=True)
class View:
    """Taskonomy's images with the inputs and targets of one task.

    Attributes:
      source: the images with their stored targets.
      task: the task's name. Targets that are stored become fractions of the largest
        value that can be, normals from -1 to 1; others are the images.
    """

    source: Source
    task: str

    def __len__(self) -> int:
        return len(self.source)

    def read(self, numbers: np.ndarray, fields: Sequence[str]) -> Stored:
        """Returns images, as they are stored or noisy, and their targets."""
        del fields
        names = ("image", *({self.task} & set(DOMAINS)))
        found = self.source.read(numbers, names)
        images = list(found["image"])
        targets = [_fractions(x, *RANGES[self.task]) for x in found[names[-1]]]
        if input_of(self.task) == "noisy":
            images = list(map(_noisy, images, numbers.tolist()))
        return {"image": images, self.task: targets}

    def digest(self, numbers: np.ndarray) -> str:
        """Returns a digest of the images and of the task."""
        return text_digest(f"{self.task} {self.source.digest(numbers)}")


def _fractions(target: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns a stored target in a range, with an axis of channels."""
    values = target.reshape(*target.shape[:2], -1).astype(np.float32)
    return low + (high - low) / np.iinfo(target.dtype).max * values


def _noisy(image: np.ndarray, number: int) -> np.ndarray:
    """Returns an image of bytes with noise, always the same for a number."""
    noise = np.random.default_rng(number).normal(0, 255 * NOISE, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _view(split: Split, task: str) -> Split:
    """Returns Taskonomy's examples of a task."""
    source = View(split.source, task)
    return dataclasses.replace(split, source=source, target=task, pixels=_BYTES)


def _labels(split: Split, number: int) -> Fields:
    """Returns images between 0 and 1 with the labels that they have on their own."""
    images, _ = split.read(np.arange(len(split)))
    found = []
    for start in range(0, len(images), _LABELLED_TOGETHER):
        key = jax.random.fold_in(jax.random.key(number), start)
        part = images[start : start + _LABELLED_TOGETHER].astype(np.float32) / 255
        found.append({"rgb": part, **image_only_labels(key, part)})
    return {k: np.concatenate([part[k] for part in found]) for k in found[0]}


def _split(fields: Fields, task: str) -> Split:
    """Returns the examples of a task."""
    images, labels = fields[input_of(task)], fields[task]
    numbers = np.arange(len(images))
    if labels.ndim == 1:
        return Split(Arrays({"image": images}), numbers, labels, _PIXELS)
    source = Arrays({"image": images, task: labels})
    none = np.zeros(len(images), int)
    return Split(source, numbers, none, _PIXELS, target=task)


def _targets(split: Split, size: int) -> Iterator[np.ndarray]:
    """Yields the targets of all examples in batches."""
    for start in range(0, len(split), size):
        _, targets = split.read(np.arange(start, min(start + size, len(split))))
        yield targets
