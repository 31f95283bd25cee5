"""Tasks on data sets of their own, each with a layer of logits (ZipIt!, Table 2).

Networks are merged before that layer: it stays with its task.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

import zipjax
from experiments.data.datasets import load_dataset
from experiments.data.framing import Framing
from experiments.data.sources import Arrays
from experiments.data.splits import Dataset, Split, Track
from experiments.parents.architectures import build
from experiments.parents.tasks.classes import cross_entropies
from experiments.parents.tasks.suite import Forward, Suite, Task
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
class DatasetsKind:
    """Suites of several data sets, or groups of their classes: "datasets".

    The config's ``datasets`` lists a name, a data set and some of its classes, () for
    all, for every task. With an ``image_size``, images in memory are brought to that
    many pixels a side and to three channels, so that one network reads all of them. A
    folder of trained networks holds nothing else.

    Attributes:
      config: the experiment's configuration.
      parts: every task's name and examples, labelled from 0 on.
    """

    config: Any
    parts: Sequence[tuple[str, Dataset]]

    note = (
        "Every task has a data set of its own, or a part of one, and a layer of logits "
        "that is not merged: networks are merged up to their last layer, or in part. A "
        "merged network is asked about each task with that task's logits."
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
        # Networks run at the width of their parameters: one function serves all tasks.
        shared, spec = build(*options, 1)
        tasks = []
        for name, data in self.parts:
            network, _ = build(*options, data.num_classes)
            train, test = data.train, data.test.take(slice(config.test_images))
            what = Logits(data.num_classes), network, shared.apply, spec
            tasks.append(Task(name, train, test, *what))
        images = config.calibration_images
        calibration = tuple(task.train.take(slice(images)) for task in tasks)
        return Suite(tuple(tasks), calibration)

    def everything(self) -> Task:
        """Refuses: there is no task of all.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "config.init = 'finetuned' needs one task of all classes, which several "
            "data sets do not have: use 'scratch'"
        )

    def pretrained(self, folder: Any) -> Suite:
        """Returns the tasks of the networks in a folder."""
        del folder
        return self.suite(jax.random.key(0))


def _part(
    config: Any, track: Track, name: str, dataset: str, classes: Sequence[int]
) -> tuple[str, Dataset]:
    """Returns one task's name and examples, labelled from 0 on."""
    folder = config.data_dirs.get(dataset, config.data_dir)
    data = load_dataset(dataset, folder, workers=config.workers, track=track)
    chosen = np.array(classes if len(classes) else range(data.num_classes))
    train, test = (_labelled(split, chosen) for split in (data.train, data.test))
    data = Dataset(train, test, len(chosen))
    if config.examples is not None:
        data = data.first(config.examples)
    if config.image_size is not None:
        train, test = (
            _resized(split, config.image_size, track, f"resize {name}")
            for split in (data.train, data.test)
        )
        data = Dataset(train, test, len(chosen))
    return name, data


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
