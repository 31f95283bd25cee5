"""The networks that are merged: trained here, or read from a folder of checkpoints."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import zipjax
from experiments.data import splits
from experiments.data.splits import Track
from experiments.fingerprints import array_digest, code_digest, versions
from experiments.parents import cache, train
from experiments.parents.tasks.kinds import Kind
from experiments.parents.tasks.suite import Suite, Task
from experiments.parents.train import Config, Variables, WriteScalars
from experiments.results import letter
from zipjax import hosts
from zipjax.evaluation import LOGIT_SCALE
from zipjax.interop.torch import from_flax, load_state_dict, to_flax
from zipjax.trees import nested, path_leaves, summary

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Parents:
    """Networks that are merged with each other.

    Attributes:
      name: their name in messages and files.
      suite: the tasks that they were trained on, one for each.
      models: their variables, as trained.
      letters: what tables call each of them.
      keys: PRNG keys of merging, by seed. Recipes that match perms in a random order
        run once for each.
    """

    name: str
    suite: Suite
    models: list[Variables]
    letters: Sequence[str]
    keys: Mapping[int, jax.Array]

    def subset(self, numbers: Sequence[int]) -> "Parents":
        """Returns some of the networks; all of them are the same as these."""
        if len(numbers) == len(self.models):
            return self
        return dataclasses.replace(
            self,
            name=f"{self.name}_{''.join(self.letters[k] for k in numbers)}",
            suite=self.suite.subset(numbers),
            models=[self.models[k] for k in numbers],
            letters=[self.letters[k] for k in numbers],
        )


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains networks, unless an earlier run did.

    Attributes:
      config: the experiment's configuration.
      kind: what networks are trained on.
      workdir: where trained networks and training curves go.
      track: wraps steps in a progress bar with a title.
      say: shows a message.
    """

    config: Config
    kind: Kind
    workdir: Path
    track: Track
    say: Callable[[str], None]

    def parents(self, seed: int) -> Parents:
        """Returns the networks of a seed, one per task."""
        config = self.config
        split_key, *keys, start_key, merge_key = keys_of(config, seed)
        suite = self.kind.suite(split_key)
        recipes = [
            config.own_train.get(task.name, config.train) for task in suite.tasks
        ]
        if config.init == "finetuned":
            every = self.kind.everything()
            name = f"seed{seed}_start"
            begun = self.given(every, start_key)
            common = self.trained(name, every, start_key, config.train, begun)
            starts = [common] * len(suite.tasks)
            recipes = [config.finetune] * len(suite.tasks)
        else:
            starts = [self.given(task, start_key) for task in suite.tasks]
        letters = [letter(number) for number in range(len(suite.tasks))]
        models = [
            self.trained(f"seed{seed}_{own}", task, key, recipe, start)
            for own, task, key, recipe, start in zip(
                letters, suite.tasks, keys, recipes, starts, strict=True
            )
        ]
        return Parents(f"seed{seed}", suite, models, letters, {seed: merge_key})

    def given(self, task: Task, key: jax.Array) -> Variables | None:
        """Returns what a task's network starts from, if the config names a file."""
        path = self.config.start
        return None if path is None else started(Path(path), task, key)

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
        title = f"train {name}"

        def make() -> Variables:
            options = (recipe, self.track, self.writer(name), title, start)
            what = task.network, task.train, task.objective, key
            return _of_first_process(lambda: train.train_network(*what, *options))

        inputs = {
            **_setting(task),
            "recipe": recipe.to_dict(),
            "key": jax.random.key_data(key).tolist(),
            "start": None if start is None else zipjax.source_of([start], task.spec),
        }
        variables, reused = cache.remember(self.workdir / "models" / name, inputs, make)
        if reused:
            self.say(f"{title}: reused from an earlier run")
        return variables

    def writer(self, name: str) -> WriteScalars:
        """Returns a writer of training curves: to TensorBoard if the config says so."""
        if not self.config.tensorboard:
            return lambda step, scalars: None
        # TensorFlow takes seconds to import and is an extra: "zipjax[tensorboard]".
        from clu import metric_writers

        writer = metric_writers.SummaryWriter(str(self.workdir / "tensorboard" / name))
        return writer.write_scalars


def pretrained(config: Config, suite: Suite) -> Parents:
    """Reads networks that were trained in PyTorch.

    The folder ``config.checkpoints`` holds their files, see :func:`checkpoint_files`,
    and what the kind of task reads there. The networks are the same for all seeds,
    which only draw the order in which recipes iterate.

    Args:
      config: the experiment's configuration.
      suite: the tasks of these networks.

    Raises:
      ValueError: if a checkpoint is of another network.
      OSError: if a file cannot be read.
    """
    folder = Path(config.checkpoints)
    letters = [letter(number) for number in range(len(suite.tasks))]
    models = [
        to_flax(task.network, load_state_dict(folder / name))
        for task, name in zip(suite.tasks, checkpoint_files(config), strict=True)
    ]
    keys = {seed: jax.random.key(seed) for seed in config.seeds}
    return Parents(folder.name, suite, models, letters, keys)


def checkpoint_files(config: Config) -> list[str]:
    """Returns the names of the networks' files in ``config.checkpoints``.

    They are those that the config lists, or else ``model_a.safetensors``,
    ``model_b.safetensors`` and so on.
    """
    letters = map(letter, range(config.num_tasks))
    usual = [f"model_{own.lower()}.safetensors" for own in letters]
    return list(config.checkpoint_files) or usual


def started(path: Path, task: Task, key: jax.Array) -> Variables:
    """Reads what networks start from: a file of PyTorch's, with another head or none.

    Parameters that the file lacks, or that have other shapes in it, are drawn; a
    warning names them.

    Args:
      path: the file.
      task: the task of one of the networks.
      key: PRNG key of what is drawn.

    Raises:
      ValueError: if the file has none of the network's parameters, or further ones.
      OSError: if it cannot be read.
    """
    variables = task.network.init(key, task.train.example())
    drawn = from_flax(task.network, dict(variables))
    found = load_state_dict(path)
    shapes = {name: np.shape(x) for name, x in found.items()}
    others = {name for name, x in drawn.items() if shapes.get(name) != np.shape(x)}
    if len(others) == len(drawn):
        raise ValueError(
            f"config.start = {str(path)!r} has the parameters {sorted(found)[:3]} and "
            f"so on, but the network's are {sorted(drawn)[:3]} and so on: pass a file "
            "of this network"
        )
    if others:
        _log.warning("%s gives no start for %s: drawn", path, summary(sorted(others)))
    kept = {name: x for name, x in found.items() if name not in others}
    return to_flax(task.network, {**drawn, **kept})


def keys_of(config: Config, seed: int) -> jax.Array:
    """Returns PRNG keys: of the split, of every network, of their start, of merging."""
    return jax.random.split(jax.random.key(seed), config.num_tasks + 3)


def _setting(task: Task) -> dict[str, Any]:
    """Returns what a training depends on besides its recipe, key and start."""
    split, network = task.train, task.network
    # With what lies beside them: objectives, for one, share their losses.
    parts = type(network), splits, type(task.objective)
    folders = {Path(inspect.getfile(part)).parent for part in parts}
    files = {file for folder in folders for file in folder.glob("*.py")}
    arrays = jax.tree_util.tree_leaves(task.objective)
    return {
        "code": code_digest([Path(__file__), Path(train.__file__), *sorted(files)]),
        "versions": versions("jax", "flax", "optax"),
        "network": repr(network),
        "examples": (split.digest(), len(split)),
        "pixels": (split.pixels.mean, split.pixels.std),
        "objective": (
            str(jax.tree_util.tree_structure(task.objective)),
            array_digest(*map(np.asarray, arrays)),
            LOGIT_SCALE,
        ),
    }


def _of_first_process(make: Callable[[], Variables]) -> Variables:
    """Returns variables that one process makes for all: others may round otherwise."""
    if jax.process_count() == 1:
        return make()
    return nested(hosts.once(lambda: jax.device_get(path_leaves(make()))))
