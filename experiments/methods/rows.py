"""The methods of merging that a config may list as ``rows`` of its table."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

import zipjax


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of merging: a row of the table.

    Attributes:
      title: its name in the tables.
      recipe: makes the recipe from its settings.
      settings: the names of these: "alpha" and "beta" come from the config's ``zipit``;
        "balance" is 0 (activations only) unless it is searched.
      searched: settings that are chosen by their score on training images, one tuple of
        names after the other, where the config's ``grid`` has several values.
      iterates: whether it matches perms in a random order, more than once.
      sequential: whether moments are collected after the layers merged so far.
      allots: whether merged widths are allotted within the config's ``cost``.
      refit: the target of the outputs in a refit: the "mean" of the networks' outputs,
        or the predictions of the "ensemble"; "" for no refit.
    """

    title: str
    recipe: Callable[..., zipjax.Recipe]
    settings: tuple[str, ...] = ()
    searched: tuple[tuple[str, ...], ...] = ()
    iterates: bool = False
    sequential: bool = False
    allots: bool = False
    refit: Literal["", "mean", "ensemble"] = ""


_ZIPS = ("alpha", "beta")
_ZIPIT = Method("ZipIt!", zipjax.zipit, _ZIPS)
_MUDSC = Method(
    "MuDSC-Zip",
    zipjax.mudsc,
    (*_ZIPS, "balance"),
    searched=(("balance",),),
    iterates=True,
)

METHODS = {
    "average": Method("Average", zipjax.average),
    "git_rebasin": Method("Git Re-Basin", zipjax.git_rebasin, iterates=True),
    "git_rebasin_correlation": Method(
        "Git Re-Basin (correlation)",
        functools.partial(zipjax.git_rebasin, metric="correlation"),
        iterates=True,
    ),
    "permute": Method("Permute", zipjax.permute),
    "mudsc_align": Method(
        "MuDSC-Align",
        functools.partial(zipjax.mudsc, matching="align"),
        ("balance",),
        searched=(("balance",),),
        iterates=True,
    ),
    "zipit": _ZIPIT,
    "weight_zip": Method("W. Zip", zipjax.weight_zip, _ZIPS, iterates=True),
    "mudsc_zip": _MUDSC,
    "zipit_searched": dataclasses.replace(
        _ZIPIT, title="ZipIt! (searched)", searched=(_ZIPS,)
    ),
    "mudsc_zip_searched": dataclasses.replace(
        _MUDSC, title="MuDSC-Zip (searched)", searched=(_ZIPS, ("balance",))
    ),
    "zipit_sequential": dataclasses.replace(
        _ZIPIT, title="ZipIt!, sequential", sequential=True
    ),
    "zipit_allotted": dataclasses.replace(
        _ZIPIT, title="ZipIt!, allotted widths", allots=True
    ),
    "zipit_refit_ensemble": dataclasses.replace(
        _ZIPIT, title="ZipIt! + refit to the ensemble", refit="ensemble"
    ),
    "zipit_allotted_refit": dataclasses.replace(
        _ZIPIT,
        title="ZipIt!, allotted widths + refit",
        allots=True,
        refit="ensemble",
    ),
}
# The tables of the papers.
PAPERS = (
    *("average", "git_rebasin", "permute", "mudsc_align"),
    *("zipit", "weight_zip", "mudsc_zip"),
)
# Each of their rows has one that is refitted afterwards: "zipit_refit" and so on.
REFITS = tuple(f"{name}_refit" for name in PAPERS)
METHODS |= {
    refit: dataclasses.replace(
        METHODS[name], title=f"{METHODS[name].title} + refit", refit="mean"
    )
    for name, refit in zip(PAPERS, REFITS, strict=True)
}


def chosen_methods(rows: Sequence[str]) -> list[Method]:
    """Looks up the methods of a table.

    Raises:
      ValueError: if one is unknown.
    """
    if unknown := sorted(set(rows) - set(METHODS)):
        raise ValueError(f"rows {unknown} are unknown: choose among {sorted(METHODS)}")
    return [METHODS[name] for name in rows]


def one_of_a_kind(rows: Sequence[str], partial: Sequence[str]) -> tuple[str, ...]:
    """Returns one row, the first, of all those that run through the same code.

    Args:
      rows: names of methods.
      partial: the names of those that also stop earlier.

    Raises:
      ValueError: if a row is unknown.
    """
    kinds: dict[tuple[Any, ...], str] = {}
    for name, method in zip(rows, chosen_methods(rows), strict=True):
        flags = method.iterates, method.sequential, method.allots, method.refit
        kinds.setdefault((name in partial, len(method.searched), *flags), name)
    return tuple(kinds.values())


def chosen_cuts(
    cuts: Sequence[zipjax.Cut], most: int, layers: Sequence[int]
) -> list[zipjax.Cut]:
    """Returns where partial zips stop, the deepest first.

    Args:
      cuts: where they may stop, by depth.
      most: the number of cuts, evenly spread, or fewer if there are fewer.
      layers: instead of these, unless empty: the numbers of zipped layers.

    Raises:
      ValueError: if there is no cut after one of these numbers of layers.
    """
    if not layers:
        places = np.linspace(len(cuts) - 1, 0, min(most, len(cuts)))
        return [cuts[place] for place in places.round().astype(int)]
    known = {cut.layers: cut for cut in cuts}
    if unknown := sorted(set(layers) - set(known)):
        raise ValueError(
            f"cut_layers {unknown}: there is no cut after these numbers of layers. The "
            f"cuts are after {sorted(known)} layers"
        )
    return [known[number] for number in sorted(layers, reverse=True)]
