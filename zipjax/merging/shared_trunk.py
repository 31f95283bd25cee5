"""What models of several functions have in common: the trunk of their specs.

Models of several functions have one spec each. A parameter is the same in two specs if
its path and its entries agree, a perm if its name and size do.
"""

import itertools
from collections.abc import Sequence

from zipjax.merging.each import one_or_each
from zipjax.spec.permutation_spec import PermutationSpec

Specs = Sequence[PermutationSpec]


def is_one(specs: Specs) -> bool:
    """Returns whether all specs are equal."""
    return not isinstance(one_or_each(specs), tuple)


def deepest_cut(specs: Specs) -> int:
    """Returns the number of the deepest cut whose trunk is common to all specs."""
    numbers = range(1, len(specs[0].cuts) + 1)
    if is_one(specs):
        return len(numbers)
    # Whatever lies before a common cut is common, too.
    common = itertools.takewhile(lambda k: _difference(specs, k) is None, numbers)
    return max(common, default=0)


def common_stop(specs: Specs, stop_at: str | int | None) -> int:
    """Returns the number of the cut where a zip of models with several specs stops.

    Args:
      specs: one spec per model, not all equal.
      stop_at: a perm or the number of a cut in the first spec; None for the deepest
        cut whose trunk is common.

    Raises:
      ValueError: if the trunk up to there is not common, naming what differs and where
        the zip may stop.
    """
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


def _difference(specs: Specs, number: int) -> str | None:
    """Says what of the trunk up to a cut of the first spec the other specs lack."""
    closed = specs[0].stop(number).boundary is None
    last = _producer_difference if closed else _boundary_difference
    found = (
        find(specs[0], spec, number, model)
        for model, spec in enumerate(specs)
        for find in (_parameter_difference, _perm_difference, last)
    )
    return next((difference for difference in found if difference is not None), None)


def _parameter_difference(
    first: PermutationSpec, spec: PermutationSpec, number: int, model: int
) -> str | None:
    trunk = first.trunk(number)
    for path in (path for path in first.entries if path in trunk):
        mine, theirs = first.entries[path], spec.entries.get(path)
        if mine != theirs:
            found = "is missing" if theirs is None else f"has the entries {theirs}"
            return (
                f"parameter {path!r} has the entries {mine} in the spec of model 0 "
                f"but {found} in that of model {model}"
            )
    return None


def _perm_difference(
    first: PermutationSpec, spec: PermutationSpec, number: int, model: int
) -> str | None:
    for perm in first.stop(number).perms:
        mine, theirs = first.perms[perm], spec.perms.get(perm)
        if mine != theirs:
            return (
                f"perm {perm!r} is {mine} in the spec of model 0 but {theirs} in that "
                f"of model {model}"
            )
    return None


def _producer_difference(
    first: PermutationSpec, spec: PermutationSpec, number: int, model: int
) -> str | None:
    """Finds a parameter outside the trunk that writes to zipped units."""
    trunk = first.trunk(number)
    for perm in first.stop(number).perms:
        for path, _, axis in spec.members(perm):
            if axis.role == "out" and path not in trunk:
                mine = first.entries.get(path, "no such parameter")
                return (
                    f"parameter {path!r} produces units of perm {perm!r} in the spec "
                    f"of model {model}, where it has the entries "
                    f"{spec.entries[path]}, but the spec of model 0 has {mine}"
                )
    return None


def _boundary_difference(
    first: PermutationSpec, spec: PermutationSpec, number: int, model: int
) -> str | None:
    """Finds that a function reads the trunk otherwise than through one value."""
    boundary = first.stop(number).boundary
    assert boundary is not None
    same = boundary.trunk, boundary.entries
    if same in [(own.trunk, own.entries) for own in spec.boundaries]:
        return None
    return (
        f"model {model} does not read the trunk through the one value that ends it in "
        "model 0, or not in a residual stream"
    )
