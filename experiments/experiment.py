"""The pipeline: networks -> moments -> merge -> calibrate -> evaluate -> report."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

import zipjax
from experiments.checks import check_config
from experiments.data.datasets import load_dataset
from experiments.defaults import shrunk
from experiments.fingerprints import code_digest, versions
from experiments.methods.merges import Merger, Setting
from experiments.methods.rows import Method, chosen_cuts, chosen_methods
from experiments.methods.runner import Model, Runner
from experiments.parents import cache, trained
from experiments.parents.architectures import build
from experiments.parents.text_embeddings import load_class_embeddings
from experiments.parents.train import Config, Variables
from experiments.parents.trained import Parents, Trainer, pretrained
from experiments.report import pictures, report
from experiments.report.plane import Landscape, corners, task_losses
from experiments.report.tables import make_table, print_table
from experiments.results import AS_TRAINED, ENSEMBLE, Result, letter
from zipjax.positions import Positions

_TITLES = {"scratch": "from scratch", "finetuned": "fine-tuned"}
_NOTES = {
    "scratch": "The networks were trained from different initialisations, each on its "
    "own task, and merged without further training.",
    "finetuned": "All networks were fine-tuned from one that had been trained on all "
    "classes, each on its own task, and merged without further training.",
    "split": "Every class belongs to one task, and a task is to classify images of its "
    "own classes. Joint: among the classes of all tasks.",
    "prime_odd": "Every image belongs to both tasks: whether the digit is prime (A), "
    "and whether it is odd (B). Joint: both predictions are right.",
}
_CALIBRATION = (
    "Accuracies are on test images. Moments, batch statistics and refits come from "
    "training images without labels; settings are searched with labels of these."
)


class Candidate(NamedTuple):
    """A model to evaluate, or one per key.

    Attributes:
      name: its name in the tables.
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
        check_config(config)
        config = shrunk(config) if config.smoke else config
        self.config: Config = config
        self.workdir, self.console = workdir, console
        self.data = load_dataset(
            config.dataset, config.data_dir, workers=config.workers, track=self.track
        )
        if config.examples is not None:
            self.data = self.data.first(config.examples)
        self.test = self.data.test.take(slice(config.test_images))
        names, encoder = config.class_names or config.dataset, config.text_encoder
        _, self.embeddings = load_class_embeddings(names, encoder)
        self.network, self.spec = build(
            config.model, config.network.to_dict(), self.embeddings.shape[1]
        )
        if config.inferred:
            self.spec = self.inferred()
        self.runner = Runner(
            self.network.apply, config.batch_size, config.ddof, _positions(config)
        )
        self.merger = Merger(self.runner, self.spec, config)
        self.methods = chosen_methods(config.rows)
        self.partial = chosen_methods(config.partial_rows)
        self.flops: dict[Any, float] = {}
        self.check()

    def check(self) -> None:
        """Checks what only the data and the spec tell, before anything is trained.

        Raises:
          ValueError: if a zip cannot stop where the config says, or if a task has no
            images of its classes where these are needed.
        """
        config, train = self.config, self.data.train
        chosen_cuts(self.spec, config.cuts, config.cut_layers)
        searched = any(method.searched for method in self.methods)
        scored = train.take(slice(config.calibration_images))
        drawn = bool(config.plane.points) and config.num_tasks == 2
        needed = {
            "config.examples": train,
            "config.test_images": self.test,
            "config.plane.images": self.test.take(slice(config.plane.images * drawn)),
            "config.search_images": scored.take(slice(config.search_images)),
        }
        if not drawn:
            del needed["config.plane.images"]
        if not searched or config.checkpoints is not None:
            del needed["config.search_images"]
        for task in trained.all_tasks(config, self.embeddings):
            for field, split in needed.items():
                if not len(task.of(split).labels):
                    raise ValueError(
                        f"a task has none of the {len(split.labels)} images that "
                        f"{field} leaves: raise it, or set it to None"
                    )

    def inferred(self) -> zipjax.PermutationSpec:
        """Infers the network's spec."""
        images, _ = next(self.test.batches(2))
        shapes = jax.eval_shape(self.network.init, jax.random.key(0), images)
        return zipjax.infer_spec(self.network.apply, shapes, images)

    def run(self) -> list[Result]:
        """Evaluates every method and writes the report."""
        results: list[Result] = []
        matched: list[report.Picture] = []
        for parents in self.parents():
            setting = self.prepare(parents)
            title = f"{parents.name}: merge and evaluate"
            for candidate in self.track(self.candidates(setting), title):
                results += self.results(setting, candidate)
            matched = matched or self.unit_pictures(setting)
        if jax.process_index() == 0:
            self.write(results, matched)
        return results

    def write(self, results: list[Result], matched: list[report.Picture]) -> None:
        """Prints the table, and writes the report.

        Raises:
          OSError: if the report cannot be written; the table is printed before.
        """
        print_table(make_table(results), self.console)
        try:
            path = self.written(results, matched)
        except OSError as error:
            told = f"the table above cannot be saved: {error.strerror}"
            where = error.filename or str(self.workdir)
            raise OSError(error.errno, told, where) from error
        self.console.print(f"Report: {path}")

    def written(self, results: list[Result], matched: list[report.Picture]) -> Path:
        """Writes the report; returns its path."""
        path = report.write_report(
            results,
            [
                pictures.depth_picture(results, self.spec.layers),
                *pictures.iteration_pictures(self.merger.sweeps, self.merger.searches),
                *matched,
            ],
            str(self.config),
            self.workdir,
            title=f"{self.config.title}, {_TITLES[self.config.init]}",
            notes=[_NOTES[self.config.init], _NOTES[self.config.tasks], _CALIBRATION],
        )
        report.write_seconds(self.merger.seconds, self.workdir)
        return path

    def parents(self) -> Iterator[Parents]:
        """Yields the networks to merge: from a folder, or trained for every seed."""
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
        yield from map(trainer.parents, config.seeds)

    def prepare(self, parents: Parents) -> Setting:
        """Resets the networks if the config says so, and collects their moments."""
        models, images = parents.models, parents.calibration
        if self.config.reset_parents:
            models = [self.runner.calibrated(model, images) for model in models]
        return Setting(parents, models, self.moments(parents, models))

    def moments(
        self, parents: Parents, models: list[Variables]
    ) -> dict[str, zipjax.Moments]:
        """Returns the moments of all models' units on the calibration images."""
        title = f"{parents.name}: collect moments"
        size, images = self.config.batch_size, parents.calibration

        def make() -> dict[str, Any]:
            batches = self.track(list(self.runner.batches(images)), title)
            moments = self.merger.timed(
                ("moments", ""),
                lambda: zipjax.collect_moments(
                    self.runner.apply_fn,
                    models,
                    self.spec,
                    batches,
                    positions=self.runner.positions,
                ),
            )
            return {perm: _fields(moment) for perm, moment in moments.items()}

        source = zipjax.source_of(models, self.spec)
        path = self.workdir / "moments" / parents.name
        inputs = {
            "images": (self.config.dataset, images.digest(), size),
            "positions": (self.runner.positions, jax.process_count()),
            "source": source,
            "fields": _FIELDS,
            **_collecting(),
        }
        fields, reused = cache.remember(path, inputs, make)
        if reused:
            self.say(f"{title}: reused from an earlier run")
        return {
            perm: dataclasses.replace(_moments(fields[perm]), source=source)
            for perm in self.spec.perms
            if perm in fields
        }

    def candidates(self, setting: Setting) -> Iterator[Candidate]:
        """Yields the models to evaluate, in the order of the table."""
        trained, config = setting.parents.models, self.config
        yield from self.separate(setting.models, "")
        if config.reset_parents:
            yield from self.separate(trained, AS_TRAINED)
        for method in self.methods:
            for stop in self.stops(method):
                yield self.candidate(setting, method, stop)

    def separate(self, models: list[Variables], suffix: str) -> Iterator[Candidate]:
        """Yields the networks and their ensemble, with a suffix to their names."""
        for number, model in enumerate(models):
            name = f"Model {letter(number)}{suffix}"
            yield Candidate(name, None, lambda _, m=model: m)
        ensemble = zipjax.merge(models, self.spec, zipjax.average(), stop_at=0)
        yield Candidate(f"{ENSEMBLE}{suffix}", 0, lambda _: ensemble)

    def stops(self, method: Method) -> list[zipjax.Cut | None]:
        """Returns where a method's merges stop; None: they merge everything."""
        if method not in self.partial:
            return [None]
        cuts = self.config.cuts, self.config.cut_layers
        return [None, *chosen_cuts(self.spec, *cuts)]

    def candidate(
        self, setting: Setting, method: Method, stop: zipjax.Cut | None
    ) -> Candidate:
        """Returns the merge by a method that stops at a cut."""
        total, name, layers = self.spec.layers, method.title, None
        if method in self.partial:
            layers = total if stop is None else stop.layers
            name = f"{name} {layers}/{total}"
        make = functools.partial(self.merger.merged, setting, method, stop)
        return Candidate(name, layers, make, method.iterates)

    def results(self, setting: Setting, candidate: Candidate) -> list[Result]:
        """Returns a result for every seed: the same one if the key does not matter."""
        keys = setting.parents.keys
        if candidate.iterates:
            return [self.result(setting, candidate, seed) for seed in keys]
        first = self.result(setting, candidate, next(iter(keys)))
        return [dataclasses.replace(first, seed=seed) for seed in keys]

    def result(self, setting: Setting, candidate: Candidate, seed: int) -> Result:
        """Makes and evaluates a model."""
        parents = setting.parents
        model = candidate.make(parents.keys[seed])
        scores = self.runner.evaluate(model, self.test, parents.tasks)
        figures = self.count_flops(model), scores.joint, scores.tasks, candidate.layers
        return Result(candidate.name, seed, *figures)

    def count_flops(self, model: Model) -> float:
        """Returns the operations for one image, counted once per set of shapes."""
        leaves = jax.tree_util.tree_leaves_with_path(model)
        shapes = tuple((path, np.shape(leaf)) for path, leaf in leaves)
        if shapes not in self.flops:  # Counting compiles the network.
            image, _ = next(self.test.batches(1))
            forward = self.runner.forward(model)
            self.flops[shapes] = zipjax.flops(forward, model, image)
        return self.flops[shapes]

    def unit_pictures(self, setting: Setting) -> list[report.Picture]:
        """Draws how ZipIt! matched the units of one seed."""
        recipe = zipjax.zipit(**self.config.zipit)
        assignments = zipjax.match(
            setting.models, self.spec, recipe, moments=setting.moments
        )
        # Groups and the units within them are not the units of a whole layer.
        plain = {p: x for p, x in assignments.items() if self.spec.is_plain(p)}
        where, number = f"Networks: {setting.parents.name}.", len(setting.models)
        drawn = pictures.match_pictures(plain, setting.moments, number, where)
        if landscape := self.landscape(setting, assignments):
            drawn.append(pictures.plane_picture(landscape, where))
        return drawn

    def landscape(self, setting: Setting, zipped: dict[str, Any]) -> Landscape | None:
        """Measures losses on the plane through two networks and their zip, if any."""
        points = self.config.plane.points
        if not points or len(setting.models) != 2:
            return None
        through = corners(setting.models, self.spec, setting.moments, zipped)
        losses = functools.partial(self.losses, setting.parents)
        title = f"{setting.parents.name}: losses on a plane"
        track = functools.partial(self.track, title=title)
        return Landscape.of(through, losses, points, track)

    def losses(self, parents: Parents, model: Variables) -> np.ndarray:
        """Returns every task's loss, after batch statistics are measured again."""
        some = slice(self.config.plane.images)
        model = self.runner.calibrated(model, parents.calibration.take(some))
        test, forward = self.test.take(some), self.runner.forward(model)
        batches = test.batches(self.config.batch_size)
        outputs = [np.asarray(forward(model, images)) for images, _ in batches]
        return task_losses(np.concatenate(outputs), test.labels, parents.tasks)

    def track(self, steps: Iterable[Any], title: str) -> Iterable[Any]:
        """Shows a progress bar."""
        return track(list(steps), title, console=self.console, transient=True)

    def say(self, message: str) -> None:
        """Prints a message."""
        self.console.print(message, style="dim")


def _positions(config: Config) -> Positions:
    """Returns the config's positions, which may be a number."""
    text = config.positions
    return int(text) if text.isdecimal() else text


def _collecting() -> dict[str, Any]:
    """Returns what moments depend on besides networks and data: the code."""
    package = Path(zipjax.__file__).parent
    parts = [package / name for name in ("tracing", "program", "similarity")]
    files = [file for part in parts for file in part.rglob("*.py")]
    return {"code": code_digest(files), "versions": versions("jax", "flax")}


# Saved moments with other fields are made again.
_FIELDS = ("count", "mean", "mean_tail", "m2", "earlier")


def _fields(moments: zipjax.Moments) -> dict[str, Any]:
    """Returns moments as a tree of arrays, without those that there are none of."""
    *arrays, _ = _FIELDS
    fields = {name: getattr(moments, name) for name in arrays}
    before = moments.earlier
    return fields if before is None else {**fields, "earlier": _fields(before)}


def _moments(fields: Mapping[str, Any]) -> zipjax.Moments:
    """Returns moments from what :func:`_fields` returned."""
    before = fields.get("earlier")
    earlier = None if before is None else _moments(before)
    return zipjax.Moments(**{**fields, "earlier": earlier})
