"""The pipeline: networks -> moments -> merge -> calibrate -> evaluate -> report."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

import zipjax
from experiments import cache, data, pictures, report, tasks
from experiments.data import Split
from experiments.defaults import shrunk
from experiments.methods import Method, chosen_methods, spread_cuts
from experiments.models import Networks, Trainer, pretrained
from experiments.networks import build
from experiments.plane import Landscape, corners, task_losses
from experiments.results import AS_TRAINED, ENSEMBLE, Result, letter
from experiments.tasks import Task
from experiments.text_embeddings import load_class_embeddings
from experiments.train import Config, Variables

Model: TypeAlias = Variables | zipjax.Merged

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


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all methods share: networks, and their units' moments.

    Attributes:
      networks: the networks as they were trained.
      models: what is merged: they, with the batch statistics that the config wants.
      moments: of the models.
    """

    networks: Networks
    models: list[Variables]
    moments: dict[str, zipjax.Moments]


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
        self.apply_fn = self.network.apply
        self.methods = chosen_methods(config.rows)
        self.flops: dict[Any, float] = {}
        self.searches: dict[str, list[zipjax.Search]] = {}
        self.sweeps: dict[str, list[zipjax.Sweep]] = {}

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
            models = [self.calibrated(model, images) for model in models]
        return Setting(networks, models, self.moments(networks, models))

    def moments(
        self, networks: Networks, models: list[Variables]
    ) -> dict[str, zipjax.Moments]:
        """Returns the moments of all models' units on the calibration images."""
        title = f"{networks.name}: collect moments"
        size, images = self.config.batch_size, networks.calibration

        def make() -> dict[str, Any]:
            moments = zipjax.collect_moments(
                self.apply_fn,
                models,
                self.spec,
                self.track(list(images.batches(size)), title),
                inputs=lambda batch: batch[0],
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
        total = self.spec.layers
        for method in self.methods:
            if not method.partial:
                make = functools.partial(self.best, setting, method)
                yield Row(method.title, None, make, method.iterates)
                continue
            merge = functools.partial(functools.partial, self.merged, setting, method)
            name, own = method.title, method.iterates
            recipe = method.recipe(config.zipit)
            yield Row(f"{name} {total}/{total}", total, merge(recipe), own)
            recipe = method.recipe(config.partial_zipit)
            for cut in spread_cuts(self.spec, config.cuts):
                make = merge(recipe, stop_at=cut.number)
                yield Row(f"{name} {cut.layers}/{total}", cut.layers, make, own)

    def separate(self, models: list[Variables], which: str) -> Iterator[Row]:
        """Yields the rows of what is not merged, with a suffix of their names."""
        for number, model in enumerate(models):
            yield Row(f"Model {letter(number)}{which}", None, lambda _, m=model: m)
        ensemble = zipjax.merge(models, self.spec, zipjax.average(), stop_at=0)
        yield Row(f"{ENSEMBLE}{which}", 0, lambda _: ensemble)

    def best(self, setting: Setting, method: Method, key: jax.Array) -> Model:
        """Merges all layers, with the balance that does best on training images."""
        zips, balances = self.config.zipit, self.config.balances
        given = balances if method.balanced else ()
        if len(given) < 2:
            return self.merged(setting, method, method.recipe(zips, *given), key)
        images = setting.networks.calibration.take(slice(self.config.search_images))

        def score(model: zipjax.Merged) -> float:
            whole = _plain(self.calibrated(model, images))
            return self.evaluate(whole, images, setting.networks.tasks).average

        found = zipjax.search(
            setting.models,
            self.spec,
            functools.partial(method.recipe, zips),
            {"balance": balances},
            score,
            moments=setting.moments,
            key=key,
        )
        self.searches.setdefault(method.title, []).append(found)
        recipe = method.recipe(zips, **found.best.settings)
        return self.merged(setting, method, recipe, key)

    def merged(
        self,
        setting: Setting,
        method: Method,
        recipe: zipjax.Recipe,
        key: jax.Array,
        stop_at: int | None = None,
    ) -> Model:
        """Merges, measures the batch statistics anew, and refits if that is wanted."""
        sweeps: list[zipjax.Sweep] = []
        assignments = zipjax.match(
            setting.models,
            self.spec,
            recipe,
            moments=setting.moments,
            stop_at=stop_at,
            key=key,
            report=sweeps.append,
        )
        if sweeps:
            self.sweeps.setdefault(recipe.name, sweeps)
        model = zipjax.merge_units(
            setting.models, self.spec, assignments, stop_at=stop_at
        )
        model = self.calibrated(model, setting.networks.calibration)
        if method.refit:
            model = self.refitted(setting, model, assignments, method.refit)
        return _plain(model)

    def refitted(
        self,
        setting: Setting,
        model: zipjax.Merged,
        assignments: dict[str, Any],
        target: str,
    ) -> zipjax.Merged:
        """Solves a merged model's layers anew."""
        networks = setting.networks
        images = networks.calibration.take(slice(self.config.refit_images))
        outputs = None
        if target == "ensemble":
            outputs = zipjax.ensemble_target(*tasks.by_label(networks.tasks))
        return zipjax.refit(
            self.apply_fn,
            setting.models,
            model,
            assignments,
            (x for x, _ in images.batches(self.config.batch_size)),
            outputs=outputs,
        )

    def calibrated(self, model: Any, images: Split) -> Any:
        """Measures the batch statistics of a model anew."""
        batches = (x for x, _ in images.batches(self.config.batch_size))
        return zipjax.reset_batch_stats(
            self.apply_fn, model, batches, ddof=self.config.ddof
        )

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
        # Counting compiles the network; models of one structure cost the same.
        structure = jax.tree_util.tree_structure(model)
        if structure not in self.flops:
            image, _ = next(self.test.batches(1))
            self.flops[structure] = zipjax.flops(self.forward(model), model, image)
        scores = self.evaluate(model, self.test, networks.tasks)
        flops = self.flops[structure]
        return Result(row.name, seed, flops, scores.joint, scores.tasks, row.layers)

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
        model = self.calibrated(model, networks.calibration.take(some))
        test, size = self.test.take(some), self.config.batch_size
        forward = self.forward(model)
        outputs = [np.asarray(forward(model, x)) for x, _ in test.batches(size)]
        return task_losses(np.concatenate(outputs), test.labels, networks.tasks)

    def track(self, steps: Iterable[Any], title: str) -> Iterable[Any]:
        """Shows a progress bar."""
        return track(list(steps), title, console=self.console, transient=True)

    def say(self, message: str) -> None:
        """Prints a message."""
        self.console.print(message, style="dim")


def _plain(model: zipjax.Merged) -> Model:
    """Returns one network as any other, so that running it is compiled once."""
    return model if model.heads else model.params()


def _fields(moments: zipjax.Moments) -> dict[str, Any]:
    names = ("count", "mean", "mean_tail", "m2")
    return {name: getattr(moments, name) for name in names}
