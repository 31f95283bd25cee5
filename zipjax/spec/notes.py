"""What inference found out about a function beyond its spec, for people to read."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Notes:
    """Remarks on a spec; specs that differ in their notes alone are equal.

    Attributes:
      frozen: for every axis of every parameter, why it is frozen as a whole or in part;
        None if it is not.
      taps: for every perm, where its units are read.
    """

    frozen: Mapping[str, tuple[str | None, ...]]
    taps: Mapping[str, str]

    @classmethod
    def from_json(cls, data: Any) -> "Notes":
        """Reads what ``dataclasses.asdict`` returned."""
        frozen = {path: tuple(reasons) for path, reasons in data["frozen"].items()}
        return cls(frozen, dict(data["taps"]))
