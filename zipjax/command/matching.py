"""Matching for the command: all perms at once, or in parts where memory is short."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from zipjax.command.inputs import Batches
from zipjax.command.settings import Settings
from zipjax.command.terminal import Progress, tell
from zipjax.recipes.ascent import Sweep
from zipjax.recipes.match_and_merge import match
from zipjax.recipes.presets import Recipe
from zipjax.similarity.collecting import collect_moments
from zipjax.similarity.measures import activation_similarity
from zipjax.similarity.moments import Moments
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import ApplyFn, Array, PyTree


@dataclasses.dataclass(frozen=True)
class Matched:
    """How the units of one perm were matched.

    Attributes:
      perm: its name.
      units: of every model.
      merged: units of the merged model.
      correlation: mean correlation of the units that were merged with each other; None
        if activations were not compared.
    """

    perm: str
    units: int
    merged: int
    correlation: float | None


def moment_parts(
    spec: PermutationSpec, count: int, recipe: Recipe, settings: Settings
) -> list[tuple[str, ...]]:
    """Returns the perms in parts whose moments are held at one time.

    Perms that are nested in each other stay together. Where weights count, or the zip
    stops early, there is one part.

    Args:
      spec: the permutation spec.
      count: number of models.
      recipe: how units are matched.
      settings: of these, the limit and the stop.
    """
    limit = settings.memory_limit
    if limit is None or settings.stop_at is not None or recipe.compares_weights:
        return [tuple(spec.perms)]
    parts: list[list[str]] = []
    for family in _families(spec):
        size = moment_bytes(spec, count, family)
        if parts and moment_bytes(spec, count, parts[-1]) + size <= limit:
            parts[-1] += family
        else:
            parts.append(family)
    return [tuple(perm for perm in spec.perms if perm in part) for part in parts]


def moment_bytes(spec: PermutationSpec, count: int, perms: Sequence[str]) -> int:
    """Returns the memory that the moments of some perms take on the host."""
    sizes = [
        (spec.elements(perm) or 1) * (count * spec.units(perm)) ** 2 for perm in perms
    ]
    return 4 * sum(sizes)


def matched_units(
    settings: Settings,
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    spec: PermutationSpec,
    recipe: Recipe,
    batches: Batches,
    keys: tuple[Array, Array],
) -> tuple[dict[str, np.ndarray], list[Matched]]:
    """Matches the units of all zipped perms.

    Args:
      settings: of these, the stop, the positions and the memory's limit.
      apply_fn: the networks' function.
      models: the networks.
      spec: their permutation spec.
      recipe: how units are matched.
      batches: inputs.
      keys: of the positions, and of the order of the perms.

    Returns:
      The assignments by perm, and what there is to tell about them.
    """
    assignments: dict[str, np.ndarray] = {}
    found: list[Matched] = []
    parts = moment_parts(spec, len(models), recipe, settings)
    for number, part in enumerate(parts, 1):
        own = spec if len(parts) == 1 else spec.only(part)
        name = f"moments, part {number} of {len(parts)}" if parts[1:] else "moments"
        moments: Mapping[str, Moments] | None = None
        if recipe.compares_activations:
            moments = collect_moments(
                apply_fn,
                models,
                own,
                Progress(name, batches),
                stop_at=settings.stop_at,
                positions=settings.positions,
                key=keys[0],
                memory_limit=settings.memory_limit,
            )
        widths = {p: n for p, n in recipe.num_units.items() if p in part}
        new = match(
            models,
            own,
            dataclasses.replace(recipe, num_units=widths) if parts[1:] else recipe,
            moments=moments,
            stop_at=settings.stop_at,
            key=keys[1],
            report=_tell_sweep,
        )
        found += [_told(spec, perm, x, moments or {}) for perm, x in new.items()]
        assignments |= new
    order = {perm: number for number, perm in enumerate(spec.perms)}
    return (
        dict(sorted(assignments.items(), key=lambda pair: order[pair[0]])),
        sorted(found, key=lambda own: order[own.perm]),
    )


def _tell_sweep(sweep: Sweep) -> None:
    tell(
        f"sweep {sweep.number}: mean similarity {sweep.objective:.4f}, "
        f"{sweep.changed} perms changed"
    )


def _families(spec: PermutationSpec) -> list[list[str]]:
    """Returns the perms, those together that are nested in each other."""
    owners = {perm: perm for perm in spec.perms}

    def root(perm: str) -> str:
        return perm if owners[perm] == perm else root(owners[perm])

    for perm, own in spec.perms.items():
        for group in own.groups:
            if group in owners:
                owners[root(perm)] = root(group)
    families: dict[str, list[str]] = {}
    for perm in spec.perms:
        families.setdefault(root(perm), []).append(perm)
    return list(families.values())


def _told(
    spec: PermutationSpec,
    perm: str,
    assignment: np.ndarray,
    moments: Mapping[str, Moments],
) -> Matched:
    return Matched(
        perm,
        spec.units(perm),
        int(np.max(assignment)) + 1 if assignment.ndim == 1 else spec.units(perm),
        _correlation(assignment, moments.get(perm)),
    )


def _correlation(assignment: np.ndarray, moments: Moments | None) -> float | None:
    """Returns the mean correlation of pairs of units that were merged together."""
    if moments is None or assignment.ndim != 1 or np.ndim(moments.m2) != 2:
        return None
    similarity = activation_similarity(moments)
    pairs = np.triu(assignment[:, None] == assignment, k=1)
    return float(similarity[pairs].mean()) if pairs.any() else None
