"""What merges tell besides the merged networks, for the report."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

import zipjax

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Journal:
    """What one row of a table tells, or all of them.

    Attributes:
      sweeps: the sweeps of methods that iterate, by title, for the first networks and
        key.
      searches: by title and names of the settings searched, and by networks.
      seconds: how long the first call of every step took, by step and title.
    """

    sweeps: dict[str, list[zipjax.Sweep]] = dataclasses.field(default_factory=dict)
    searches: dict[tuple[str, ...], dict[str, zipjax.Search]] = dataclasses.field(
        default_factory=dict
    )
    seconds: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)

    def add(self, others: "Journal") -> None:
        """Adds what is not there yet."""
        for title, sweeps in others.sweeps.items():
            self.sweeps.setdefault(title, sweeps)
        for name, own in others.searches.items():
            found = self.searches.setdefault(name, {})
            for networks, search in own.items():
                found.setdefault(networks, search)
        for step, seconds in others.seconds.items():
            self.seconds.setdefault(step, seconds)

    def timed(self, step: tuple[str, str], function: Callable[[], T]) -> T:
        """Returns a function's result, and notes how long the first call took."""
        start = time.perf_counter()
        found = jax.block_until_ready(function())
        self.seconds.setdefault(step, time.perf_counter() - start)
        return found

    def data(self) -> dict[str, Any]:
        """Returns JSON data, of which :meth:`of` makes the same journal."""
        return {
            "sweeps": {
                title: [dataclasses.asdict(sweep) for sweep in sweeps]
                for title, sweeps in self.sweeps.items()
            },
            "searches": [
                [name, networks, [[x.settings, x.score] for x in search.trials]]
                for name, own in self.searches.items()
                for networks, search in own.items()
            ],
            "seconds": [[*step, seconds] for step, seconds in self.seconds.items()],
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Journal":
        """Returns the journal that :meth:`data` was called on."""
        journal = cls()
        for title, sweeps in data["sweeps"].items():
            journal.sweeps[title] = [zipjax.Sweep(**sweep) for sweep in sweeps]
        for name, networks, trials in data["searches"]:
            search = zipjax.Search(tuple(zipjax.Trial(*trial) for trial in trials))
            journal.searches.setdefault(tuple(name), {})[networks] = search
        for *step, seconds in data["seconds"]:
            journal.seconds[tuple(step)] = seconds
        return journal
