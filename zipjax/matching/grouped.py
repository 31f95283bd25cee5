"""Matching perms that are nested in others, such as the features of attention heads.

The units of a group stay together: groups are matched with groups, one to one, and
units with units of the matched groups (MuDSC, Section 3.3).
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from zipjax.matching.align import Reference, match_align
from zipjax.matching.inputs import check_similarity
from zipjax.matching.zipping import match_zip

Matcher: TypeAlias = Callable[..., np.ndarray]
"""``matcher(similarity [N*n, N*n], N) -> assignment [N*n]``; options by keyword."""

_Matrix = Float64[np.ndarray, "units units"]
_Choice = Int64[np.ndarray, " models"]
_Assignments = Int64[np.ndarray, "..."]


@dataclasses.dataclass(frozen=True, eq=False)
class Nest:
    """A perm with the perms nested in it.

    Attributes:
      name: the perm's name.
      size: number of units (of one group, if nested), n.
      similarity: ``[N*P*n, N*P*n]``, where P is the number of groups of each model: the
        product of the sizes of all that encloses the perm. Units are numbered (model,
        *enclosing, unit) in row-major order. None for a perm that has no similarity of
        its own, which counts as 0.
      children: the perms nested in this one: every unit holds a group of theirs.
      num_units: the merged width, if it differs from ``size``.
    """

    name: str
    size: int
    similarity: Float64[np.ndarray, "units units"] | None
    children: tuple["Nest", ...] = ()
    num_units: int | None = None


def match_nest(
    nest: Nest,
    num_models: int,
    *,
    matcher: Matcher,
    group_matcher: Matcher = match_align,
) -> dict[str, _Assignments]:
    """Returns the assignments of a perm and of all perms nested in it.

    Perms are matched from the outermost inwards; all children of a perm share its match
    of groups. The similarity of two groups is their own plus, for every child, the sum
    of the similarities of the groups' units under their best one-to-one matching, which
    is found in the same way for children that hold groups themselves. With
    ``match_align`` at all levels the result is exactly the alignment of each model with
    model 0 that has the largest sum of the similarities of matched units and groups
    (MuDSC, Eq. 1).

    Args:
      nest: the outermost perm.
      num_models: number of models, N.
      matcher: matches the perms without children: ``matcher(similarity, N)``.
      group_matcher: matches the perms with children, one to one.

    Returns:
      ``{name: assignments}``: ``[N*n]`` for the outermost perm, and ``[*enclosing,
      N*n]`` for a nested one: for each merged group, the assignment of the units of the
      N groups that it consists of.

    Raises:
      ValueError: if a similarity is not a square, finite matrix of the size that
        follows from the nest, if a name occurs twice, if a size is below 1, or if
        ``group_matcher`` does not match one to one.
    """
    _check_sizes(nest)
    return _match(_checked(nest, num_models, 1), num_models, matcher, group_matcher)


def match_grouped_align(
    similarity: ArrayLike,
    num_models: int,
    *,
    num_groups: int,
    reference: Reference = "first",
) -> Int64[np.ndarray, " units"]:
    """Returns an alignment of groups and of their units (MuDSC, Section 3.3).

    The units of every pair of groups are aligned; then the groups are, with the sums of
    the similarities of their aligned units as similarity. With ``"first"`` the result
    is thus every model's best alignment with model 0 that keeps groups whole. With
    ``"all"`` these sums, taken pair by pair, are upper bounds for more than two models.

    For example, with two models of two groups of two units, where the groups of the
    second model come in the other order:

    >>> order = [2, 3, 0, 1]
    >>> similarity = np.block([[np.eye(4)[:, order]] * 2] * 2)
    >>> match_grouped_align(similarity, 2, num_groups=2).tolist()
    [0, 1, 2, 3, 2, 3, 0, 1]

    Args:
      similarity: ``[N*G*n, N*G*n]``, unit u of group g of model i at ``(i*G+g)*n+u``;
        as for :func:`match_align`.
      num_models: number of models, N.
      num_groups: number of groups of each model, G.
      reference: ``"first"`` or ``"all"``, as in :func:`match_align`, for groups and
        for units.

    Returns:
      The assignment ``[N*G*n]``, numbered group by group: merged unit k holds unit k of
      model 0.

    Raises:
      ValueError: as :func:`match_align`, or if G does not divide the number of a
        model's units.
    """
    align = functools.partial(match_align, reference=reference)
    return _match_grouped(similarity, num_models, num_groups, align, align)


def match_grouped_zip(
    similarity: ArrayLike,
    num_models: int,
    *,
    num_groups: int,
    alpha: float = 1.0,
    beta: float = 1.0,
    reference: Reference = "first",
) -> Int64[np.ndarray, " units"]:
    """Returns a zip of the units of aligned groups (MuDSC, Section 3.3).

    Groups are aligned as in :func:`match_grouped_align`, and the units of groups that
    are matched to one another are zipped by :func:`match_zip`.

    Args:
      similarity: ``[N*G*n, N*G*n]``, unit u of group g of model i at ``(i*G+g)*n+u``;
        symmetric.
      num_models: number of models, N.
      num_groups: number of groups of each model, G.
      alpha: in ``[0, 1]``, how readily a merged unit is merged again.
      beta: in ``[0, 1]``, the within-model budget of every merged group.
      reference: ``"first"`` or ``"all"``, as in :func:`match_align`, for groups.

    Returns:
      The assignment ``[N*G*n]``, numbered group by group: merged unit ``g*n + k`` is
      merged unit k of the merged group that holds model 0's group g.

    Raises:
      ValueError: as :func:`match_zip`, or if G does not divide the number of a model's
        units.
    """
    return _match_grouped(
        similarity,
        num_models,
        num_groups,
        functools.partial(match_zip, alpha=alpha, beta=beta),
        functools.partial(match_align, reference=reference),
    )


def _match_grouped(
    similarity: ArrayLike,
    num_models: int,
    num_groups: int,
    matcher: Matcher,
    group_matcher: Matcher,
) -> Int64[np.ndarray, " units"]:
    """Returns the match of one perm nested in another as a single assignment."""
    matrix, total = check_similarity(similarity, num_models)
    groups = operator.index(num_groups)
    if groups < 1 or total % groups:
        raise ValueError(
            f"num_groups={num_groups}, but every model has {total} units, which do not "
            "divide into that many groups: pass a divisor of their number"
        )
    size = total // groups
    nest = Nest("groups", groups, None, (Nest("units", size, matrix),))
    result = match_nest(nest, num_models, matcher=matcher, group_matcher=group_matcher)
    merged_group = result["groups"].reshape(num_models, groups)
    by_group = result["units"].reshape(groups, num_models, size)
    merged_unit = by_group[merged_group, np.arange(num_models)[:, None]]
    return (merged_group[:, :, None] * size + merged_unit).reshape(-1)


def _match(
    nest: Nest, num_models: int, matcher: Matcher, group_matcher: Matcher
) -> dict[str, _Assignments]:
    """Returns the match of a perm without groups and of all that is nested in it."""
    similarity = _similarity(nest, num_models)
    if similarity is None:
        similarity = np.zeros((num_models * nest.size,) * 2)
    if not nest.children:
        width = {} if nest.num_units is None else {"num_units": nest.num_units}
        return {nest.name: matcher(similarity, num_models, **width)}
    assignment = group_matcher(similarity, num_models)
    choices = _one_to_one(nest, assignment, num_models)
    result = {nest.name: assignment}
    for child in nest.children:
        parts = [_within_groups(child, choice, nest.size) for choice in choices]
        inner = [_match(part, num_models, matcher, group_matcher) for part in parts]
        result |= _stack(inner)
    return result


def _one_to_one(
    nest: Nest, assignment: Int64[np.ndarray, " units"], num_models: int
) -> Int64[np.ndarray, "merged models"]:
    """Returns the unit of each model in every merged unit."""
    merged = assignment.reshape(num_models, nest.size)
    units = np.argsort(merged, axis=1)
    if (np.sort(merged, axis=1) != np.arange(nest.size)).any():
        raise ValueError(
            f"group_matcher sent the {nest.size} units of perm {nest.name!r} to the "
            f"merged units {merged.tolist()} (one row per model), but units that hold "
            "groups must be matched one to one: pass match_align or match_identity"
        )
    return units.T


def _similarity(nest: Nest, num_models: int) -> _Matrix | None:
    """Returns a perm's own similarity plus that of its children's best matches."""
    parts = [] if nest.similarity is None else [nest.similarity]
    for child in nest.children:
        similarity = _similarity(child, num_models)
        if similarity is not None:
            parts.append(_best_totals(similarity, num_models, child.size))
    return sum(parts[1:], parts[0]) if parts else None


def _best_totals(
    similarity: _Matrix, num_models: int, size: int
) -> Float64[np.ndarray, "groups groups"]:
    """Returns every pair of groups' sum of similarities of their best matched units.

    As in :func:`match_align`, rows belong to the earlier model of a pair and columns to
    the later. Groups of one model are never matched with one another and get 0.
    """
    groups = len(similarity) // size
    blocks = similarity.reshape(groups, size, groups, size).swapaxes(1, 2)
    totals = np.zeros((groups, groups))
    model = np.arange(groups) // (groups // num_models)
    for a, b in itertools.combinations(range(groups), 2):
        if model[a] != model[b]:
            block = blocks[a, b]
            pairs = linear_sum_assignment(block, maximize=True)
            totals[a, b] = totals[b, a] = block[pairs].sum()
    return totals


def _within_groups(nest: Nest, choice: _Choice, enclosing: int) -> Nest:
    """Returns a nest with the units of one chosen group of each model only.

    Args:
      nest: a perm nested in groups.
      choice: ``[N]``, the group of each model.
      enclosing: number of groups of a model that enclose the perm.
    """
    children = tuple(_within_groups(c, choice, enclosing) for c in nest.children)
    similarity = nest.similarity
    if similarity is not None:
        units = np.arange(len(similarity)).reshape(len(choice), enclosing, -1)
        kept = units[np.arange(len(choice)), choice].reshape(-1)
        similarity = similarity[np.ix_(kept, kept)]
    return dataclasses.replace(nest, similarity=similarity, children=children)


def _stack(
    results: list[dict[str, _Assignments]],
) -> dict[str, _Assignments]:
    return {name: np.stack([r[name] for r in results]) for name in results[0]}


def _check_sizes(nest: Nest) -> None:
    """Checks that all sizes are at least 1 and that every name occurs once."""
    names: set[str] = set()
    waiting = [nest]
    while waiting:
        perm = waiting.pop()
        if perm.size < 1:
            raise ValueError(
                f"perm {perm.name!r} has size {perm.size}, but it needs at least 1 unit"
            )
        if perm.name in names:
            raise ValueError(
                f"perm {perm.name!r} occurs twice in the nest {nest.name!r}: give "
                "every perm its own name"
            )
        names.add(perm.name)
        waiting.extend(perm.children)


def _checked(nest: Nest, num_models: int, enclosing: int) -> Nest:
    """Returns the nest with its similarities as float64, after checking them."""
    matrix = nest.similarity
    if matrix is not None:
        name = f"similarity of perm {nest.name!r}"
        matrix, units = check_similarity(matrix, num_models, name)
        if units != enclosing * nest.size:
            raise ValueError(
                f"{name} holds {len(matrix)} units, but {num_models} models with "
                f"{enclosing} groups of {nest.size} units hold "
                f"{num_models * enclosing * nest.size}: pass the similarities of the "
                "units (model, *enclosing, unit) in row-major order"
            )
    children = tuple(
        _checked(child, num_models, enclosing * nest.size) for child in nest.children
    )
    return dataclasses.replace(nest, similarity=matrix, children=children)
