"""Matching perms that are nested in others: attention heads, GroupNorm's groups.

The units of a group stay together: groups are matched with groups, one to one, and
units with units of the matched groups (MuDSC, section 3.3).
"""

import dataclasses
import functools
import itertools
import math
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
      similarity: ``[N*P*n, N*P*n]``, P being the product of the sizes of all that
        encloses the perm; unit (model, *enclosing, unit) in row-major order. None:
        the perm has no similarity of its own, which counts as 0.
      children: the perms of which every unit of this one holds a group.
      num_units: the merged width, if it is another than ``size``.
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
    indices: tuple[int, ...] = (),
) -> dict[str, _Assignments]:
    """Match perms from the outermost inwards, all children by one match of groups.

    The similarity of two groups is their own plus, for every child, that of their
    units in the best one-to-one matching, which is found the same way for children
    that hold groups themselves. So ``match_align`` at all levels finds the alignment
    of each model with model 0 that has the largest sum of the similarities of matched
    units and groups (MuDSC, Eq. 1), exactly.

    Args:
      nest: the outermost perm.
      num_models: number of models, N.
      matcher: matches the perms without children: ``matcher(similarity, N)``.
      group_matcher: matches the perms with children, which must be one to one.
      indices: sizes of what encloses the outermost perm and is not permuted, such as
        scanned layers: every element is matched on its own.

    Returns:
      ``{name: assignments}``. The outermost perm's are ``[*indices, N*n]``, a nested
      one's ``[*indices, *enclosing, N*n]``: the assignment of the units of those N
      groups that were matched to that merged group.

    Raises:
      ValueError: if a similarity is not a square, finite matrix of the size that
        follows from the nest, if a name occurs twice, if a size is below 1, or if
        ``group_matcher`` does not match one to one.
    """
    elements = math.prod(indices)
    _check_sizes(nest, indices)
    nest = _checked(nest, num_models, elements)
    results = [
        _match(
            _restrict(nest, np.full(num_models, element), elements),
            num_models,
            matcher,
            group_matcher,
        )
        for element in range(elements)
    ]
    return {
        name: stacked.reshape(*indices, *stacked.shape[1:])
        for name, stacked in _stack(results).items()
    }


def match_grouped_align(
    similarity: ArrayLike,
    num_models: int,
    *,
    num_groups: int,
    reference: Reference = "first",
) -> Int64[np.ndarray, " units"]:
    """Align groups and the units in them: MuDSC's group alignment (section 3.3).

    Every pair of groups is aligned, then groups are by the sums of the similarities
    of their aligned units. With ``"first"`` every model's alignment with model 0 is
    then the best of all that keep groups whole. With ``"all"`` groups are aligned on
    the sums of each two of them, which is an upper bound for more than two models.

    Args:
      similarity: ``[N*G*n, N*G*n]``, unit u of group g of model i at ``(i*G+g)*n+u``;
        as for :func:`match_align`.
      num_models: number of models, N.
      num_groups: number of groups of each model, G.
      reference: ``"first"`` or ``"all"``, as in :func:`match_align`, for groups and
        for units.

    Returns:
      The assignment ``[N*G*n]``, numbered group by group: unit k of model 0 goes to
      merged unit k.

    Raises:
      ValueError: as :func:`match_align`, or if G groups cannot share a model's units
        equally.
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
    """Zip the units of aligned groups: MuDSC's group zip (section 3.3).

    Groups are matched as in :func:`match_grouped_align`, and the units of those that
    were matched to one another are zipped by :func:`match_zip`.

    Args:
      similarity: ``[N*G*n, N*G*n]``, unit u of group g of model i at ``(i*G+g)*n+u``;
        symmetric.
      num_models: number of models, N.
      num_groups: number of groups of each model, G.
      alpha: in ``[0, 1]``, how readily a merged unit is matched again.
      beta: in ``[0, 1]``, the within-model budget, of every merged group.
      reference: ``"first"`` or ``"all"``, as in :func:`match_align`, for groups.

    Returns:
      The assignment ``[N*G*n]``, numbered group by group: merged unit ``g*n + k`` is
      merged unit k of the group of model 0's group g.

    Raises:
      ValueError: as :func:`match_zip`, or if G groups cannot share a model's units
        equally.
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
    """Match one perm nested in another and flatten both assignments into one."""
    matrix, total = check_similarity(similarity, num_models)
    groups = operator.index(num_groups)
    if groups < 1 or total % groups:
        raise ValueError(
            f"num_groups={num_groups}, but every model has {total} units, which that "
            "many groups cannot share equally: pass a divisor of it"
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
    """Match a perm that nothing encloses, then what is nested in each merged unit."""
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
        inner = [
            _match(
                _restrict(child, choice, nest.size), num_models, matcher, group_matcher
            )
            for choice in choices
        ]
        result |= _stack(inner)
    return result


def _one_to_one(
    nest: Nest, assignment: Int64[np.ndarray, " units"], num_models: int
) -> Int64[np.ndarray, "merged models"]:
    """Return which unit of each model went to every merged unit."""
    merged = assignment.reshape(num_models, nest.size)
    units = np.argsort(merged, axis=1)
    if (np.sort(merged, axis=1) != np.arange(nest.size)).any():
        raise ValueError(
            f"group_matcher sent the {nest.size} units of perm {nest.name!r} to the "
            f"merged units {merged.tolist()} (a row a model), but units that hold "
            "groups must be matched one to one: pass match_align or match_identity"
        )
    return units.T


def _similarity(nest: Nest, num_models: int) -> _Matrix | None:
    """A perm's own similarity plus that of the best matches of what is nested in it."""
    parts = [] if nest.similarity is None else [nest.similarity]
    for child in nest.children:
        similarity = _similarity(child, num_models)
        if similarity is not None:
            parts.append(_best_totals(similarity, num_models, child.size))
    return sum(parts[1:], parts[0]) if parts else None


def _best_totals(
    similarity: _Matrix, num_models: int, size: int
) -> Float64[np.ndarray, "groups groups"]:
    """Sum of the similarities of the best matched units, for every pair of groups.

    As in :func:`match_align` the rows of one model are read against the columns of
    later ones. Groups of one model are never matched and count 0.
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


def _restrict(nest: Nest, choice: _Choice, enclosing: int) -> Nest:
    """Keep the units that lie in one chosen group of each model.

    Args:
      nest: a perm in groups.
      choice: ``[N]``, the group of each model.
      enclosing: number of groups of a model that enclose the perm.
    """
    children = tuple(_restrict(c, choice, enclosing) for c in nest.children)
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


def _check_sizes(nest: Nest, indices: tuple[int, ...]) -> None:
    """Raise ValueError on sizes below 1 and on names that occur twice."""
    if min(indices, default=1) < 1:
        raise ValueError(f"indices={indices}, but every size must be at least 1")
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
                "every perm a name of its own"
            )
        names.add(perm.name)
        waiting.extend(perm.children)


def _checked(nest: Nest, num_models: int, enclosing: int) -> Nest:
    """Return the nest with its similarities checked, and as float64."""
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
