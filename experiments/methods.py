"""The rows of the papers' tables: what a config may list as ``rows``."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

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
      iterates: whether it matches perms in a random order, more than once.
      refit: the target of the outputs if layers are solved anew: "" for none, "mean"
        of the networks' outputs, or what the "ensemble" answers.
    """

    title: str
    recipe: Callable[..., zipjax.Recipe]
    balanced: bool = False
    partial: bool = False
    iterates: bool = False
    refit: Literal["", "mean", "ensemble"] = ""


METHODS = {
    "average": Method("Average", lambda zips: zipjax.average()),
    "git_rebasin": Method(
        "Git Re-Basin", lambda zips: zipjax.git_rebasin(), iterates=True
    ),
    "git_rebasin_correlation": Method(
        "Git Re-Basin (correlation)",
        lambda zips: zipjax.git_rebasin(metric="correlation"),
        iterates=True,
    ),
    "permute": Method("Permute", lambda zips: zipjax.permute()),
    "mudsc_align": Method(
        "MuDSC-Align",
        lambda zips, balance: zipjax.mudsc(balance, "align"),
        balanced=True,
        iterates=True,
    ),
    "zipit": Method("ZipIt!", lambda zips: zipjax.zipit(**zips), partial=True),
    "weight_zip": Method(
        "W. Zip", lambda zips: zipjax.weight_zip(**zips), iterates=True
    ),
    "mudsc_zip": Method(
        "MuDSC-Zip",
        lambda zips, balance: zipjax.mudsc(balance, "zip", **zips),
        balanced=True,
        iterates=True,
    ),
    "zipit_refit": Method(
        "ZipIt! + refit", lambda zips: zipjax.zipit(**zips), partial=True, refit="mean"
    ),
    "zipit_refit_ensemble": Method(
        "ZipIt! + refit to the ensemble",
        lambda zips: zipjax.zipit(**zips),
        refit="ensemble",
    ),
}
# The tables of the papers.
PAPERS = (
    *("average", "git_rebasin", "permute", "mudsc_align"),
    *("zipit", "weight_zip", "mudsc_zip"),
)


def chosen_methods(rows: Sequence[str]) -> list[Method]:
    """Looks up the methods of a table.

    Raises:
      ValueError: if one is unknown.
    """
    if unknown := sorted(set(rows) - set(METHODS)):
        raise ValueError(f"rows {unknown} are unknown: choose among {sorted(METHODS)}")
    return [METHODS[name] for name in rows]


def one_of_a_kind(rows: Sequence[str]) -> tuple[str, ...]:
    """Returns the first row of those that run through the same code.

    Raises:
      ValueError: if a row is unknown.
    """
    kinds: dict[tuple[Any, ...], str] = {}
    for name, method in zip(rows, chosen_methods(rows), strict=True):
        kind = method.balanced, method.partial, method.iterates, method.refit
        kinds.setdefault(kind, name)
    return tuple(kinds.values())


def spread_cuts(spec: zipjax.PermutationSpec, most: int) -> list[zipjax.Cut]:
    """Returns cuts from the deepest on, at most so many, evenly spread."""
    places = np.linspace(len(spec.cuts) - 1, 0, min(most, len(spec.cuts)))
    return [spec.cuts[place] for place in places.round().astype(int)]
