"""What models have in common: all their parameters, or the trunk of several functions.

Models of several functions have one spec each. What is one parameter is recognised by
its path and its entries, what is one perm by its name and size.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from zipjax.merging.each import each, one_or_each
from zipjax.merging.matrices import Assignments, check_widths
from zipjax.merging.merged import Merged, heads_of
from zipjax.spec.entries import axes_of
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import check_models
from zipjax.types import Leaves, PyTree

Specs = Sequence[PermutationSpec]


def check_shared(models: Sequence[PyTree], specs: Specs) -> Sequence[Leaves]:
    """Checks models and specs and returns every model's leaves by path.

    Shapes may differ only in the outputs. Of a model with heads, these are the leaves
    with its first head; of models with several specs, those that can be shared.
    """
    trees = first_heads(models)
    shared = specs[0].trunk(deepest_cut(specs))
    all_leaves = check_models(trees, None if _is_one(specs) else shared)
    for tree, spec in zip(trees, specs, strict=True):
        spec.validate(tree)
    for path in _differing(all_leaves):
        if path in shared:
            shapes = [list(leaves[path].shape) for leaves in all_leaves]
            raise ValueError(
                f"parameter {path!r} has the shapes {shapes} in the models: only "
                "outputs (behind the last cut) may differ in shape"
            )
    return all_leaves


def shared_paths(
    all_leaves: Sequence[Leaves], spec: PermutationSpec, stop_at: str | int | None
) -> frozenset[str]:
    """Returns the paths that are merged: all, or those not deeper than the cut."""
    if stop_at is None:
        if not _differing(all_leaves):
            return frozenset(spec.entries)
        stop_at = len(spec.cuts)
    return spec.trunk(stop_at)


def first_heads(models: Sequence[PyTree]) -> list[PyTree]:
    """Returns every model's parameters, with the first one of its heads.

    Raises:
      ValueError: if the heads of a merged model are different functions.
    """
    for number, model in enumerate(models):
        if isinstance(model, Merged) and isinstance(model.spec, tuple):
            raise ValueError(
                f"model {number} is a merged one whose heads are different functions: "
                "such a model is not merged again. Merge all models at once"
            )
    return [heads_of(model)[0] for model in models]


def models_spec(
    models: Sequence[PyTree], merged: Merged, assignments: Assignments
) -> PermutationSpec:
    """Returns the (first) spec of the models that were merged, from before.

    Args:
      models: their parameter pytrees.
      merged: their merged model.
      assignments: how their units were matched.

    Raises:
      ValueError: if these do not fit together.
    """
    specs = each(merged.spec, len(models), "specs")
    zipped = {
        axis.perm
        for path in merged.trunk
        for entry in specs[0].entries[path]
        for axis in axes_of(entry)
    }
    if missing := sorted(zipped - set(assignments)):
        raise ValueError(
            f"the merged model has zipped perms {missing} without an assignment: pass "
            "the assignments that it was merged by"
        )
    check_widths(assignments, specs[0])
    sizes = {p: np.shape(x)[-1] // len(models) for p, x in assignments.items()}
    before = [spec.resize(sizes) for spec in specs]
    for spec, model in zip(before, models, strict=True):
        spec.validate(model)
    return before[0]


def common_stop(specs: Specs, stop_at: str | int | None) -> str | int | None:
    """Returns where a zip of models with these specs stops.

    Args:
      specs: one spec a model.
      stop_at: what was asked for, as a place in the first spec.

    Returns:
      ``stop_at`` if all specs are one; else the number of a cut whose trunk they have
      in common: by default the deepest.

    Raises:
      ValueError: if they have not, naming what differs and where the zip may stop.
    """
    if _is_one(specs):
        return stop_at
    deepest, first = deepest_cut(specs), specs[0]
    wanted = (deepest or 1) if stop_at is None else first.stop(stop_at).number
    if wanted > deepest:
        perm = f" ({first.stop(deepest).perm!r})" if deepest else " (nothing is zipped)"
        raise ValueError(
            f"the models' specs differ in what a zip to cut {wanted} shares: "
            f"{_difference(specs, first.stop(wanted).number)}. Stop the zip at cut "
            f"{deepest}{perm}" + (", or before" if deepest else "")
        )
    return wanted


def common_perms(specs: Specs) -> tuple[str, ...]:
    """Returns the perms that a zip of models with these specs can match."""
    return specs[0].stop(common_stop(specs, None)).perms


def deepest_cut(specs: Specs) -> int:
    """Returns the number of the deepest cut whose trunk is common to all specs."""
    numbers = range(1, len(specs[0].cuts) + 1)
    if _is_one(specs):
        return len(numbers)
    # What lies before a common cut is common, too.
    common = itertools.takewhile(lambda k: _difference(specs, k) is None, numbers)
    return max(common, default=0)


def _is_one(specs: Specs) -> bool:
    return not isinstance(one_or_each(specs), tuple)


def _difference(specs: Specs, number: int) -> str | None:
    """Says what of the trunk up to a cut of the first spec the others lack."""
    first, trunk = specs[0], specs[0].trunk(number)
    perms = first.stop(number).perms
    for k, spec in enumerate(specs):
        for path in (path for path in first.entries if path in trunk):
            mine, theirs = first.entries[path], spec.entries.get(path)
            if mine != theirs:
                found = "is missing" if theirs is None else f"has the entries {theirs}"
                return (
                    f"parameter {path!r} has the entries {mine} in the spec of model 0 "
                    f"but {found} in that of model {k}"
                )
        for perm in perms:
            if first.perms[perm] != spec.perms[perm]:
                return (
                    f"perm {perm!r} is {first.perms[perm]} in the spec of model 0 but "
                    f"{spec.perms[perm]} in that of model {k}"
                )
            for path, _, axis in spec.members(perm):
                if axis.role == "out" and path not in trunk:
                    mine = first.entries.get(path, "no such parameter")
                    return (
                        f"parameter {path!r} produces units of perm {perm!r} in the "
                        f"spec of model {k}, where it has the entries "
                        f"{spec.entries[path]}, but the spec of model 0 has {mine}"
                    )
    return None


def _differing(models: Sequence[Leaves]) -> list[str]:
    return [
        p for p, x in models[0].items() if any(m[p].shape != x.shape for m in models)
    ]
