"""The pipeline: train -> moments -> merge -> calibrate -> evaluate -> report."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

import zipjax
from experiments import cache, plots, report
from experiments.data import Dataset, Split, load
from experiments.results import Result, letter
from experiments.tasks import split_classes
from experiments.text_embeddings import load_class_embeddings
from experiments.train import Config, WriteScalars, train
from zipjax.models import mlp

Models: TypeAlias = list[dict[str, Any]]
Method: TypeAlias = tuple[str, int | None, Callable[[], Any]]
"""A row's name, its number of zipped layers (if it is a zip), what makes the model."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all methods of one seed share."""

    seed: int
    spec: zipjax.PermutationSpec
    tasks: tuple[tuple[int, ...], ...]
    models: Models
    moments: dict[str, zipjax.Moments]


class Experiment:
    """One configuration: its data, network and text embeddings.

    Attributes:
      config: the configuration.
      workdir: where trained networks, moments and the report go.
      console: where progress and the table are printed.
    """

    def __init__(self, config: Config, workdir: Path, console: Console) -> None:
        self.config, self.workdir, self.console = config, workdir, console
        self.data: Dataset = load(config.dataset)
        _, embeddings = load_class_embeddings(config.dataset, config.text_encoder)
        self.embeddings = jnp.asarray(embeddings)
        self.network = mlp.MLP(tuple(config.mlp.hidden), embeddings.shape[1])
        self.apply_fn = self.network.apply

    def run(self) -> list[Result]:
        """Runs every seed and writes the report."""
        results: list[Result] = []
        pictures: list[report.Picture] = []
        spec = mlp.spec(self.network)
        for seed in self.config.seeds:
            setting = self.prepare(seed, spec)
            rows = self.track(self.rows(setting), f"seed {seed}: merge and evaluate")
            for method, layers, make in rows:
                results.append(self.evaluate(setting, method, layers, make()))
            pictures = pictures or self.unit_pictures(setting)
        depth = plots.accuracy_against_depth(results, spec.layers)
        caption = (
            "Accuracy against the number of zipped layers: 0 is the ensemble, at the "
            "right everything is zipped. Bars: one standard deviation over seeds."
        )
        first = report.Picture(depth, caption, "Line plot of accuracy against depth")
        path = report.write_report(
            results,
            [first, *pictures],
            str(self.config),
            self.workdir,
            title=self.config.title,
            notes=[_tasks_note(self.config)],
        )
        report.print_table(results, self.console)
        self.console.print(f"Report: {path}")
        return results

    def prepare(self, seed: int, spec: zipjax.PermutationSpec) -> Setting:
        """Trains the networks of a seed and collects their moments, or loads them."""
        split_key, *keys = jax.random.split(
            jax.random.key(seed), self.config.num_tasks + 1
        )
        tasks = split_classes(self.data.num_classes, len(keys), split_key)
        models = [
            self.trained(seed, number, task, key)
            for number, (task, key) in enumerate(zip(tasks, keys, strict=True))
        ]
        return Setting(seed, spec, tasks, models, self.moments(seed, models, spec))

    def trained(
        self, seed: int, number: int, task: tuple[int, ...], key: jax.Array
    ) -> dict[str, Any]:
        """Returns the network of one task."""
        title = f"seed {seed}: train model {letter(number)}"

        def make() -> dict[str, Any]:
            chosen = self.data.train.of_classes(task)
            split = Split(chosen.images, np.searchsorted(task, chosen.labels))
            targets = self.embeddings[np.asarray(task)]
            config = self.config.train
            write = self.scalar_writer(f"seed{seed}_{letter(number)}")
            return train(
                self.network, split, targets, key, config, self.track, write, title
            )

        inputs = (
            self.config.dataset,
            self.config.text_encoder,
            self.config.mlp.to_dict(),
            self.config.train.to_dict(),
            task,
            seed,
        )
        path = self.workdir / "models" / f"seed{seed}_{letter(number)}"
        variables, reused = cache.remember(path, inputs, make)
        self.say_if(reused, f"{title}: reused from an earlier run")
        return variables

    def moments(
        self, seed: int, models: Models, spec: zipjax.PermutationSpec
    ) -> dict[str, zipjax.Moments]:
        """Returns the moments of all models' units on the training images."""
        title = f"seed {seed}: collect moments"
        size = self.config.batch_size

        def make() -> dict[str, Any]:
            batches = list(self.data.train.batches(size))
            moments = zipjax.collect_moments(
                self.apply_fn,
                models,
                spec,
                self.track(batches, title),
                inputs=lambda batch: batch[0],
            )
            return {perm: _fields(moment) for perm, moment in moments.items()}

        source = zipjax.source_of(models, spec)
        path = self.workdir / "moments" / f"seed{seed}"
        inputs = (self.config.dataset, size, source)
        fields, reused = cache.remember(path, inputs, make)
        self.say_if(reused, f"{title}: reused from an earlier run")
        return {
            perm: zipjax.Moments(**fields[perm], source=source) for perm in spec.perms
        }

    def rows(self, setting: Setting) -> Iterator[Method]:
        """Yields the methods of the table."""
        for number, model in enumerate(setting.models):
            yield f"Model {letter(number)}", None, functools.partial(dict, model)
        merge = functools.partial(
            functools.partial,
            zipjax.merge,
            setting.models,
            setting.spec,
            moments=setting.moments,
        )
        yield "Ensemble", 0, merge(zipjax.average(), stop_at=0)
        yield "Average", None, merge(zipjax.average())
        yield "Permute", None, merge(zipjax.permute())
        total = setting.spec.layers
        zipit = zipjax.zipit(**self.config.zipit)
        yield f"ZipIt! {total}/{total}", total, merge(zipit)
        for cut in reversed(setting.spec.cuts):
            partial = merge(zipit, stop_at=cut.number)
            yield f"ZipIt! {cut.layers}/{total}", cut.layers, partial

    def evaluate(
        self, setting: Setting, method: str, layers: int | None, model: Any
    ) -> Result:
        """Calibrates and evaluates one model."""
        forward: Callable[..., Any] = jax.jit(self.apply_fn)
        if isinstance(model, zipjax.Merged):
            forward = functools.partial(zipjax.apply, self.apply_fn)
            if layers != 0:
                images = (x for x, _ in self.data.train.batches(self.config.batch_size))
                model = zipjax.reset_batch_stats(self.apply_fn, model, images)
        scores = zipjax.evaluate(
            functools.partial(forward, model),
            self.data.test.batches(self.config.batch_size),
            tasks=setting.tasks,
            class_embeddings=np.asarray(self.embeddings),
        )
        flops = zipjax.flops(forward, model, self.data.test.images[:1])
        return Result(method, setting.seed, flops, scores.joint, scores.tasks, layers)

    def unit_pictures(self, setting: Setting) -> list[report.Picture]:
        """Draws how the units of one seed were matched by ZipIt!."""
        recipe = zipjax.zipit(**self.config.zipit)
        assignments = zipjax.match(
            setting.models, setting.spec, recipe, moments=setting.moments
        )
        correlations = {
            perm: np.asarray(moment.correlation(), np.float64)
            for perm, moment in setting.moments.items()
        }
        count = len(setting.models)
        where = f"Seed {setting.seed}."
        kinds = report.Picture(
            plots.merge_kinds(assignments, count),
            f"What the merged units of every layer are made of. {where}",
            "Stacked bars of the kinds of merged units in every layer",
        )
        matched = report.Picture(
            plots.matched_correlations(correlations, assignments, count),
            f"Correlations of the units that were merged with each other. {where}",
            "Histogram of matched correlations",
        )
        matrices = [
            report.Picture(
                plots.correlation_matrix(correlations[perm], assignment, count, perm),
                f"Correlations of all units of {perm}, as they were merged. {where}",
                f"Correlation matrix of the units of {perm}",
            )
            for perm, assignment in assignments.items()
        ]
        return [kinds, matched, *matrices]

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


def _tasks_note(config: Config) -> str:
    return (
        f"{config.num_tasks} networks from different initialisations, each trained on "
        f"its own share of the classes of {config.dataset}, were merged without "
        "training. Accuracies are on test images; moments and batch statistics come "
        "from training images, without labels."
    )
