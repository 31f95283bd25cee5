"""Where examples come from: random access to their fields, by number."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from experiments.fingerprints import array_digest

Fields: TypeAlias = Mapping[str, Sequence[np.ndarray] | np.ndarray]
"""By name, one array per example: ``image`` [height, width, channels] as it is stored,
``mask`` [height, width] with a class per pixel, and other targets by their names. One
array holds all examples where these have one shape."""


class Source(Protocol):
    """Random access to the examples of a data set.

    What a source holds can be pickled: other processes read with a copy of it.
    """

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def read(self, numbers: np.ndarray, fields: Sequence[str]) -> Fields:
        """Returns some fields of some examples; other fields are not decoded.

        Many at once, because some storage reads these several times faster.

        Raises:
          ValueError: if an example cannot be decoded, naming the file.
          OSError: if a file cannot be read.
        """
        ...

    def digest(self, numbers: np.ndarray) -> str:
        """Returns a digest that differs where the examples of these numbers do."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Examples in memory.

    Attributes:
      fields: by name, ``[examples, ...]``.
    """

    fields: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def read(self, numbers: np.ndarray, fields: Sequence[str]) -> Fields:
        """Returns some fields of some examples."""
        return {name: self.fields[name][numbers] for name in fields}

    def digest(self, numbers: np.ndarray) -> str:
        """Returns a digest of the values."""
        return array_digest(*(self.fields[name][numbers] for name in self.fields))
