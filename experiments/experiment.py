"""The pipeline: networks -> moments -> merge -> calibrate -> evaluate -> report."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

import zipjax
from experiments.checks import check_config, group_size
from experiments.defaults import shrunk
from experiments.methods import dependence
from experiments.methods.barriers import barriers
from experiments.methods.journal import Journal
from experiments.methods.merges import Merger, Setting
from experiments.methods.rows import Method, chosen_cuts, chosen_methods
from experiments.methods.runner import Model, Runner, forward_of, functions_for
from experiments.methods.unit_pairs import unit_pairs
from experiments.parents import cache
from experiments.parents.tasks.kinds import KINDS
from experiments.parents.tasks.suite import Drawable, Suite
from experiments.parents.train import Config, Variables
from experiments.parents.trained import Parents, Trainer, keys_of, pretrained
from experiments.report import pictures, report
from experiments.report.plane import Landscape, Plane, corners
from experiments.report.tables import make_tables, print_table
from experiments.results import AS_TRAINED, ENSEMBLE, Result
from zipjax.positions import Positions
from zipjax.spec.verify import check_any_perms

_TITLES = {"scratch": "from scratch", "finetuned": "fine-tuned"}
_NOTES = {
    "scratch": "The networks were trained from different initialisations, each on its "
    "task, and merged without further training.",
    "finetuned": "All networks were fine-tuned from one that had been trained on all "
    "classes, each on its task, and merged without further training.",
}
_EVEN = 0.5  # MuDSC's balance of weights and activations in pictures.
_CALIBRATION = (
    "Scores are on test images. Moments, batch statistics and refits come from "
    "training images without labels; settings are searched with labels of these."
)


class Candidate(NamedTuple):
    """A model to evaluate, or one per key.

    Attributes:
      name: its name in the tables.
      layers: number of zipped layers, if it is a zip.
      make: makes the model from a key, and writes into a journal.
      inputs: JSON data that determine the model, besides the networks and the key.
      iterates: whether the key matters.
      only: the number of the task that it is a network of, if it is not merged.
    """

    name: str
    layers: int | None
    make: Callable[[jax.Array, Journal], Model]
    inputs: dict[str, Any]
    iterates: bool = False
    only: int | None = None


class Row(NamedTuple):
    """A result, and whether an earlier run has made it."""

    result: Result
    reused: bool


class Experiment:
    """One configuration: its tasks, methods and results.

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
        self.kind = KINDS[config.tasks](config, self.track)
        self.runner = Runner(config.batch_size, config.ddof, _positions(config))
        self.journal = Journal()
        self.merger = Merger(self.runner, config, self.journal)
        self.methods = chosen_methods(config.rows)
        self.partial = chosen_methods(config.partial_rows)
        self.flops: dict[Any, float] = {}
        # The code that runs is that of now, though files may change meanwhile.
        self.code = dependence.code_of_rows()
        self.check()

    def check(self) -> None:
        """Checks what only the data and the specs tell, before anything is trained.

        Raises:
          ValueError: if networks have no units to merge, if a zip cannot stop where the
            config says, or if a task has no examples where these are needed.
        """
        config = self.config
        for suite in self.suites():
            check_any_perms(suite.spec)
            chosen_cuts(suite.cuts, config.cuts, config.cut_layers)
            _check_examples(
                "examples", suite, [len(task.train) for task in suite.tasks]
            )
            _check_examples("test_images", suite)
            if config.plane.points and len(suite.tasks) == 2:
                _check_examples("plane.images", suite.testing(config.plane.images))
            if "barrier" in config.pictures:
                _check_examples("line.images", suite.testing(config.line.images))
            if config.checkpoints is None and any(x.searched for x in self.methods):
                _check_examples("search_images", suite.searching(config.search_images))

    def suites(self) -> Iterator[Suite]:
        """Yields the tasks of the networks of all seeds."""
        if self.config.checkpoints is not None:
            yield self.kind.pretrained(Path(self.config.checkpoints))
            return
        for seed in self.config.seeds:
            yield self.kind.suite(keys_of(self.config, seed)[0])

    def run(self) -> list[Result]:
        """Evaluates every method and writes the report."""
        results: list[Result] = []
        matched: list[report.Picture] = []
        drawn: set[int] = set()
        for every in self.parents():
            for group, numbers in groups(self.config.groups, len(every.models)):
                parents = every.subset(numbers)
                setting = self.prepare(parents)
                columns = every.suite.columns(numbers), every.suite.headings
                results += [
                    found.among(group, *columns) for found in self.results(setting)
                ]
                matched = matched or self.unit_pictures(setting)
                if drawn.isdisjoint(numbers):  # Every task once.
                    matched += self.predictions(setting)
                    drawn.update(numbers)
        if jax.process_index() == 0:
            self.write(results, matched)
        return results

    def write(self, results: list[Result], matched: list[report.Picture]) -> None:
        """Prints the table, and writes the report.

        Raises:
          OSError: if the report cannot be written; the table is printed before.
        """
        for table in make_tables(results):
            print_table(table, self.console)
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
                *pictures.depth_pictures(results, next(self.suites()).spec.layers),
                *pictures.iteration_pictures(
                    self.journal.sweeps, self.journal.searches
                ),
                *matched,
            ],
            str(self.config),
            self.workdir,
            title=f"{self.config.title}, {_TITLES[self.config.init]}",
            notes=[_NOTES[self.config.init], self.kind.note, _CALIBRATION],
        )
        report.write_seconds(self.journal.seconds, self.workdir)
        return path

    def parents(self) -> Iterator[Parents]:
        """Yields the networks to merge: from a folder, or trained for every seed."""
        config = self.config
        if config.checkpoints is not None:
            suite = self.kind.pretrained(Path(config.checkpoints))
            yield self.scaled(pretrained(config, suite))
            return
        trainer = Trainer(config, self.kind, self.workdir, self.track, self.say)
        for seed in config.seeds:
            yield self.scaled(trainer.parents(seed))

    def scaled(self, parents: Parents) -> Parents:
        """Returns the networks with tasks whose metrics know how well these do."""
        suite = parents.suite.scaled(parents.models, self.config.batch_size)
        return dataclasses.replace(parents, suite=suite)

    def prepare(self, parents: Parents) -> Setting:
        """Resets the networks if the config says so, and collects their moments."""
        models = parents.models
        if self.config.reset_parents:
            models = [
                self.runner.calibrated(model, parents.suite, number)
                for number, model in enumerate(models)
            ]
        return Setting(parents, models, self.moments(parents, models))

    def moments(
        self, parents: Parents, models: list[Variables]
    ) -> dict[str, zipjax.Moments]:
        """Returns the moments of all models' units on the calibration images."""
        title = f"{parents.name}: collect moments"
        suite, journal = parents.suite, Journal()

        def make() -> dict[str, Any]:
            batches = self.track(self.runner.inputs(suite), title)
            moments = journal.timed(
                ("moments", ""),
                lambda: zipjax.collect_moments(
                    suite.functions,
                    models,
                    suite.specs,
                    batches,
                    positions=self.runner.positions,
                ),
            )
            return {perm: _fields(moment) for perm, moment in moments.items()}

        path = self.workdir / "moments" / parents.name
        inputs = dependence.of_moments(suite, models, self.runner)
        fields, reused = cache.remember(path, inputs, make)
        told, _ = cache.remember_figures(path, inputs, journal.data)
        self.journal.add(Journal.of(told))
        if reused:
            self.say(f"{title}: reused from an earlier run")
        return {
            perm: dataclasses.replace(_moments(fields[perm]), source=inputs["source"])
            for perm in suite.spec.perms
            if perm in fields
        }

    def candidates(self, setting: Setting) -> Iterator[Candidate]:
        """Yields the models to evaluate, in the order of the table."""
        yield from self.separate(setting, setting.models, "")
        if self.config.reset_parents:
            yield from self.separate(setting, setting.parents.models, AS_TRAINED)
        for method in self.methods:
            for stop in self.stops(setting.suite, method):
                yield self.candidate(setting, method, stop)

    def separate(
        self, setting: Setting, models: list[Variables], suffix: str
    ) -> Iterator[Candidate]:
        """Yields the networks and their ensemble, with a suffix to their names."""
        specs = setting.suite.specs
        source = {"separate": zipjax.source_of(models, specs)}
        for number, model in enumerate(models):
            name = f"Model {setting.parents.letters[number]}{suffix}"
            inputs = {**source, "only": number}
            yield Candidate(name, None, lambda *_, m=model: m, inputs, only=number)

        def ensemble(*_: Any) -> Model:
            return zipjax.merge(models, specs, zipjax.average(), stop_at=0)

        yield Candidate(f"{ENSEMBLE}{suffix}", 0, ensemble, source)

    def stops(self, suite: Suite, method: Method) -> list[zipjax.Cut | None]:
        """Returns where a method's merges stop; None: they merge everything."""
        if method not in self.partial:
            return [None]
        config = self.config
        cuts = chosen_cuts(suite.cuts, config.cuts, config.cut_layers)
        return [None, *(cut for cut in cuts if cut.number != suite.whole)]

    def candidate(
        self, setting: Setting, method: Method, stop: zipjax.Cut | None
    ) -> Candidate:
        """Returns the merge by a method that stops at a cut."""
        suite, name, layers = setting.suite, method.title, None
        if method in self.partial:
            layers = suite.layers if stop is None else stop.layers
            name = f"{name} {layers}/{suite.spec.layers}"
        make = functools.partial(self.merger.merged, setting, method, stop)
        inputs = self.merger.inputs(setting, method, stop)
        return Candidate(name, layers, make, inputs, method.iterates)

    def results(self, setting: Setting) -> list[Result]:
        """Returns the results of all models, one for every seed."""
        title = f"{setting.parents.name}: merge and evaluate"
        shared = dependence.of_rows(setting, self.runner, self.code)
        rows = [
            row
            for candidate in self.track(self.candidates(setting), title)
            for row in self.rows(setting, shared, candidate)
        ]
        if reused := sum(row.reused for row in rows):
            self.say(f"{title}: {reused} of {len(rows)} rows reused from earlier runs")
        return [row.result for row in rows]

    def rows(
        self, setting: Setting, shared: dict[str, Any], candidate: Candidate
    ) -> list[Row]:
        """Returns a row for every seed: the same one if the key does not matter."""
        keys = setting.parents.keys
        if candidate.iterates:
            return [self.row(setting, shared, candidate, seed) for seed in keys]
        first, reused = self.row(setting, shared, candidate, next(iter(keys)))
        return [Row(dataclasses.replace(first, seed=seed), reused) for seed in keys]

    def row(
        self, setting: Setting, shared: dict[str, Any], candidate: Candidate, seed: int
    ) -> Row:
        """Makes and evaluates a model, unless an earlier run did.

        Args:
          setting: the networks.
          shared: what all rows of these networks depend on.
          candidate: the model.
          seed: the seed whose key the model is made from.
        """
        key = setting.parents.keys[seed]
        numbers = jax.random.key_data(key).tolist() if candidate.iterates else None
        inputs = {**shared, "model": candidate.inputs, "key": numbers}
        path = self.workdir / "rows" / setting.parents.name
        make = functools.partial(self.figures, setting, candidate, key)
        found, reused = cache.remember_figures(path, inputs, make)
        self.journal.add(Journal.of(found["journal"]))
        figures = found["flops"], found["joint"], tuple(found["tasks"])
        return Row(Result(candidate.name, seed, *figures, candidate.layers), reused)

    def figures(
        self, setting: Setting, candidate: Candidate, key: jax.Array
    ) -> dict[str, Any]:
        """Makes and evaluates a model; returns its figures as JSON data."""
        suite, journal = setting.suite, Journal()
        model = candidate.make(key, journal)
        scores = self.runner.evaluate(model, suite, candidate.only)
        return {
            "flops": self.count_flops(suite, model, candidate.only),
            "joint": scores.joint,
            "tasks": scores.tasks,
            "journal": journal.data(),
        }

    def count_flops(self, suite: Suite, model: Model, only: int | None) -> float:
        """Returns the operations for one image, counted once per set of shapes."""
        functions = functions_for(suite, only)
        image = suite.tasks[0].train.example()
        leaves = jax.tree_util.tree_leaves_with_path(model)
        shapes = tuple((path, np.shape(leaf)) for path, leaf in leaves)
        key = functions, shapes, image.shape
        if key not in self.flops:  # Counting compiles the network.
            forward = forward_of(functions, model)
            self.flops[key] = zipjax.flops(forward, model, image)
        return self.flops[key]

    def unit_pictures(self, setting: Setting) -> list[report.Picture]:
        """Draws how ZipIt! matched the units of one seed."""
        recipe = zipjax.zipit(**self.config.zipit)
        suite = setting.suite
        assignments = zipjax.match(
            setting.models,
            suite.specs,
            recipe,
            moments=setting.moments,
            stop_at=suite.whole,
        )
        # Groups and the units within them are not the units of a whole layer.
        plain = {p: x for p, x in assignments.items() if suite.spec.is_plain(p)}
        where, number = f"Networks: {setting.parents.name}.", len(setting.models)
        drawn = pictures.match_pictures(plain, setting.moments, number, where)
        if number != 2:
            return drawn
        if landscape := self.landscape(setting, {"ZipIt!": assignments}):
            drawn.append(pictures.plane_picture(landscape, where))
        if "basins" in self.config.pictures:
            zips = {"ZipIt!": assignments, **self.other_zips(setting)}
            if landscape := self.landscape(setting, zips):
                drawn.append(pictures.basins_picture(landscape, where))
        if "pairs" in self.config.pictures:
            images = self.config.plane.images
            title = f"{setting.parents.name}: merge units in pairs"
            track = functools.partial(self.track, title=title)
            if pairs := unit_pairs(setting, self.runner, images, track):
                drawn.append(pictures.pairs_picture(pairs, where))
        if "barrier" in self.config.pictures and suite.shares_outputs:
            title = f"{setting.parents.name}: losses on lines"
            track = functools.partial(self.track, title=title)
            lines = barriers(setting, self.runner, self.config.line, track)
            drawn.append(pictures.barrier_picture(lines, where))
        return drawn

    def predictions(self, setting: Setting) -> list[report.Picture]:
        """Draws what networks and their merges predict, if that can be drawn."""
        suite, merges, drawn = setting.suite, dict[str, Model](), []
        where = f"Networks: {setting.parents.name}."
        for number, task in enumerate(suite.tasks):
            if not isinstance(task.objective, Drawable):
                continue
            merges = merges or self.merges(setting)
            parent = f"Model {setting.parents.letters[number]}"
            own = suite.forward(task.apply_fn, setting.models[number], number)
            answers = {parent: own} | {
                name: suite.forward(suite.functions, model, number)
                for name, model in merges.items()
            }
            shown = task, task.objective, answers, where
            drawn.append(pictures.prediction_picture(*shown))
        return drawn

    def merges(self, setting: Setting) -> dict[str, Model]:
        """Returns the merges of every method, whole and in part, by name."""
        candidates = [
            self.candidate(setting, method, stop)
            for method in self.methods
            for stop in self.stops(setting.suite, method)
        ]
        told = Journal()  # Those of the rows are told already.
        key = setting.first_key
        return {own.name: own.make(key, told) for own in candidates}

    def other_zips(self, setting: Setting) -> dict[str, Any]:
        """Returns the assignments of zips by weights, and by both, by name."""
        options = dict(self.config.zipit)
        recipes = {
            "W. Zip": zipjax.weight_zip(**options),
            "MuDSC-Zip": zipjax.mudsc(_EVEN, **options),
        }
        return {
            name: zipjax.match(
                setting.models,
                setting.suite.specs,
                recipe,
                moments=setting.moments,
                key=setting.first_key,
            )
            for name, recipe in recipes.items()
        }

    def landscape(self, setting: Setting, zips: dict[str, Any]) -> Landscape | None:
        """Measures losses on the plane of two networks and their zips, if any."""
        points, suite = self.config.plane.points, setting.suite
        if not points or not suite.shares_outputs:
            return None
        through = corners(setting.models, suite.spec, setting.moments, *zips.values())
        lay = Plane.through if len(zips) == 1 else Plane.close_to
        images = self.config.plane.images
        tested = suite.testing(images).calibrating(images)

        def losses(model: Variables) -> np.ndarray:
            """Returns every task's loss, with batch statistics measured again."""
            model = self.runner.calibrated(model, tested)
            return tested.losses(model, self.config.batch_size)

        title = f"{setting.parents.name}: losses on a plane"
        track = functools.partial(self.track, title=title)
        names = ("A", "B, permuted", *zips)
        return Landscape.of(lay(through), losses, points, track, names)

    def track(self, steps: Iterable[Any], title: str) -> Iterable[Any]:
        """Shows a progress bar."""
        return track(steps, title, console=self.console, transient=True)

    def say(self, message: str) -> None:
        """Prints a message."""
        self.console.print(message, style="dim")


def groups(
    names: Sequence[str | int], count: int
) -> Iterator[tuple[str, Sequence[int]]]:
    """Yields the groups of networks that are merged, with their title in the tables.

    Args:
      names: "all" networks at once, "pairs", or the number of networks in a group.
      count: number of networks.
    """
    for name in names:
        size = min(group_size(name, count), count)
        title = "Pairs" if size == 2 else f"Groups of {size}"
        for numbers in itertools.combinations(range(count), size):
            yield "" if size == count else title, numbers


def _check_examples(
    field: str, suite: Suite, counts: Sequence[int] | None = None
) -> None:
    """Checks that every task has examples, by default for its test."""
    found = [len(task.test) for task in suite.tasks] if counts is None else counts
    if 0 in found:
        raise ValueError(
            f"config.{field} leaves {suite.tasks[found.index(0)].name!r} without any "
            "image of its classes: raise it, or set it to None"
        )


def _positions(config: Config) -> Positions:
    """Returns the config's positions, which may be a number."""
    text = config.positions
    return int(text) if text.isdecimal() else text


def _fields(moments: zipjax.Moments) -> dict[str, Any]:
    """Returns moments as a tree of arrays, without those that there are none of."""
    *arrays, _ = dependence.MOMENTS
    fields = {name: getattr(moments, name) for name in arrays}
    before = moments.earlier
    return fields if before is None else {**fields, "earlier": _fields(before)}


def _moments(fields: Mapping[str, Any]) -> zipjax.Moments:
    """Returns moments from what :func:`_fields` returned."""
    before = fields.get("earlier")
    earlier = None if before is None else _moments(before)
    return zipjax.Moments(**{**fields, "earlier": earlier})
