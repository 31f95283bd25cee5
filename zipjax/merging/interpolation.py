"""The straight line between two networks, along which barriers are measured."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from zipjax.arguments import check_sequence, is_number, wrong
from zipjax.merging.assembling import merge_networks
from zipjax.merging.each import OneOrEach
from zipjax.merging.matrices import Assignments
from zipjax.merging.merged import Merged
from zipjax.merging.networks import Networks
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import PyTree


def interpolate(
    models: Sequence[PyTree],
    spec: OneOrEach[PermutationSpec],
    assignments: Assignments,
    fractions: Iterable[float],
) -> Iterator[Merged]:
    """Yields networks on the straight line from one network to another.

    At the fraction t every parameter is (1 - t) A + t P(B), where P puts the units of B
    in the order of the units of A that they are assigned to. An assignment by
    ``zipjax.average()`` leaves B as it is. The point at t is the merge of
    ``merge_units(..., weights=(1 - t, t))``, and one point is in memory at a time.

    How far the loss along the line rises above that of its ends is the barrier between
    the networks (Git Re-Basin, Ainsworth et al. 2022; REPAIR, Jordan et al. 2022).

    BatchNorm's running statistics are interpolated like all parameters. What REPAIR
    measures is a point that was calibrated: pass it to
    :func:`zipjax.reset_batch_stats` or :func:`zipjax.repair`.

    Args:
      models: the two networks A and B; see :func:`zipjax.merge`.
      spec: see :func:`zipjax.merge`.
      assignments: from :func:`zipjax.match` by a recipe that aligns, with no stop.
      fractions: how far along the line each point lies: 0 is A, and 1 is B in A's
        order. The line goes on outside of [0, 1], where running variances may become
        negative and need a reset.

    Returns:
      An iterator of the merged networks, in the order of the fractions.

    Raises:
      ValueError: if there are not two networks, if a fraction is no finite number, or
        if assignments do not fit or do not align; see :func:`zipjax.merge_units`.
    """
    check_sequence("models", models)
    if len(models) != 2:
        raise ValueError(
            f"a line goes through 2 networks, but there are {len(models)} models: pass "
            "two of them"
        )
    places = _numbers(fractions)
    networks = Networks.of(models, spec, None)

    def point(place: float) -> Merged:
        return merge_networks(networks, assignments, (1 - place, place))

    return map(point, places)


def _numbers(fractions: Any) -> list[float]:
    if isinstance(fractions, str | bytes) or not isinstance(fractions, Iterable):
        raise wrong("fractions", fractions)
    places = list(fractions)
    if not all(is_number(place) and np.isfinite(place) for place in places):
        raise wrong("fractions", places)
    return [float(place) for place in places]
