"""Merges of networks, as the methods of a table say."""

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
from experiments.parents.parents import Networks
from experiments.parents.train import Config, Variables

T = TypeVar("T")


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


@dataclasses.dataclass(frozen=True)
class Merger:
    """Merges networks by the methods of a table, and keeps what there is to tell.

    Attributes:
      runner: the network.
      spec: its permutation spec.
      config: the experiment's configuration.
      sweeps: how methods iterated, by title, of the first networks and key.
      searches: by title and names of the settings searched, and by networks.
      seconds: of the first match and the first merge of every title.
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
        """Merges, measures the batch statistics anew, and refits if that is wanted."""
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
        merged = self.runner.calibrated(merged, setting.networks.calibration)
        if method.refit:
            merged = self.refitted(setting, merged, assignments, method.refit)
        return plain(merged)

    def settings(
        self,
        setting: Setting,
        method: Method,
        stop: zipjax.Cut | None,
        key: jax.Array,
    ) -> dict[str, Any]:
        """Returns the settings of a method's recipe: of the config, or searched."""
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
        """Returns what does best of a grid on training images, found once a network."""
        if all(len(values) == 1 for values in grid.values()):
            return {name: value for name, (value,) in grid.items()}
        networks = setting.networks
        images = networks.calibration.take(slice(self.config.search_images))

        def score(merged: zipjax.Merged) -> float:
            model = plain(self.runner.calibrated(merged, images))
            return self.runner.evaluate(model, images, networks.tasks).average

        def recipe(**settings: Any) -> zipjax.Recipe:
            every = {**given, **settings}
            return method.recipe(**{name: every[name] for name in method.settings})

        found = self.searches.setdefault((method.title, *grid), {})
        if networks.name not in found:
            found[networks.name] = zipjax.search(
                setting.models,
                self.spec,
                recipe,
                grid,
                score,
                moments=setting.moments,
                key=key,
            )
        return found[networks.name].best.settings

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

    def matched_sequentially(
        self, setting: Setting, recipe: zipjax.Recipe, stop_at: int | None
    ) -> dict[str, Any]:
        """Matches units through what is merged already."""
        images = setting.networks.calibration
        return zipjax.match_sequential(
            self.runner.apply_fn,
            setting.models,
            self.spec,
            recipe,
            list(self.runner.batches(images)),
            stop_at=stop_at,
            calibrate=lambda merged: self.runner.calibrated(merged, images),
        )

    def allotted(
        self, setting: Setting, recipe: zipjax.Recipe, stop_at: int | None
    ) -> zipjax.Recipe:
        """Returns the recipe with the widths that lose least at the config's cost."""
        cost = self.config.cost if stop_at is None else self.config.partial_cost
        widths = zipjax.allot_units(
            self.runner.apply_fn,
            setting.models,
            self.spec,
            recipe,
            next(self.runner.batches(setting.networks.calibration.take(slice(1)))),
            moments=setting.moments,
            cost=cost,
            stop_at=stop_at,
        )
        return dataclasses.replace(recipe, num_units=widths)

    def refitted(
        self,
        setting: Setting,
        merged: zipjax.Merged,
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
            self.runner.apply_fn,
            setting.models,
            merged,
            assignments,
            self.runner.batches(images),
            outputs=outputs,
        )

    def timed(self, name: tuple[str, str], function: Callable[[], T]) -> T:
        """Calls a function and notes the seconds, the first time."""
        start = time.perf_counter()
        found = jax.block_until_ready(function())
        self.seconds.setdefault(name, time.perf_counter() - start)
        return found


def plain(merged: zipjax.Merged) -> Model:
    """Returns one network as any other, so that running it is compiled once."""
    return merged if merged.heads else merged.params()
