"""Activations: the units of a network's perms, read at their taps."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax

from zipjax.program.program import Program, compute_values, trace
from zipjax.program.signatures import Signature, abstract, signature_of
from zipjax.spec.blocks import unit_samples
from zipjax.spec.depth import Boundary
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.tracing.taps import Tap, Taps, find_taps
from zipjax.trees import path_leaves
from zipjax.types import ApplyFn, Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activations:
    """Activations of a perm's units, as :func:`zipjax.spec.blocks.unit_samples` yields.

    Attributes:
      last: at the perm's tap, ``[elements, places, samples, units]``, one array for
        every occurrence.
      earlier: the same in earlier places.
      perm: the perm.
    """

    last: list[Array]
    earlier: list[Array]
    perm: str = dataclasses.field(metadata={"static": True})


def activations(
    apply_fn: ApplyFn,
    model: PyTree,
    spec: PermutationSpec,
    inputs: Sequence[Any],
    perms: tuple[str, ...] | None = None,
    boundary: Boundary | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Activations]:
    """Returns the activations of one model's perms, without those that have no tap.

    Nothing is computed that they do not need.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``.
      model: parameter pytree.
      spec: the permutation spec.
      inputs: the other inputs.
      perms: the perms of a trunk; see :func:`find_taps`.
      boundary: where the trunk ends inside a stream.
      only: the perms to read; by default all.
    """
    inputs = tuple(inputs)
    program, found = traced_taps(
        apply_fn, spec, perms, boundary, signature_of(model), signature_of(inputs)
    )
    taps = {p: reads for p, reads in found.items() if only is None or p in only}
    read = [tap for reads in taps.values() for tap in (*reads.last, *reads.earlier)]
    values = compute_values(
        program,
        path_leaves(model),
        jax.tree_util.tree_leaves(inputs),
        [tap.value for tap in read],
    )
    known = dict(zip((tap.value for tap in read), values, strict=True))

    def samples(perm: str, places: Sequence[Tap]) -> list[Array]:
        groups, sizes = spec.perms[perm].groups, spec.sizes
        return [
            found
            for tap in places
            for found in unit_samples(
                known[tap.value], tap.entries, sizes, perm, groups, tap.loops
            )
        ]

    return {
        perm: Activations(samples(perm, reads.last), samples(perm, reads.earlier), perm)
        for perm, reads in taps.items()
    }


@functools.lru_cache(maxsize=32)
def traced_taps(
    apply_fn: ApplyFn,
    spec: PermutationSpec,
    perms: tuple[str, ...] | None,
    boundary: Boundary | None,
    params: Signature,
    inputs: Signature,
) -> tuple[Program, Taps]:
    """Returns a function's program and taps for given shapes, kept between calls.

    To be called outside of compiled functions first: within one, a program's constants
    would belong to its devices.
    """
    program = trace(apply_fn, abstract(params), *abstract(inputs))
    return program, find_taps(program, spec, perms, boundary)
