"""Taskonomy's tasks: encoders merged before their last layer (MuDSC, Section 4.2).

Every task has a decoder, which is not merged. Images are rendered here, or those of a
data set, for the tasks that need no more than an image.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias, cast

import jax
import numpy as np

from experiments.data.datasets import load_dataset
from experiments.data.pixels import Pixels
from experiments.data.sources import Arrays
from experiments.data.splits import Split, Track
from experiments.parents.architectures import build
from experiments.parents.tasks.scaled import Categories, Distance, Scaled, ScaledImages
from experiments.parents.tasks.suite import Suite, Task, forwarded, process
from experiments.scenes.labels import RANGES, SEGMENTS, image_only_labels
from experiments.scenes.scenes import OBJECT_CLASSES, input_of, render
from zipjax.models.taskonomy import SHRINKAGE

IMAGE_ONLY = ("edge_texture", "keypoints2d", "autoencoding", "denoising")
"""The tasks whose labels any image has."""

SCENES = "scenes"
"""The images that are rendered."""

Fields: TypeAlias = Mapping[str, np.ndarray]
"""Images and their labels by name, one array of all examples each."""

_CODE = "encoder/code"
_PIXELS = Pixels((0.5,), (0.25,))
_LABELLED_TOGETHER = 200


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

    def scaled(self, models: Sequence[Any], size: int) -> Self:
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
            tasks.append(dataclasses.replace(task, objective=objective))
        return dataclasses.replace(self, tasks=tuple(tasks))


@dataclasses.dataclass(frozen=True, eq=False)
class ScenesKind:
    """Suites of Taskonomy's tasks on one set of images: "scenes".

    The config's ``scenes`` names the tasks and the images.

    Attributes:
      config: the experiment's configuration.
      train: images for training with all their labels, by name.
      test: the same for testing.
    """

    config: Any
    train: Fields
    test: Fields

    note = (
        "Every task has a network of its own, an encoder and a decoder. Encoders are "
        "merged in pairs, all layers but the last; decoders are not. Scores are scaled "
        "performances (MuDSC, Eq. 9): 100 is as good as the task's own network, 0 no "
        "better than the mean of the training labels."
    )

    @classmethod
    def of(cls, config: Any, track: Track) -> "ScenesKind":
        """Renders or labels the images of a config."""
        if config.scenes.images == SCENES:
            return cls(config, *rendered(config.scenes))
        return cls(config, *labelled(config, track))

    def suite(self, key: jax.Array) -> EncoderSuite:
        """Returns the tasks, which are the same for all keys."""
        del key
        names = self.config.scenes.tasks
        tasks = tuple(map(self._task, names))
        images = slice(self.config.calibration_images)
        return EncoderSuite(tasks, tuple(task.train.take(images) for task in tasks))

    def everything(self) -> Task:
        """Refuses: there is no task of all.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "config.init = 'finetuned' needs one task of all classes, which tasks of "
            "different outputs do not have: use 'scratch'"
        )

    def pretrained(self, folder: Any) -> EncoderSuite:
        """Returns the tasks of the networks in a folder."""
        del folder
        return self.suite(jax.random.key(0))

    def _task(self, name: str) -> Task:
        config, form = self.config, form_of(name)
        sizes = config.network.to_dict()
        side = config.scenes.size // SHRINKAGE
        sizes |= {"decoder": form.decoder, "side": side}
        network, spec = build(config.model, sizes, form.outputs)
        train, test = (_split(own, name) for own in (self.train, self.test))
        test = test.take(slice(config.test_images))
        what = form.objective, network, network.apply, spec
        return Task(name, train, test, *what)


def rendered(chosen: Any) -> list[Fields]:
    """Renders scenes for training and for testing.

    Args:
      chosen: the numbers of them and their side.
    """
    return [
        jax.device_get(render(jax.random.key(number), count, chosen.size))
        for number, count in enumerate((chosen.train, chosen.test))
    ]


def labelled(config: Any, track: Track) -> list[Fields]:
    """Labels images of a data set for training and for testing.

    Args:
      config: says which data set, where it is, and how many images.
      track: wraps the steps in a progress bar with a title.
    """
    chosen = config.scenes
    data = load_dataset(chosen.images, config.data_dir, track=track)
    parts = (data.train, chosen.train), (data.test, chosen.test)
    return [
        _labels(split.take(slice(count)), number)
        for number, (split, count) in enumerate(parts)
    ]


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
