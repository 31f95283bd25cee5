"""Merged widths: more units where a merge loses most, within a compute budget.

A perm's units may be merged to more or fewer than a model has (``num_units``). The
correlations show how much a width loses, the program how much it costs.
"""

import inspect
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from zipjax.arguments import check_kind, check_number, is_whole
from zipjax.merging.networks import Networks
from zipjax.recipes.presets import Recipe
from zipjax.recipes.prices import Kernel, find_kernels, merged_kernel, total_price
from zipjax.recipes.problem import check_moments
from zipjax.similarity.measures import activation_similarity
from zipjax.similarity.moments import Moments
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.types import ApplyFn, PyTree


def allot_units(
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    spec: PermutationSpec,
    recipe: Recipe,
    *inputs: PyTree,
    moments: Mapping[str, Moments],
    cost: float = 1.0,
    stop_at: str | int | None = None,
    steps: int = 8,
    smallest: float = 0.5,
) -> dict[str, int]:
    """Chooses the merged widths that lose least within a compute budget.

    A perm whose standardised units are merged to w sets C loses the variance within
    these: with correlations R, the share

        1 - sum_C (sum_{i,j in C} R_ij) / |C| / (N*n),

    once in every kernel that reads or writes them. Widths start at N*n, where nothing
    is lost. The perm whose next smaller width loses least per multiplication saved is
    narrowed, until the merged network is within the budget. Groups, the units in them,
    and perms that are paired keep the models' width.

    Costs are multiplications of data by kernels. Those of data by data (attention),
    convolutions in groups, and the unmerging at a cut inside a residual stream are left
    out.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``; it must run with other widths if the
        merged network is to run.
      models: the models to be merged.
      spec: their permutation spec.
      recipe: a recipe that zips, for instance ``zipjax.zipit()``. Its matcher shows
        which units each width would merge.
      *inputs: example inputs of ``apply_fn``.
      moments: from :func:`zipjax.collect_moments` for these models.
      cost: the budget of the merged network, heads included, in runs of one model.
      stop_at: see :func:`zipjax.merge`.
      steps: widths are multiples of ``n / steps``.
      smallest: the least width of a perm, as a share of n, if the recipe reaches it.

    Returns:
      ``{perm: width}``, for a recipe's ``num_units``.

    Raises:
      ValueError: if no widths are within the budget, if cost, smallest or steps are no
        positive numbers, or if models, spec and moments do not fit together.
    """
    for name, share in (("cost", cost), ("smallest", smallest)):
        positive = "a positive number, such as cost=1.0 or smallest=0.5"
        check_number(name, share, lambda x: 0 < x < math.inf, positive)
    whole = "a positive whole number, such as 8"
    check_number("steps", steps, lambda x: is_whole(x) and x >= 1, whole)
    check_kind("recipe", recipe, Recipe)
    if "num_units" not in inspect.signature(recipe.matcher).parameters:
        raise ValueError(
            f"recipe {recipe.name!r} merges units one to one, to the models' widths: "
            "use one that zips, such as zipjax.zipit()"
        )
    networks = Networks.of(models, spec, stop_at)
    check_moments(networks, recipe, moments)
    kernels = find_kernels(apply_fn, networks.trees[0], spec, inputs)
    merged = [merged_kernel(kernel, path, networks) for path, kernel in kernels.items()]
    paired = {perm for pair in spec.paired for perm in pair}
    losses = {
        perm: _losses(moments[perm], recipe, len(models), steps, smallest)
        for perm in networks.perms
        if spec.is_plain(perm) and perm not in paired
    }
    limit = cost * total_price(kernels.values(), spec.sizes)
    return _narrowed(losses, merged, spec.sizes, limit)


def _losses(
    moments: Moments, recipe: Recipe, num_models: int, steps: int, smallest: float
) -> dict[int, float]:
    """Returns the loss of a perm at each of its widths."""
    similarity = activation_similarity(moments)
    total = len(similarity)
    least = math.ceil(smallest * steps)
    widths = {
        max(1, total * k // (steps * num_models))
        for k in range(least, steps * num_models)
    }
    losses = {total: 0.0}
    for width in sorted(widths, reverse=True):
        try:
            # A copy, which the matcher may write to.
            own = similarity.astype(np.float64)
            assignment = recipe.matcher(own, num_models, num_units=width)
        except ValueError:  # A small beta does not reach narrow widths.
            break
        losses[width] = _loss(similarity.astype(np.float64), assignment)
    return losses


def _loss(
    similarity: Float64[np.ndarray, "units units"],
    assignment: Int64[np.ndarray, "units"],
) -> float:
    """Returns the share of the units' variance that lies within merged units."""
    one_hot = np.eye(assignment.max() + 1)[assignment]
    shared = np.einsum("iu,ij,ju->u", one_hot, similarity, one_hot, optimize=True)
    return float(1 - (shared / one_hot.sum(0)).sum() / len(similarity))


def _narrowed(
    losses: Mapping[str, Mapping[int, float]],
    kernels: Sequence[Kernel],
    sizes: Mapping[str, int],
    limit: float,
) -> dict[str, int]:
    """Narrows perms, starting from all units, until the price is within the limit."""
    touched = {perm: [k for k in kernels if perm in k.perms] for perm in losses}
    widths = {perm: max(own) for perm, own in losses.items() if touched[perm]}

    def rate(perm: str) -> tuple[float, str, int]:
        """Returns the next width's loss per multiplication saved, perm and width."""
        narrower = max(w for w in losses[perm] if w < widths[perm])
        lost = losses[perm][narrower] - losses[perm][widths[perm]]
        now = {**sizes, **widths}
        saved = total_price(touched[perm], now)
        saved -= total_price(touched[perm], {**now, perm: narrower})
        return len(touched[perm]) * lost / saved, perm, narrower

    while (price := total_price(kernels, {**sizes, **widths})) > limit:
        open_perms = [perm for perm in widths if widths[perm] > min(losses[perm])]
        if not open_perms:
            raise ValueError(
                f"the least widths {widths} cost {price:.3g} multiplications, not the "
                f"{limit:.3g} that are allowed: raise cost or lower smallest"
            )
        _, perm, width = min(map(rate, open_perms))
        widths[perm] = width
    return widths
