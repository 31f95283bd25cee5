"""Recipes: how units are matched. Presets over public parts.

A recipe is a matcher with the similarity that it maximises:

=============  ==========  ==========
recipe         matcher     similarity
=============  ==========  ==========
``average``    identity    none
``permute``    align       activation
``zipit``      zip         activation
=============  ==========  ==========
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

from zipjax.matching import Matcher, match_align, match_identity, match_zip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way of matching units.

    Attributes:
      name: what tables call it.
      matcher: maps similarities to an assignment.
      similarity: what is compared: "activation" (needs moments) or "none".
      num_units: merged widths by perm, where they are not the models' own; passed to
        the matcher as ``num_units``.
    """

    name: str
    matcher: Matcher
    similarity: Literal["activation", "none"]
    num_units: Mapping[str, int] = dataclasses.field(default_factory=dict)


def average() -> Recipe:
    """Weight averaging: unit k of every model goes to merged unit k."""
    return Recipe("average", match_identity, "none")


def permute() -> Recipe:
    """Aligns every model's activations to the first model's (Li et al. 2015).

    The baseline "Permute" of ZipIt! and "A. Align" of MuDSC.
    """
    return Recipe("permute", match_align, "activation")


def zipit(
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    num_units: Mapping[str, int] | None = None,
) -> Recipe:
    """ZipIt! (Section 3): greedy matching of activations across and within models.

    Args:
      alpha: factor of a merged unit's similarities; 0: it is never matched again.
      beta: share of the merges that may be within a model, in equal parts for each
        model; 0: none.
      num_units: merged widths of the perms that shall be wider or narrower.

    Raises:
      ValueError: if alpha or beta lies outside [0, 1].
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} = {value} must lie in [0, 1]")
    matcher = functools.partial(match_zip, alpha=alpha, beta=beta)
    widths = dict(num_units or {})
    return Recipe("zipit", matcher, "activation", widths)
