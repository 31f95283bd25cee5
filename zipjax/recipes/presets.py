"""Recipes: how units are matched, as presets over public parts.

A recipe is a matcher, the similarity that it maximises and, where similarities depend
on how other perms are matched, a schedule:

===============  ============  =============  ==========================
recipe           matcher       similarity     also known as
===============  ============  =============  ==========================
``average``      identity      none           weight averaging
``permute``      align         activation     A. Align
``git_rebasin``  align         weight         Rebasin, weight matching
``zipit``        zip           activation     ZipIt!
``weight_zip``   zip           weight         W. Zip
``mudsc``        align or zip  both, blended  MuDSC-Align and MuDSC-Zip
===============  ============  =============  ==========================
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

from zipjax.arguments import check_kind, is_whole, wrong
from zipjax.matching.align import Reference, match_align
from zipjax.matching.grouped import Matcher
from zipjax.matching.identity import match_identity
from zipjax.matching.inputs import check_fraction
from zipjax.matching.zipping import match_zip
from zipjax.recipes.ascent import Schedule
from zipjax.similarity.measures import Metric, Similarity

_SCHEDULE = Schedule()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way of matching units.

    Attributes:
      name: what tables call it.
      matcher: maps similarities to an assignment; it may write to them.
      group_matcher: matches units that hold groups of others (attention heads, the
        groups of a GroupNorm), one to one.
      similarity: how units are compared; None for matchers that compare nothing.
      schedule: when to end, if weights are compared.
      num_units: merged widths by perm, where they differ from the models' own; passed
        to the matcher as ``num_units``.
    """

    name: str
    matcher: Matcher
    group_matcher: Matcher
    similarity: Similarity | None
    schedule: Schedule = _SCHEDULE
    num_units: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def compares_activations(self) -> bool:
        """Whether units are compared by their activations: moments are needed."""
        return self.similarity is not None and self.similarity.balance < 1

    @property
    def compares_weights(self) -> bool:
        """Whether units are compared by their weights: a PRNG key is needed."""
        return self.similarity is not None and self.similarity.balance > 0


def average() -> Recipe:
    """Weight averaging: unit k of every model goes to merged unit k."""
    return Recipe("average", match_identity, match_identity, None)


def permute(*, reference: Reference = "first") -> Recipe:
    """Aligns the models' activations (Li et al. 2015).

    The baseline "Permute" of ZipIt! and "A. Align" of MuDSC.

    Args:
      reference: the models that each one is aligned with: the "first", or "all"
        others, which does not depend on the models' order; see
        :func:`zipjax.match_align`.
    """
    return Recipe("permute", *_align_matchers(reference), Similarity(0.0))


def git_rebasin(
    *,
    metric: Metric = "inner",
    statistics: bool = True,
    reference: Reference = "first",
    schedule: Schedule = _SCHEDULE,
) -> Recipe:
    """Git Re-Basin's weight matching (Ainsworth et al. 2022, Algorithm 1).

    Args:
      metric: how weights are compared. Git Re-Basin maximises "inner" products:
        their sum never falls from sweep to sweep. MuDSC's baseline takes the
        "correlation".
      statistics: whether running statistics count; see :class:`Similarity`.
      reference: see :func:`permute`.
      schedule: when to end.
    """
    similarity = Similarity(1.0, metric, statistics=statistics)
    return Recipe("git_rebasin", *_align_matchers(reference), similarity, schedule)


def zipit(
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    num_units: Mapping[str, int] | None = None,
    reference: Reference = "first",
) -> Recipe:
    """ZipIt! (Section 3): greedy matching of activations across and within models.

    Args:
      alpha: factor of a merged unit's similarities; with 0 it is never matched again.
      beta: share of the merges that may be within a model, in equal parts for each
        model; with 0 there are none.
      num_units: merged widths of the perms that should be wider or narrower.
      reference: the models that groups are aligned with, if there are groups; see
        :func:`permute`.

    Raises:
      ValueError: if alpha or beta lies outside [0, 1].
    """
    matchers = _zip_matchers(alpha, beta, reference)
    return Recipe("zipit", *matchers, Similarity(0.0), num_units=_widths(num_units))


def weight_zip(
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    num_units: Mapping[str, int] | None = None,
    metric: Metric = "correlation",
    reference: Reference = "first",
    schedule: Schedule = _SCHEDULE,
) -> Recipe:
    """Zips units by their weights: MuDSC's baseline "W. Zip" (Section 4.1).

    Args:
      alpha: see :func:`zipit`.
      beta: see :func:`zipit`.
      num_units: see :func:`zipit`.
      metric: how weights are compared.
      reference: see :func:`zipit`.
      schedule: when to end.

    Raises:
      ValueError: if alpha or beta lies outside [0, 1].
    """
    matchers = _zip_matchers(alpha, beta, reference)
    similarity = Similarity(1.0, metric)
    return Recipe("weight_zip", *matchers, similarity, schedule, _widths(num_units))


def mudsc(
    balance: float,
    matching: Literal["align", "zip"] = "zip",
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    num_units: Mapping[str, int] | None = None,
    metric: Metric = "correlation",
    reference: Reference = "first",
    schedule: Schedule = _SCHEDULE,
) -> Recipe:
    """MuDSC (Section 3.2): matches by activations and weights together.

    Args:
      balance: weight of the weight space, in [0, 1]; 0 is :func:`permute` or
        :func:`zipit`, 1 is :func:`git_rebasin` (with the same metric and without
        statistics) or :func:`weight_zip`.
      matching: "zip", or "align".
      alpha: see :func:`zipit`; for a zip only.
      beta: see :func:`zipit`; for a zip only.
      num_units: see :func:`zipit`; for a zip only.
      metric: how weights are compared.
      reference: see :func:`permute`.
      schedule: when to end.

    Raises:
      ValueError: if balance, alpha or beta lies outside [0, 1], if the matching, metric
        or reference is unknown, or if an alignment is given the settings of a zip.
    """
    if matching not in ("align", "zip"):
        raise ValueError(f"matching = {matching!r} is unknown: choose 'align' or 'zip'")
    if matching == "align":
        if (alpha, beta) != (1, 1) or num_units:
            raise ValueError(
                f"alpha = {alpha}, beta = {beta} and num_units = {num_units} are "
                "settings of a zip, but matching = 'align' merges units one to one: "
                "leave them out, or pass matching='zip'"
            )
        matchers = _align_matchers(reference)
    else:
        matchers = _zip_matchers(alpha, beta, reference)
    check_fraction("balance", balance)
    similarity, widths = Similarity(balance, metric), _widths(num_units)
    return Recipe(f"mudsc_{matching}", *matchers, similarity, schedule, widths)


def _align_matchers(reference: Reference) -> tuple[Matcher, Matcher]:
    align = _aligner(reference)
    return align, align


def _zip_matchers(
    alpha: float, beta: float, reference: Reference
) -> tuple[Matcher, Matcher]:
    check_fraction("alpha", alpha)
    check_fraction("beta", beta)
    zipped = functools.partial(match_zip, alpha=alpha, beta=beta, overwrite=True)
    return zipped, _aligner(reference)


def _widths(num_units: Mapping[str, int] | None) -> dict[str, int]:
    if num_units is None:
        return {}
    check_kind("num_units", num_units, Mapping)
    for perm, width in num_units.items():
        if not is_whole(width):
            raise wrong(f"num_units[{perm!r}]", width)
    return dict(num_units)


def _aligner(reference: Reference) -> Matcher:
    if reference not in ("first", "all"):
        raise ValueError(
            f"reference = {reference!r} is unknown: choose 'first' or 'all'"
        )
    return functools.partial(match_align, reference=reference)
