"""The kinds of tasks that a config's ``tasks`` can name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from experiments.data.splits import Track
from experiments.parents.tasks.classes import ClassKind
from experiments.parents.tasks.logits import DatasetsKind
from experiments.parents.tasks.same import SameKind
from experiments.parents.tasks.scenes import ScenesKind
from experiments.parents.tasks.suite import Suite, Task


@runtime_checkable
class Kind(Protocol):
    """What networks are trained on: data that are opened once, and suites of them."""

    @property
    def note(self) -> str:
        """What tables of these tasks show, in a sentence or two."""
        ...

    def suite(self, key: jax.Array) -> Suite:
        """Returns the tasks of the networks of one seed.

        Args:
          key: PRNG key of what is drawn.
        """
        ...

    def everything(self) -> Task:
        """Returns the task of the network that all others are fine-tuned from."""
        ...

    def pretrained(self, folder: Path) -> Suite:
        """Returns the tasks of the networks in a folder."""
        ...


KINDS: Mapping[str, Callable[[Any, Track], Kind]] = {
    "split": ClassKind.of,
    "prime_odd": ClassKind.of,
    "same": SameKind.of,
    "datasets": DatasetsKind.of,
    "scenes": ScenesKind.of,
}
"""By name; each is made from a config and a progress bar."""
