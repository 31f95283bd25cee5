"""Kinds whose tasks have outputs of their own: no network knows all of them."""

import abc
from pathlib import Path
from typing import Generic, TypeVar

import jax

from experiments.parents.tasks.suite import Suite, Task

S_co = TypeVar("S_co", bound=Suite, covariant=True)


class SeparateKind(abc.ABC, Generic[S_co]):
    """Tasks that are the same for all seeds, and in every folder of networks."""

    @abc.abstractmethod
    def suite(self, key: jax.Array) -> S_co:
        """Returns the tasks.

        Args:
          key: is not needed: nothing is drawn.
        """

    def everything(self) -> Task:
        """Refuses: there is no task of all.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "config.init = 'finetuned' needs one task of all classes, which tasks of "
            "different outputs do not have: use 'scratch'"
        )

    def pretrained(self, folder: Path) -> S_co:
        """Returns the tasks of the networks in a folder."""
        del folder
        return self.suite(jax.random.key(0))
