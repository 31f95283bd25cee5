"""Merging units of two networks in pairs, to see what becomes of them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import zipjax
from experiments.methods.merges import Setting
from experiments.methods.runner import Runner
from experiments.parents.tasks.suite import Suite
from experiments.report.unit_pairs import UnitPairs
from zipjax.merging.each import each
from zipjax.trees import path_leaves

# Every unit of one network is merged with so many of the other.
_PARTNERS = 16
# Of the most that a unit varies, as a variance: less is none.
_DEAD = 1e-8


def unit_pairs(
    setting: Setting,
    runner: Runner,
    images: int | None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> UnitPairs | None:
    """Merges units of the middle layer with units of the other network.

    All other units are merged with those that Permute gives them. A merge of two units
    is a network in which they are one: every network merges each unit with another one,
    so that a few networks show many pairs.

    Args:
      setting: two networks, and their moments.
      runner: how networks are run.
      images: number of images that batch statistics and activations come from.
      track: wraps the networks in a progress bar.

    Returns:
      The pairs; None if no layer has units of its own.
    """
    suite = setting.suite.calibrating(images)
    models, spec = setting.models, suite.spec
    options = {"moments": setting.moments, "stop_at": suite.whole}
    aligned = zipjax.match(models, suite.specs, zipjax.permute(), **options)
    plain = [perm for perm in aligned if spec.is_plain(perm)]
    if not plain:
        return None
    perm = plain[len(plain) // 2]
    units = aligned[perm].size // 2
    leaves = [path_leaves(model) for model in models]
    weights = zipjax.weight_similarity(leaves, spec, perm, aligned)
    activations = np.asarray(setting.moments[perm].correlation())
    # Units that are always 0 correlate with anything, or nothing.
    alive_units = varying(setting.moments[perm])
    found = []
    for shift in track(np.unique(np.linspace(0, units - 1, _PARTNERS, dtype=int))):
        moved = aligned[perm].copy()
        moved[units:] = (moved[units:] + shift) % units
        partners = np.argsort(moved[units:])
        merged = zipjax.merge_units(
            models, suite.specs, {**aligned, perm: moved}, stop_at=suite.whole
        )
        merged = runner.calibrated(merged, suite)
        kept = _kept(merged, setting, runner, suite, perm, partners)
        place = np.arange(units), units + partners
        alive = alive_units[place[0]] & alive_units[place[1]] & ~np.isnan(kept)
        figures = np.asarray(weights)[place], activations[place], kept
        found.append([figure[alive] for figure in figures])
    return UnitPairs(perm, *map(np.concatenate, zip(*found, strict=True)))


def varying(moments: zipjax.Moments) -> np.ndarray:
    """Returns which units vary, ``[N*n]``."""
    sums = np.diagonal(np.asarray(moments.m2))
    return sums > _DEAD * sums.max()


def _kept(
    merged: zipjax.Merged,
    setting: Setting,
    runner: Runner,
    suite: Suite,
    perm: str,
    partners: np.ndarray,
) -> np.ndarray:
    """Returns the smaller correlation of every merged unit with its two parents.

    NaN for merged units that do not vary.
    """
    functions = each(suite.functions, 2, "functions")
    specs = each(suite.specs, 2, "specs")
    moments = zipjax.collect_moments(
        (functions[0], *functions),
        [merged.params(), *setting.models],
        (specs[0], *specs),
        runner.inputs(suite),
        stop_at=suite.whole,
        positions=runner.positions,
    )
    correlation = np.asarray(moments[perm].correlation())
    units = len(partners)
    own = np.arange(units)
    first = correlation[own, units + own]
    second = correlation[own, 2 * units + partners]
    return np.where(varying(moments[perm])[own], np.minimum(first, second), np.nan)
