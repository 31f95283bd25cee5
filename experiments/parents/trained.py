"""The networks that are merged: trained here, or read from a folder of checkpoints."""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import zipjax
from experiments.data import splits
from experiments.data.splits import Split
from experiments.fingerprints import array_digest, code_digest, versions
from experiments.parents import cache, tasks, train
from experiments.parents.tasks import Task
from experiments.parents.train import Config, Track, Variables, WriteScalars
from experiments.results import letter
from zipjax import hosts
from zipjax.evaluation import LOGIT_SCALE
from zipjax.interop.torch import load_state_dict, to_flax
from zipjax.trees import nested, path_leaves


@dataclasses.dataclass(frozen=True)
class Parents:
    """Networks that are merged with each other.

    Attributes:
      name: their name in messages and files.
      tasks: the task that each of them was trained on.
      models: their variables, as trained.
      calibration: training images for moments, batch statistics and searches.
      keys: PRNG keys of merging, by seed. Recipes that match perms in a random order
        run once for each.
    """

    name: str
    tasks: list[Task]
    models: list[Variables]
    calibration: Split
    keys: Mapping[int, jax.Array]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains networks, unless an earlier run did.

    Attributes:
      config: the experiment's configuration.
      network: the network that is trained.
      spec: its permutation spec.
      split: training examples of all classes.
      embeddings: text embeddings of all classes ``[classes, dim]``.
      workdir: where trained networks and training curves go.
      track: wraps steps in a progress bar with a title.
      say: shows a message.
    """

    config: Config
    network: nn.Module
    spec: zipjax.PermutationSpec
    split: Split
    embeddings: np.ndarray
    workdir: Path
    track: Track
    say: Callable[[str], None]

    def parents(self, seed: int) -> Parents:
        """Returns the networks of a seed, one per task."""
        config = self.config
        split_key, *keys, start_key, merge_key = _keys(config, seed)
        chosen = _tasks(config, self.embeddings, split_key)
        start, recipe = None, config.train
        if config.init == "finetuned":
            every = tasks.all_classes(self.embeddings)
            start = self.trained(f"seed{seed}_start", every, start_key, recipe)
            recipe = config.finetune
        models = [
            self.trained(f"seed{seed}_{letter(number)}", task, key, recipe, start)
            for number, (task, key) in enumerate(zip(chosen, keys, strict=True))
        ]
        calibration = self.split.take(slice(config.calibration_images))
        return Parents(f"seed{seed}", chosen, models, calibration, {seed: merge_key})

    def trained(
        self,
        name: str,
        task: Task,
        key: jax.Array,
        recipe: Config,
        start: Variables | None = None,
    ) -> Variables:
        """Returns the network of one task.

        Args:
          name: its name in messages and files.
          task: the task that it is trained on.
          key: PRNG key of the training.
          recipe: the training's settings.
          start: variables to start from; drawn at random if None.
        """
        split, title = task.of(self.split), f"train {name}"

        def make() -> Variables:
            targets = jnp.asarray(task.targets)
            options = (recipe, self.track, self.writer(name), title, start)
            return _of_first_process(
                lambda: train.train_network(self.network, split, targets, key, *options)
            )

        inputs = {
            **self.setting(split, task.targets),
            "recipe": recipe.to_dict(),
            "key": jax.random.key_data(key).tolist(),
            "start": None if start is None else zipjax.source_of([start], self.spec),
        }
        variables, reused = cache.remember(self.workdir / "models" / name, inputs, make)
        if reused:
            self.say(f"{title}: reused from an earlier run")
        return variables

    def setting(self, split: Split, targets: np.ndarray) -> dict[str, Any]:
        """Returns what a training depends on besides its recipe, key and start."""
        pixels, package = split.pixels, Path(inspect.getfile(type(self.network))).parent
        modules = [Path(inspect.getfile(module)) for module in (tasks, train)]
        folders = package, Path(inspect.getfile(splits)).parent
        files = [file for folder in folders for file in folder.glob("*.py")]
        return {
            "code": code_digest([Path(__file__), *modules, *files]),
            "versions": versions("jax", "flax", "optax"),
            "network": (self.config.model, self.config.network.to_dict()),
            "data": (self.config.dataset, len(split)),
            "examples": split.digest(),
            "pixels": (pixels.mean, pixels.std),
            "targets": (array_digest(targets), LOGIT_SCALE),
        }

    def writer(self, name: str) -> WriteScalars:
        """Returns a writer of training curves: to TensorBoard if the config says so."""
        if not self.config.tensorboard:
            return lambda step, scalars: None
        # TensorFlow takes seconds to import and is an extra: "zipjax[tensorboard]".
        from clu import metric_writers

        writer = metric_writers.SummaryWriter(str(self.workdir / "tensorboard" / name))
        return writer.write_scalars


def all_tasks(config: Config, embeddings: np.ndarray) -> list[Task]:
    """Returns the tasks of the networks of all seeds."""
    if config.classes:
        return _tasks(config, embeddings)
    keys = [_keys(config, seed)[0] for seed in config.seeds]
    return [task for key in keys for task in _tasks(config, embeddings, key)]


def pretrained(config: Config, network: nn.Module, split: Split) -> Parents:
    """Reads networks that were trained in PyTorch.

    The folder ``config.checkpoints`` holds ``model_a.safetensors``,
    ``model_b.safetensors`` and so on; ``class_embeddings.npy``, the targets of all
    classes ``[classes, dim]``; and ``train_ids.json``, the numbers of the calibration
    images in the training set, in the order in which they are used. The networks are
    the same for all seeds, which only draw the order in which recipes iterate.

    Args:
      config: the experiment's configuration; ``classes`` are those of each network.
      network: the network that the checkpoints are loaded into.
      split: training examples with their ids.

    Raises:
      ValueError: if the config names no classes, an image is not in the dataset, or a
        checkpoint is of another network.
      OSError: if a file cannot be read.
    """
    if not config.classes:
        raise ValueError(
            f"the config does not name the classes that the networks in "
            f"{config.checkpoints!r} know: set config.classes to those of every network"
        )
    folder = Path(config.checkpoints)
    numbers = json.loads((folder / "train_ids.json").read_text(encoding="utf-8"))
    ids = [f"train_{number:05d}" for number in numbers[: config.calibration_images]]
    read = functools.partial(_read, network, folder)
    return Parents(
        folder.name,
        _tasks(config, np.load(folder / "class_embeddings.npy")),
        [read(f"model_{letter(k).lower()}") for k in range(config.num_tasks)],
        _with_ids(split, ids),
        {seed: jax.random.key(seed) for seed in config.seeds},
    )


def _keys(config: Config, seed: int) -> jax.Array:
    """Returns PRNG keys: of the split, of every network, of their start, of merging."""
    return jax.random.split(jax.random.key(seed), config.num_tasks + 3)


def _of_first_process(make: Callable[[], Variables]) -> Variables:
    """Returns variables that one process makes for all: others may round otherwise."""
    if jax.process_count() == 1:
        return make()
    return nested(hosts.once(lambda: jax.device_get(path_leaves(make()))))


def _read(network: nn.Module, folder: Path, name: str) -> Variables:
    return to_flax(network, load_state_dict(folder / f"{name}.safetensors"))


def _tasks(
    config: Config, embeddings: np.ndarray, key: jax.Array | None = None
) -> list[Task]:
    """Makes the tasks: those of the config's classes, or drawn with a key."""
    if key is None or config.classes:
        return [tasks.some_classes(own, embeddings) for own in config.classes]
    return tasks.make_tasks(
        config.tasks, config.num_tasks, embeddings, config.text_encoder, key
    )


def _with_ids(split: Split, ids: list[str]) -> Split:
    """Returns the examples of these ids, in their order."""
    known = [] if split.ids is None else split.ids.tolist()
    places = {name: number for number, name in enumerate(known)}
    if missing := [name for name in ids if name not in places]:
        raise ValueError(
            f"train_ids.json names {len(missing)} images that are not among the "
            f"{len(places)} ids of the dataset, such as {missing[0]!r}: load the "
            "dataset that the networks were calibrated with"
        )
    return split.take(np.array([places[name] for name in ids], int))
