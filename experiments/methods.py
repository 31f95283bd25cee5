"""The rows of the papers' tables: what a config may list as ``rows``."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

import zipjax


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of merging, as a row.

    Attributes:
      title: what the tables call it.
      recipe: makes the recipe from the config's ``zipit`` and, if the method is
        balanced, a balance.
      balanced: whether it has a balance to be chosen.
      partial: whether the table also shows how it does when it stops earlier.
    """

    title: str
    recipe: Callable[..., zipjax.Recipe]
    balanced: bool = False
    partial: bool = False


METHODS = {
    "average": Method("Average", lambda zips: zipjax.average()),
    "git_rebasin": Method("Git Re-Basin", lambda zips: zipjax.git_rebasin()),
    "permute": Method("Permute", lambda zips: zipjax.permute()),
    "mudsc_align": Method(
        "MuDSC-Align",
        lambda zips, balance: zipjax.mudsc(balance, "align"),
        balanced=True,
    ),
    "zipit": Method("ZipIt!", lambda zips: zipjax.zipit(**zips), partial=True),
    "weight_zip": Method("W. Zip", lambda zips: zipjax.weight_zip(**zips)),
    "mudsc_zip": Method(
        "MuDSC-Zip",
        lambda zips, balance: zipjax.mudsc(balance, "zip", **zips),
        balanced=True,
    ),
}


def chosen_methods(rows: Sequence[str]) -> list[Method]:
    """Looks up the methods of a table.

    Raises:
      ValueError: if one is unknown.
    """
    if unknown := sorted(set(rows) - set(METHODS)):
        raise ValueError(f"rows {unknown} are unknown: choose among {sorted(METHODS)}")
    return [METHODS[name] for name in rows]


def spread_cuts(spec: zipjax.PermutationSpec, most: int) -> list[zipjax.Cut]:
    """Returns cuts from the deepest on, at most so many, evenly spread."""
    places = np.linspace(len(spec.cuts) - 1, 0, min(most, len(spec.cuts)))
    return [spec.cuts[place] for place in places.round().astype(int)]
