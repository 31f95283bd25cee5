"""The pipeline: train -> moments -> merge -> calibrate -> evaluate -> report."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track

import zipjax
from experiments import cache, data, pictures, report, tasks
from experiments.data import Split
from experiments.defaults import shrunk
from experiments.methods import Method, chosen_methods, spread_cuts
from experiments.networks import build
from experiments.results import Result, letter
from experiments.tasks import Task
from experiments.text_embeddings import load_class_embeddings
from experiments.train import Config, Variables, WriteScalars, train

Model: TypeAlias = Variables | zipjax.Merged
Row: TypeAlias = tuple[str, int | None, Callable[[], Model]]
"""A row's name, its number of zipped layers (if it is a zip), what makes the model."""

_TITLES = {"scratch": "from scratch", "finetuned": "fine-tuned"}
_NOTES = {
    "scratch": "The networks were trained from different initialisations, each on its "
    "own task, and merged without training.",
    "finetuned": "The networks were trained on their own tasks, all from one network "
    "that had been trained on all classes, and merged without training.",
    "split": "A task is to tell its share of the classes apart: every class belongs to "
    "one task. Joint: among the classes of all tasks.",
    "prime_odd": "Every image belongs to both tasks: whether the digit is prime (A), "
    "and whether it is odd (B). Joint: both answers are right.",
}
_CALIBRATION = (
    "Accuracies are on test images; moments and batch statistics come from training "
    "images, without labels; with labels, these choose the balance of MuDSC."
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all methods of one seed share."""

    seed: int
    tasks: list[Task]
    models: list[Variables]
    moments: dict[str, zipjax.Moments]
    key: jax.Array


class Experiment:
    """One configuration: its data, network and text embeddings.

    Attributes:
      config: the configuration.
      workdir: where trained networks, moments and the report go.
      console: where progress and the table are printed.
    """

    def __init__(self, config: Config, workdir: Path, console: Console) -> None:
        config = shrunk(config) if config.smoke else config
        self.config: Config = config
        self.workdir, self.console = workdir, console
        self.data = data.load(config.dataset, config.data_dir)
        if config.examples is not None:
            self.data = self.data.first(config.examples)
        self.calibration = self.data.train.take(slice(config.calibration_images))
        names, encoder = config.class_names or config.dataset, config.text_encoder
        _, self.embeddings = load_class_embeddings(names, encoder)
        self.network, self.spec = build(
            config.model, config.network.to_dict(), self.embeddings.shape[1]
        )
        self.apply_fn = self.network.apply
        self.methods = chosen_methods(config.rows)
        self.flops: dict[Any, float] = {}
        self.searches: dict[str, list[zipjax.Search]] = {}
        self.sweeps: dict[str, list[zipjax.Sweep]] = {}

    def run(self) -> list[Result]:
        """Runs every seed and writes the report."""
        results: list[Result] = []
        matched: list[report.Picture] = []
        for seed in self.config.seeds:
            setting = self.prepare(seed)
            rows = self.track(self.rows(setting), f"seed {seed}: merge and evaluate")
            for name, layers, make in rows:
                results.append(self.result(setting, name, layers, make()))
            matched = matched or self.unit_pictures(setting)
        path = report.write_report(
            results,
            [
                pictures.depth(results, self.spec.layers),
                *pictures.iterations(self.sweeps, self.searches),
                *matched,
            ],
            str(self.config),
            self.workdir,
            title=f"{self.config.title}, {_TITLES[self.config.init]}",
            notes=[_NOTES[self.config.init], _NOTES[self.config.tasks], _CALIBRATION],
        )
        report.print_table(results, self.console)
        self.console.print(f"Report: {path}")
        return results

    def prepare(self, seed: int) -> Setting:
        """Trains the networks of a seed and collects their moments, or loads them."""
        config, count = self.config, self.config.num_tasks
        split_key, *keys, start_key, merge_key = jax.random.split(
            jax.random.key(seed), count + 3
        )
        chosen = tasks.make_tasks(
            config.tasks, count, self.embeddings, config.text_encoder, split_key
        )
        start, recipe = None, config.train
        if config.init == "finetuned":
            every = tasks.all_classes(self.embeddings)
            start = self.trained(f"seed{seed}_start", every, start_key, recipe)
            recipe = config.finetune
        models = [
            self.trained(f"seed{seed}_{letter(number)}", task, key, recipe, start)
            for number, (task, key) in enumerate(zip(chosen, keys, strict=True))
        ]
        return Setting(seed, chosen, models, self.moments(seed, models), merge_key)

    def trained(
        self,
        name: str,
        task: Task,
        key: jax.Array,
        recipe: Config,
        start: Variables | None = None,
    ) -> Variables:
        """Returns the network of one task, drawn at random or from where to start."""
        title = f"train {name}"

        def make() -> Variables:
            split, targets = task.of(self.data.train), jnp.asarray(task.targets)
            write = self.scalar_writer(name)
            options = (recipe, self.track, write, title, start)
            return train(self.network, split, targets, key, *options)

        config = self.config
        inputs = (
            (config.dataset, config.examples, config.text_encoder),
            (config.model, config.network.to_dict(), recipe.to_dict()),
            (config.tasks, task.classes.tolist(), jax.random.key_data(key).tolist()),
            None if start is None else zipjax.source_of([start], self.spec),
        )
        variables, reused = cache.remember(self.workdir / "models" / name, inputs, make)
        self.say_if(reused, f"{title}: reused from an earlier run")
        return variables

    def moments(self, seed: int, models: list[Variables]) -> dict[str, zipjax.Moments]:
        """Returns the moments of all models' units on the calibration images."""
        title = f"seed {seed}: collect moments"
        size = self.config.batch_size

        def make() -> dict[str, Any]:
            batches = list(self.calibration.batches(size))
            moments = zipjax.collect_moments(
                self.apply_fn,
                models,
                self.spec,
                self.track(batches, title),
                inputs=lambda batch: batch[0],
            )
            return {perm: _fields(moment) for perm, moment in moments.items()}

        source = zipjax.source_of(models, self.spec)
        path = self.workdir / "moments" / f"seed{seed}"
        inputs = (self.config.dataset, len(self.calibration.labels), size, source)
        fields, reused = cache.remember(path, inputs, make)
        self.say_if(reused, f"{title}: reused from an earlier run")
        return {
            perm: zipjax.Moments(**fields[perm], source=source)
            for perm in self.spec.perms
        }

    def rows(self, setting: Setting) -> Iterator[Row]:
        """Yields the rows of the table."""
        for number, model in enumerate(setting.models):
            yield f"Model {letter(number)}", None, functools.partial(dict, model)
        merge = functools.partial(functools.partial, self.merged, setting)
        yield "Ensemble", 0, merge(zipjax.average(), stop_at=0)
        total = self.spec.layers
        for method in self.methods:
            if not method.partial:
                yield method.title, None, functools.partial(self.best, setting, method)
                continue
            recipe = method.recipe(self.config.zipit)
            yield f"{method.title} {total}/{total}", total, merge(recipe)
            for cut in spread_cuts(self.spec, self.config.cuts):
                name = f"{method.title} {cut.layers}/{total}"
                yield name, cut.layers, merge(recipe, stop_at=cut.number)

    def best(self, setting: Setting, method: Method) -> Model:
        """Merges all layers, with the balance that does best on training images."""
        zips = self.config.zipit
        if not method.balanced:
            return self.merged(setting, method.recipe(zips))

        def score(model: zipjax.Merged) -> float:
            calibrated = self.calibrated(model)
            return self.evaluate(calibrated, self.calibration, setting.tasks).average

        found = zipjax.search(
            setting.models,
            self.spec,
            functools.partial(method.recipe, zips),
            {"balance": self.config.balances},
            score,
            moments=setting.moments,
            key=setting.key,
        )
        self.searches.setdefault(method.title, []).append(found)
        return self.merged(setting, method.recipe(zips, **found.best.settings))

    def merged(
        self, setting: Setting, recipe: zipjax.Recipe, stop_at: int | None = None
    ) -> Model:
        """Merges the models and measures the batch statistics anew."""
        sweeps: list[zipjax.Sweep] = []
        model = zipjax.merge(
            setting.models,
            self.spec,
            recipe,
            moments=setting.moments,
            stop_at=stop_at,
            key=setting.key,
            report=sweeps.append,
        )
        if sweeps:
            self.sweeps.setdefault(recipe.name, sweeps)
        # What is not merged has the statistics that it was trained with.
        return model if stop_at == 0 else self.calibrated(model)

    def calibrated(self, model: zipjax.Merged) -> Model:
        """Measures the batch statistics of a merged model anew."""
        images = (x for x, _ in self.calibration.batches(self.config.batch_size))
        model = zipjax.reset_batch_stats(self.apply_fn, model, images)
        # One network is run like any other, so that it is compiled once.
        return model if model.heads else model.params()

    def result(
        self, setting: Setting, name: str, layers: int | None, model: Model
    ) -> Result:
        """Evaluates a row's model."""
        # Counting compiles the network; models of one structure cost the same.
        structure = jax.tree_util.tree_structure(model)
        if structure not in self.flops:
            image, _ = next(self.data.test.batches(1))
            self.flops[structure] = zipjax.flops(self.forward(model), model, image)
        scores = self.evaluate(model, self.data.test, setting.tasks)
        flops = self.flops[structure]
        return Result(name, setting.seed, flops, scores.joint, scores.tasks, layers)

    def evaluate(
        self, model: Model, split: Split, chosen: list[Task]
    ) -> zipjax.Evaluation:
        """Evaluates a model on the examples of all tasks."""
        forward = functools.partial(self.forward(model), model)
        return tasks.evaluate(forward, split, chosen, self.config.batch_size)

    def forward(self, model: Model) -> Callable[..., Any]:
        """Returns what maps a model and images to the output, or one a head."""
        if isinstance(model, zipjax.Merged):
            return functools.partial(zipjax.apply, self.apply_fn)
        return jax.jit(self.apply_fn)

    def unit_pictures(self, setting: Setting) -> list[report.Picture]:
        """Draws how the units of one seed were matched by ZipIt!."""
        recipe = zipjax.zipit(**self.config.zipit)
        assignments = zipjax.match(
            setting.models, self.spec, recipe, moments=setting.moments
        )
        # Groups and the units within them are no units of a whole layer.
        perms = self.spec.perms
        groups = {name for perm in perms.values() for name in perm.groups}
        alone = {
            perm: assignment
            for perm, assignment in assignments.items()
            if perm not in groups and not perms[perm].groups
        }
        where = f"Seed {setting.seed}."
        return pictures.matches(alone, setting.moments, len(setting.models), where)

    def scalar_writer(self, name: str) -> WriteScalars:
        """Returns what writes training curves: to TensorBoard if that is wanted."""
        if not self.config.tensorboard:
            return lambda step, scalars: None
        # TensorFlow takes seconds to import and is an extra: "zipjax[tensorboard]".
        from clu import metric_writers

        writer = metric_writers.SummaryWriter(str(self.workdir / "tensorboard" / name))
        return writer.write_scalars

    def track(self, steps: Iterable[Any], title: str) -> Iterable[Any]:
        """Shows a progress bar."""
        return track(list(steps), title, console=self.console, transient=True)

    def say_if(self, condition: bool, message: str) -> None:
        """Prints a message."""
        if condition:
            self.console.print(message, style="dim")


def _fields(moments: zipjax.Moments) -> dict[str, Any]:
    names = ("count", "mean", "mean_tail", "m2")
    return {name: getattr(moments, name) for name in names}
