"""The pipeline: networks -> moments -> merge -> calibrate -> evaluate -> report."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

import zipjax
from experiments.defaults import shrunk
from experiments.methods.merges import Merger, Setting
from experiments.methods.rows import Method, chosen_cuts, chosen_methods
from experiments.methods.runner import Model, Runner
from experiments.parents import cache, data
from experiments.parents.architectures import build
from experiments.parents.parents import Networks, Trainer, pretrained
from experiments.parents.text_embeddings import load_class_embeddings
from experiments.parents.train import Config, Variables
from experiments.report import pictures, report
from experiments.report.plane import Landscape, corners, task_losses
from experiments.results import AS_TRAINED, ENSEMBLE, Result, letter

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
    "images, without labels; with labels, these choose the settings that are searched."
)


class Row(NamedTuple):
    """A row of the table: a model, or one for every key.

    Attributes:
      name: what the tables call it.
      layers: number of zipped layers, if it is a zip.
      make: makes the model from a key.
      iterates: whether the key matters.
    """

    name: str
    layers: int | None
    make: Callable[[jax.Array], Model]
    iterates: bool = False


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
        self.test = self.data.test.take(slice(config.test_images))
        names, encoder = config.class_names or config.dataset, config.text_encoder
        _, self.embeddings = load_class_embeddings(names, encoder)
        self.network, self.spec = build(
            config.model, config.network.to_dict(), self.embeddings.shape[1]
        )
        self.runner = Runner(self.network.apply, config.batch_size, config.ddof)
        self.merger = Merger(self.runner, self.spec, config)
        self.methods = chosen_methods(config.rows)
        self.partial = chosen_methods(config.partial_rows)
        self.flops: dict[Any, float] = {}

    def run(self) -> list[Result]:
        """Runs every row and writes the report."""
        results: list[Result] = []
        matched: list[report.Picture] = []
        for networks in self.networks():
            setting = self.prepare(networks)
            title = f"{networks.name}: merge and evaluate"
            for row in self.track(self.rows(setting), title):
                results += self.results(setting, row)
            matched = matched or self.unit_pictures(setting)
        path = report.write_report(
            results,
            [
                pictures.depth(results, self.spec.layers),
                *pictures.iterations(self.merger.sweeps, self.merger.searches),
                *matched,
            ],
            str(self.config),
            self.workdir,
            title=f"{self.config.title}, {_TITLES[self.config.init]}",
            notes=[_NOTES[self.config.init], _NOTES[self.config.tasks], _CALIBRATION],
        )
        report.write_seconds(self.merger.seconds, self.workdir)
        report.print_table(results, self.console)
        self.console.print(f"Report: {path}")
        return results

    def networks(self) -> Iterator[Networks]:
        """Yields what is merged: networks from a folder, or trained for every seed."""
        config, split = self.config, self.data.train
        if config.checkpoints is not None:
            yield pretrained(config, self.network, split)
            return
        trainer = Trainer(
            config,
            self.network,
            self.spec,
            split,
            self.embeddings,
            self.workdir,
            self.track,
            self.say,
        )
        yield from map(trainer.networks, config.seeds)

    def prepare(self, networks: Networks) -> Setting:
        """Resets the networks if that is wanted and collects their moments."""
        models, images = networks.models, networks.calibration
        if self.config.reset_parents:
            models = [self.runner.calibrated(model, images) for model in models]
        return Setting(networks, models, self.moments(networks, models))

    def moments(
        self, networks: Networks, models: list[Variables]
    ) -> dict[str, zipjax.Moments]:
        """Returns the moments of all models' units on the calibration images."""
        title = f"{networks.name}: collect moments"
        size, images = self.config.batch_size, networks.calibration

        def make() -> dict[str, Any]:
            batches = self.track(list(self.runner.batches(images)), title)
            moments = self.merger.timed(
                ("moments", ""),
                lambda: zipjax.collect_moments(
                    self.runner.apply_fn, models, self.spec, batches
                ),
            )
            return {perm: _fields(moment) for perm, moment in moments.items()}

        source = zipjax.source_of(models, self.spec)
        path = self.workdir / "moments" / networks.name
        inputs = (self.config.dataset, len(images.labels), size, source)
        fields, reused = cache.remember(path, inputs, make)
        if reused:
            self.say(f"{title}: reused from an earlier run")
        return {
            perm: zipjax.Moments(**fields[perm], source=source)
            for perm in self.spec.perms
        }

    def rows(self, setting: Setting) -> Iterator[Row]:
        """Yields the rows of the table."""
        trained, config = setting.networks.models, self.config
        yield from self.separate(setting.models, "")
        if config.reset_parents:
            yield from self.separate(trained, AS_TRAINED)
        for method in self.methods:
            for stop in self.stops(method):
                yield self.row(setting, method, stop)

    def stops(self, method: Method) -> list[zipjax.Cut | None]:
        """Returns where a method's merges stop; None: it merges everything."""
        if method not in self.partial:
            return [None]
        cuts = self.config.cuts, self.config.cut_layers
        return [None, *chosen_cuts(self.spec, *cuts)]

    def row(self, setting: Setting, method: Method, stop: zipjax.Cut | None) -> Row:
        """Returns the row of a method that stops somewhere."""
        total, name, layers = self.spec.layers, method.title, None
        if method in self.partial:
            layers = total if stop is None else stop.layers
            name = f"{name} {layers}/{total}"
        make = functools.partial(self.merger.merged, setting, method, stop)
        return Row(name, layers, make, method.iterates)

    def separate(self, models: list[Variables], which: str) -> Iterator[Row]:
        """Yields the rows of what is not merged, with a suffix of their names."""
        for number, model in enumerate(models):
            yield Row(f"Model {letter(number)}{which}", None, lambda _, m=model: m)
        ensemble = zipjax.merge(models, self.spec, zipjax.average(), stop_at=0)
        yield Row(f"{ENSEMBLE}{which}", 0, lambda _: ensemble)

    def results(self, setting: Setting, row: Row) -> list[Result]:
        """Returns a row's result for every seed: the same one if nothing iterates."""
        keys = setting.networks.keys
        if row.iterates:
            return [self.result(setting, row, seed) for seed in keys]
        first = self.result(setting, row, next(iter(keys)))
        return [dataclasses.replace(first, seed=seed) for seed in keys]

    def result(self, setting: Setting, row: Row, seed: int) -> Result:
        """Evaluates a row's model."""
        networks = setting.networks
        model = row.make(networks.keys[seed])
        scores = self.runner.evaluate(model, self.test, networks.tasks)
        flops = self.count_flops(model)
        return Result(row.name, seed, flops, scores.joint, scores.tasks, row.layers)

    def count_flops(self, model: Model) -> float:
        """Returns the operations for one image, counted once for models alike."""
        leaves, structure = jax.tree_util.tree_flatten(model)
        alike = structure, *(np.shape(leaf) for leaf in leaves)
        if alike not in self.flops:  # Counting compiles the network.
            image, _ = next(self.test.batches(1))
            forward = self.runner.forward(model)
            self.flops[alike] = zipjax.flops(forward, model, image)
        return self.flops[alike]

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
        where = f"Of {setting.networks.name}."
        matched = pictures.matches(alone, setting.moments, len(setting.models), where)
        landscape = self.landscape(setting, assignments)
        return matched + ([pictures.plane(landscape, where)] if landscape else [])

    def landscape(self, setting: Setting, zipped: dict[str, Any]) -> Landscape | None:
        """Measures losses on the plane through two networks and their zip, if any."""
        points = self.config.plane.points
        if not points or len(setting.models) != 2:
            return None
        through = corners(setting.models, self.spec, setting.moments, zipped)
        losses = functools.partial(self.losses, setting.networks)
        title = f"{setting.networks.name}: losses on a plane"
        track = functools.partial(self.track, title=title)
        return Landscape.of(through, losses, points, track)

    def losses(self, networks: Networks, model: Variables) -> np.ndarray:
        """Returns every task's loss, after batch statistics were measured anew."""
        some = slice(self.config.plane.images)
        model = self.runner.calibrated(model, networks.calibration.take(some))
        test, forward = self.test.take(some), self.runner.forward(model)
        outputs = [np.asarray(forward(model, x)) for x in self.runner.batches(test)]
        return task_losses(np.concatenate(outputs), test.labels, networks.tasks)

    def track(self, steps: Iterable[Any], title: str) -> Iterable[Any]:
        """Shows a progress bar."""
        return track(list(steps), title, console=self.console, transient=True)

    def say(self, message: str) -> None:
        """Prints a message."""
        self.console.print(message, style="dim")


def _fields(moments: zipjax.Moments) -> dict[str, Any]:
    names = ("count", "mean", "mean_tail", "m2")
    return {name: getattr(moments, name) for name in names}
