"""Tasks on data sets of their own, each with logits (ZipIt!, Table 2 and Section 4).

Networks are merged up to where they are the same: a layer of logits, or all that
follows the backbone of a network that labels pixels, stays with its task.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

import zipjax
from experiments.data.datasets import DATASETS, load_dataset
from experiments.data.framing import Framing
from experiments.data.sources import Arrays
from experiments.data.splits import LABEL, Dataset, Split, Track
from experiments.parents.architectures import build
from experiments.parents.tasks.classes import cross_entropies
from experiments.parents.tasks.segmentation import PixelLogits
from experiments.parents.tasks.separate import SeparateKind
from experiments.parents.tasks.suite import Forward, Objective, Suite, Task
from zipjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Logits:
    """Outputs that are the logits of classes.

    Attributes:
      classes: number of classes.
    """

    classes: int = dataclasses.field(metadata={"static": True})

    metric: ClassVar[str] = "accuracy"
    outside: ClassVar[float] = 0.0

    def losses(self, outputs: Array, targets: Array) -> Array:
        """Returns the cross-entropies with the labels."""
        return cross_entropies(outputs, targets)

    def figures(self, outputs: Array, targets: Array) -> dict[str, Array]:
        """Returns where the label has the largest logit."""
        return {"accuracy": outputs.argmax(-1) == targets}

    def score(self, forward: Forward, batches: Iterable[tuple[Any, Any]]) -> float:
        """Returns the accuracy."""
        return zipjax.evaluate(forward, batches, tasks=[range(self.classes)]).joint


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetsKind(SeparateKind[Suite]):
    """Suites of several data sets, or groups of their classes: "datasets".

    The config's ``datasets`` lists a name, a data set and some of its classes, () for
    all, for every task. Where the data set has masks, the task is to label pixels. With
    an ``image_size``, images in memory that are classified are brought to that many
    pixels a side and to three channels, so that one network reads all of them. A folder
    of trained networks holds nothing else.

    Attributes:
      config: the experiment's configuration.
      parts: every task's name, its examples, labelled from 0 on, and its objective.
    """

    config: Any
    parts: Sequence[tuple[str, Dataset, Objective]]

    @property
    def note(self) -> str:
        """What tables of these tasks show."""
        names = [name for name, *_ in self.config.datasets]
        chosen = [names[k] for k in self.config.calibration_tasks] or ["all tasks"]
        return (
            "Every task has a data set of its own, or a part of one, and a layer of "
            "logits that is not merged: networks are merged up to where they differ, "
            "or in part. A merged network is asked about each task with that task's "
            "head. Moments, and the batch statistics of what is shared, come from "
            f"images of {' and '.join(chosen)}. FLOPs are for an image of {names[0]}."
        )

    @classmethod
    def of(cls, config: Any, track: Track) -> "DatasetsKind":
        """Opens the data sets of a config."""
        return cls(config, [_part(config, track, *x) for x in config.datasets])

    def suite(self, key: jax.Array) -> Suite:
        """Returns the tasks, which are the same for all keys."""
        del key
        config = self.config
        options = config.model, config.network.to_dict()
        tasks = []
        for name, data, objective in self.parts:
            train, test = data.train, data.test.take(slice(config.test_images))
            network, _ = build(*options, data.num_classes, train.target)
            # Networks run at the width of their parameters: one function serves all
            # tasks of a kind.
            shared, spec = build(*options, 1, train.target)
            what = objective, network, shared.apply, spec
            tasks.append(Task(name, train, test, *what))
        images = config.calibration_images
        calibration = tuple(task.train.take(slice(images)) for task in tasks)
        chosen = tuple(config.calibration_tasks)
        return Suite(tuple(tasks), calibration, calibration_tasks=chosen)


def _part(
    config: Any, track: Track, name: str, dataset: str, classes: Sequence[int]
) -> tuple[str, Dataset, Objective]:
    """Returns one task's name, its examples, labelled from 0 on, and its objective."""
    folder = config.data_dirs.get(dataset) or config.data_dir
    data = load_dataset(dataset, folder, workers=config.workers, track=track)
    if config.examples is not None:
        data = data.first(config.examples)
    if data.train.target != LABEL:
        unlabelled = DATASETS[dataset].unlabelled
        none = int(PixelLogits.outside) if unlabelled is None else unlabelled
        return name, data, PixelLogits(data.num_classes, none)
    chosen = np.array(classes if len(classes) else range(data.num_classes))
    train, test = (_labelled(split, chosen) for split in (data.train, data.test))
    if config.image_size is not None:
        train, test = (
            _resized(split, config.image_size, track, f"resize {name}")
            for split in (train, test)
        )
    return name, Dataset(train, test, len(chosen)), Logits(len(chosen))


def _resized(split: Split, size: int, track: Track, title: str) -> Split:
    """Returns the same examples in memory, square and in colour."""
    framed = dataclasses.replace(split, framing=Framing(size, (size, size)))
    kept = framed.kept(track, title)
    images, _ = kept.read(np.arange(len(kept)))
    colours = np.broadcast_to(images, (*images.shape[:3], 3)).copy()
    return dataclasses.replace(kept, source=Arrays({"image": colours}))


def _labelled(split: Split, classes: np.ndarray) -> Split:
    """Returns the examples of some classes, numbered in their order."""
    part = split.take(np.isin(split.labels, classes))
    places = np.full(max(split.labels.max(), classes.max()) + 1, -1)
    places[classes] = np.arange(len(classes))
    return dataclasses.replace(part, labels=places[part.labels])
