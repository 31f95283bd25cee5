"""Merges of networks by the methods of a table."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import zipjax
from experiments.methods.journal import Journal
from experiments.methods.rows import Method
from experiments.methods.runner import Model, Runner
from experiments.parents.tasks.classes import ClassSuite
from experiments.parents.tasks.suite import Suite
from experiments.parents.train import Config, Variables
from experiments.parents.trained import Parents
from zipjax.merging.each import each


@dataclasses.dataclass(frozen=True)
class Setting:
    """The networks to merge and the moments of their units, shared by all methods.

    Attributes:
      parents: the networks as they were trained.
      models: their variables to merge, with reset batch statistics if the config says
        so.
      moments: of the units of these.
    """

    parents: Parents
    models: list[Variables]
    moments: dict[str, zipjax.Moments]

    @property
    def suite(self) -> Suite:
        """The networks' tasks."""
        return self.parents.suite

    @property
    def first_key(self) -> jax.Array:
        """The PRNG key of searches, and of merges that are made for one key only."""
        return next(iter(self.parents.keys.values()))


@dataclasses.dataclass(frozen=True)
class Merger:
    """Merges networks by the methods of a table.

    Attributes:
      runner: how networks are run.
      config: the experiment's configuration.
      journal: what merges so far have told. Their searches are not made again.
    """

    runner: Runner
    config: Config
    journal: Journal

    def merged(
        self,
        setting: Setting,
        method: Method,
        stop: zipjax.Cut | None,
        key: jax.Array,
        journal: Journal,
    ) -> Model:
        """Merges, measures batch statistics again, and refits if the method does.

        Args:
          setting: the networks.
          method: the method.
          stop: where the merge stops; None: it merges everything.
          key: PRNG key of methods that iterate.
          journal: what this merge tells is added to it.
        """
        recipe = method.recipe(**self.settings(setting, method, stop, journal))
        suite = setting.suite
        number = suite.whole if stop is None else stop.number
        sweeps: list[zipjax.Sweep] = []
        assignments = journal.timed(
            ("matching", method.title),
            lambda: self.matched(setting, method, recipe, number, key, sweeps),
        )
        if sweeps:
            journal.sweeps.setdefault(method.title, sweeps)
        merged = journal.timed(
            ("merging", method.title),
            lambda: zipjax.merge_units(
                setting.models, suite.specs, assignments, stop_at=number
            ),
        )
        merged = self.runner.calibrated(merged, suite)
        if method.refit:
            merged = self.refitted(setting, merged, method.refit)
        return plain(merged)

    def settings(
        self,
        setting: Setting,
        method: Method,
        stop: zipjax.Cut | None,
        journal: Journal,
    ) -> dict[str, Any]:
        """Returns the settings of a method's recipe: the config's, or searched ones."""
        given = {"balance": 0.0, **self.config.zipit}
        for names in method.searched:
            grid = {name: self.config.grid[name] for name in names}
            given |= self.best(setting, method, given, grid, journal)
        if _set_apart(method, stop):
            given |= self.config.partial_zipit
        return {name: given[name] for name in method.settings}

    def inputs(
        self, setting: Setting, method: Method, stop: zipjax.Cut | None
    ) -> dict[str, Any]:
        """Returns what a merge depends on besides the networks, their moments and key.

        Returns:
          JSON data: the fields of the config that :meth:`merged` reads.
        """
        config = self.config
        given = {"zipit": config.zipit}
        if _set_apart(method, stop):
            given["partial_zipit"] = config.partial_zipit
        found: dict[str, Any] = {
            "method": method.title,
            "stop": None if stop is None else stop.number,
            **{
                field: {name: own[name] for name in method.settings if name in own}
                for field, own in given.items()
            },
        }
        if method.searched:
            names = itertools.chain(*method.searched)
            found["grid"] = {name: config.grid[name] for name in names}
            key = jax.random.key_data(setting.first_key).tolist()
            found["search"] = {"images": config.search_images, "key": key}
        if method.allots:
            found["cost"] = config.cost if stop is None else config.partial_cost
        if method.refit:
            found["refit_images"] = config.refit_images
        return found

    def best(
        self,
        setting: Setting,
        method: Method,
        given: Mapping[str, Any],
        grid: dict[str, Sequence[Any]],
        journal: Journal,
    ) -> dict[str, Any]:
        """Returns the best settings of a grid, searched once per set of networks.

        The score is the average of the tasks' on training images.
        """
        if all(len(values) == 1 for values in grid.values()):
            return {name: value for name, (value,) in grid.items()}
        parents = setting.parents
        searching = parents.suite.searching(self.config.search_images)
        suite = searching.scaled(parents.models, self.config.batch_size)

        def score(merged: zipjax.Merged) -> float:
            model = plain(self.runner.calibrated(merged, suite))
            return self.runner.evaluate(model, suite).average

        def make_recipe(**settings: Any) -> zipjax.Recipe:
            every = {**given, **settings}
            return method.recipe(**{name: every[name] for name in method.settings})

        name = method.title, *grid
        found = self.journal.searches.get(name, {}).get(parents.name)
        if found is None:
            found = zipjax.search(
                setting.models,
                suite.specs,
                make_recipe,
                grid,
                score,
                moments=setting.moments,
                stop_at=suite.whole,
                key=setting.first_key,
            )
        journal.add(Journal(searches={name: {parents.name: found}}))
        return found.best.settings

    def matched(
        self,
        setting: Setting,
        method: Method,
        recipe: zipjax.Recipe,
        stop_at: int | None,
        key: jax.Array,
        sweeps: list[zipjax.Sweep],
    ) -> dict[str, Any]:
        """Matches the networks' units; sweeps are appended to a list."""
        if method.sequential:
            return self.matched_sequentially(setting, recipe, stop_at)
        (spec, *_) = each(setting.suite.specs, len(setting.models), "specs")
        if stop_at and spec.stop(stop_at).boundary is not None:
            setting = self.reading_up_to(setting, stop_at)
        if method.allots:
            recipe = self.allotted(setting, recipe, stop_at)
        return zipjax.match(
            setting.models,
            setting.suite.specs,
            recipe,
            moments=setting.moments,
            stop_at=stop_at,
            key=key,
            report=sweeps.append,
        )

    def reading_up_to(self, setting: Setting, stop_at: int) -> Setting:
        """Returns the networks with moments for a cut inside a residual stream."""
        moments = zipjax.collect_moments(
            setting.suite.functions,
            setting.models,
            setting.suite.specs,
            self.runner.inputs(setting.suite),
            stop_at=stop_at,
            positions=self.runner.positions,
        )
        return dataclasses.replace(setting, moments=moments)

    def matched_sequentially(
        self, setting: Setting, recipe: zipjax.Recipe, stop_at: int | None
    ) -> dict[str, Any]:
        """Matches units by their activations after the layers merged so far."""
        suite = setting.suite
        return zipjax.match_sequential(
            suite.functions,
            setting.models,
            suite.specs,
            recipe,
            self.runner.inputs(suite),
            stop_at=stop_at,
            positions=self.runner.positions,
            calibrate=lambda merged: self.runner.calibrated(merged, suite),
        )

    def allotted(
        self, setting: Setting, recipe: zipjax.Recipe, stop_at: int | None
    ) -> zipjax.Recipe:
        """Returns the recipe with the widths that lose least within a budget."""
        suite = setting.suite
        whole = stop_at == suite.whole
        cost = self.config.cost if whole else self.config.partial_cost
        widths = zipjax.allot_units(
            suite.tasks[0].apply_fn,
            setting.models,
            suite.tasks[0].spec,
            recipe,
            next(iter(suite.inputs(1))),
            moments=setting.moments,
            cost=cost,
            stop_at=stop_at,
        )
        return dataclasses.replace(recipe, num_units=widths)

    def refitted(
        self,
        setting: Setting,
        merged: zipjax.Merged,
        target: str,
    ) -> zipjax.Merged:
        """Refits a merged model's layers."""
        suite = setting.suite
        outputs = None
        if target == "ensemble" and isinstance(suite, ClassSuite):
            outputs = zipjax.ensemble_target(*suite.embeddings_by_label())
        return zipjax.refit(
            suite.tasks[0].apply_fn,
            setting.models,
            merged,
            self.runner.inputs(suite.calibrating(self.config.refit_images)),
            outputs=outputs,
        )


def plain(merged: zipjax.Merged) -> Model:
    """Returns a whole merge as plain variables, which share the compiled network."""
    return merged if merged.heads else merged.params()


def _set_apart(method: Method, stop: zipjax.Cut | None) -> bool:
    """Returns whether a merge has the config's settings of partial zips."""
    # A small beta, as partial zips have it, would leave no widths to choose.
    chosen = method.allots or "alpha" in itertools.chain(*method.searched)
    return stop is not None and not chosen
