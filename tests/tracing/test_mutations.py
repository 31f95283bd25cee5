"""Verification catches wrong specs: every axis dropped, perms exchanged."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from tests.zoo import convnets, sequences, vits
from zipjax.spec.entries import Axis, Entry, Fixed, axes_of
from zipjax.spec.permutation_spec import Perm, PermutationSpec
from zipjax.spec.verify import verify_spec
from zipjax.tracing.infer import infer_spec
from zipjax.tracing.node_entries import map_axes, simplified
from zipjax.types import SpecError

CASES = {**convnets.CASES, **vits.CASES, **sequences.CASES}
NAMES = ("mlp", "vgg", "densenet-group", "experts", "lstm-fused")


def _with_atom(
    spec: PermutationSpec, path: str, number: int, new: Entry
) -> PermutationSpec:
    """Replaces the axis atom with that number in a parameter's entries."""
    count = iter(range(10**6))
    entries = map_axes(
        spec.entries[path],
        spec.sizes,
        lambda axis, _: new if next(count) == number else axis,
    )
    axes = {**spec.entries, path: simplified(entries)}
    used = {a.perm for row in axes.values() for entry in row for a in axes_of(entry)}
    perms = {name: perm for name, perm in spec.perms.items() if name in used}
    return dataclasses.replace(spec, entries=axes, perms=perms)


def _mutants(spec: PermutationSpec) -> Iterator[Any]:
    for path, entries in spec.entries.items():
        count = iter(range(10**6))
        seen: list[tuple[int, Axis]] = []
        map_axes(
            entries,
            spec.sizes,
            lambda axis, _, c=count, s=seen: s.append((next(c), axis)) or axis,
        )
        for number, axis in seen:
            size = spec.sizes[axis.perm]
            yield path, number, Fixed(size)
            for other, perm in spec.perms.items():
                if other != axis.perm and perm.size == size:
                    yield path, number, Axis(other, axis.role)


@pytest.mark.parametrize("name", NAMES)
def test_every_mutation_is_caught(name: str) -> None:
    case = CASES[name]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    apply_fn = jax.jit(case.apply_fn)
    mutants = list(_mutants(spec))
    assert len(mutants) >= 6
    for path, number, new in mutants:
        assert _is_caught(case, apply_fn, spec, path, number, new), (path, number, new)


def _is_caught(case: Any, apply_fn: Any, spec: PermutationSpec, *change: Any) -> bool:
    """Returns whether a spec is refused when it is made, or by verification."""
    try:
        wrong = _with_atom(spec, *change)
        arguments = apply_fn, case.params, wrong, *case.inputs
        verify_spec(*arguments, key=jax.random.key(1), trials=4)
    except ValueError:
        return True
    return False


def test_halved_groups_are_caught() -> None:
    case = CASES["densenet-group"]()
    spec = infer_spec(case.apply_fn, case.params, *case.inputs)
    perms = {
        name: Perm(perm.size // 2 if perm.groups else perm.size * 2, perm.groups)
        for name, perm in spec.perms.items()
    }
    wrong = dataclasses.replace(spec, perms=perms)
    arguments = case.apply_fn, case.params, wrong, *case.inputs
    with pytest.raises(SpecError):
        verify_spec(*arguments, key=jax.random.key(1))
