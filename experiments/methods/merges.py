"""Merges of networks by the methods of a table."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

import zipjax
from experiments.methods.rows import Method
from experiments.methods.runner import Model, Runner
from experiments.parents import tasks
from experiments.parents.train import Config, Variables
from experiments.parents.trained import Parents

T = TypeVar("T")


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


@dataclasses.dataclass(frozen=True)
class Merger:
    """Merges networks by the methods of a table, and keeps records for the report.

    Attributes:
      runner: the network.
      spec: its permutation spec.
      config: the experiment's configuration.
      sweeps: the sweeps of methods that iterate, by title, for the first networks and
        key.
      searches: by title and names of the settings searched, and by networks.
      seconds: how long the first match and the first merge of every title took.
    """

    runner: Runner
    spec: zipjax.PermutationSpec
    config: Config
    sweeps: dict[str, list[zipjax.Sweep]] = dataclasses.field(default_factory=dict)
    searches: dict[tuple[str, ...], dict[str, zipjax.Search]] = dataclasses.field(
        default_factory=dict
    )
    seconds: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)

    def merged(
        self,
        setting: Setting,
        method: Method,
        stop: zipjax.Cut | None,
        key: jax.Array,
    ) -> Model:
        """Merges, measures batch statistics again, and refits if the method does."""
        recipe = method.recipe(**self.settings(setting, method, stop, key))
        number = None if stop is None else stop.number
        assignments = self.timed(
            ("matching", method.title),
            lambda: self.matched(setting, method, recipe, number, key),
        )
        merged = self.timed(
            ("merging", method.title),
            lambda: zipjax.merge_units(
                setting.models, self.spec, assignments, stop_at=number
            ),
        )
        merged = self.runner.calibrated(merged, setting.parents.calibration)
        if method.refit:
            merged = self.refitted(setting, merged, method.refit)
        return plain(merged)

    def settings(
        self,
        setting: Setting,
        method: Method,
        stop: zipjax.Cut | None,
        key: jax.Array,
    ) -> dict[str, Any]:
        """Returns the settings of a method's recipe: the config's, or searched ones."""
        given = {"balance": 0.0, **self.config.zipit}
        for names in method.searched:
            grid = {name: self.config.grid[name] for name in names}
            given |= self.best(setting, method, given, grid, key)
        # A small beta, as partial zips have it, would leave no widths to choose.
        chosen = method.allots or "alpha" in itertools.chain(*method.searched)
        if stop is not None and not chosen:
            given |= self.config.partial_zipit
        return {name: given[name] for name in method.settings}

    def best(
        self,
        setting: Setting,
        method: Method,
        given: Mapping[str, Any],
        grid: dict[str, Sequence[Any]],
        key: jax.Array,
    ) -> dict[str, Any]:
        """Returns the best settings of a grid, searched once per set of networks.

        The score is the average accuracy on training images.
        """
        if all(len(values) == 1 for values in grid.values()):
            return {name: value for name, (value,) in grid.items()}
        parents = setting.parents
        images = parents.calibration.take(slice(self.config.search_images))

        def score(merged: zipjax.Merged) -> float:
            model = plain(self.runner.calibrated(merged, images))
            return self.runner.evaluate(model, images, parents.tasks).average

        def make_recipe(**settings: Any) -> zipjax.Recipe:
            every = {**given, **settings}
            return method.recipe(**{name: every[name] for name in method.settings})

        found = self.searches.setdefault((method.title, *grid), {})
        if parents.name not in found:
            found[parents.name] = zipjax.search(
                setting.models,
                self.spec,
                make_recipe,
                grid,
                score,
                moments=setting.moments,
                key=key,
            )
        return found[parents.name].best.settings

    def matched(
        self,
        setting: Setting,
        method: Method,
        recipe: zipjax.Recipe,
        stop_at: int | None,
        key: jax.Array,
    ) -> dict[str, Any]:
        """Matches the networks' units."""
        if method.sequential:
            return self.matched_sequentially(setting, recipe, stop_at)
        if stop_at and self.spec.stop(stop_at).boundary is not None:
            setting = self.reading_up_to(setting, stop_at)
        if method.allots:
            recipe = self.allotted(setting, recipe, stop_at)
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
            self.sweeps.setdefault(method.title, sweeps)
        return assignments

    def reading_up_to(self, setting: Setting, stop_at: int) -> Setting:
        """Returns the networks with moments for a cut inside a residual stream."""
        moments = zipjax.collect_moments(
            self.runner.apply_fn,
            setting.models,
            self.spec,
            list(self.runner.batches(setting.parents.calibration)),
            stop_at=stop_at,
            positions=self.runner.positions,
        )
        return dataclasses.replace(setting, moments=moments)

    def matched_sequentially(
        self, setting: Setting, recipe: zipjax.Recipe, stop_at: int | None
    ) -> dict[str, Any]:
        """Matches units by their activations after the layers merged so far."""
        images = setting.parents.calibration
        return zipjax.match_sequential(
            self.runner.apply_fn,
            setting.models,
            self.spec,
            recipe,
            list(self.runner.batches(images)),
            stop_at=stop_at,
            positions=self.runner.positions,
            calibrate=lambda merged: self.runner.calibrated(merged, images),
        )

    def allotted(
        self, setting: Setting, recipe: zipjax.Recipe, stop_at: int | None
    ) -> zipjax.Recipe:
        """Returns the recipe with the widths that lose least within a budget."""
        cost = self.config.cost if stop_at is None else self.config.partial_cost
        widths = zipjax.allot_units(
            self.runner.apply_fn,
            setting.models,
            self.spec,
            recipe,
            next(setting.parents.calibration.batches(1))[0],
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
        parents = setting.parents
        images = parents.calibration.take(slice(self.config.refit_images))
        outputs = None
        if target == "ensemble":
            outputs = zipjax.ensemble_target(*tasks.by_label(parents.tasks))
        return zipjax.refit(
            self.runner.apply_fn,
            setting.models,
            merged,
            self.runner.batches(images),
            outputs=outputs,
        )

    def timed(self, name: tuple[str, str], function: Callable[[], T]) -> T:
        """Returns a function's result, and records how long the first call took."""
        start = time.perf_counter()
        found = jax.block_until_ready(function())
        self.seconds.setdefault(name, time.perf_counter() - start)
        return found


def plain(merged: zipjax.Merged) -> Model:
    """Returns a whole merge as plain variables, which share the compiled network."""
    return merged if merged.heads else merged.params()
