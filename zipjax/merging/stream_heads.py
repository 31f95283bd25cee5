"""Merged models whose trunk ends inside a residual stream, as functions.

No parameters of the models' function are such a model: its first part runs on merged
units and the rest on a model's own. But it is a function of leaves: the trunk's, a
head's, and the unmerge matrices U that lead from one to the other.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zipjax.program.boundaries import boundary_value
from zipjax.program.program import Program, ValueId, compute_from, trace
from zipjax.spec.blocks import map_atoms
from zipjax.spec.depth import Boundary
from zipjax.spec.entries import Axis, Entries, atom_name, entry_names, entry_size
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.trees import from_leaves
from zipjax.types import ApplyFn, Array, Leaves, PyTree


@dataclasses.dataclass(frozen=True)
class StreamEnd:
    """Where a trunk on merged units ends inside a stream, and one head begins.

    Attributes:
      structure: the structure of the head's model's parameters.
      boundary: the value that the head reads.
      merged: the spec with the merged widths.
      own: the spec with the model's widths.
    """

    structure: Any
    boundary: Boundary
    merged: PermutationSpec
    own: PermutationSpec

    def leaves(self, trunk: Leaves, head: Leaves, unmerge: Leaves) -> dict[str, Any]:
        """Returns the leaves of trunk, head and U by name, as one flat pytree.

        A parameter's name is its path; of one that is both in the trunk and in the
        head, the head's is "PATH (own)".
        """
        own = {self._own_name(path): leaf for path, leaf in head.items()}
        return {**trunk, **own, **{_matrix_name(p): u for p, u in unmerge.items()}}

    def parts(self, leaves: Leaves) -> tuple[dict[str, Any], ...]:
        """Returns trunk, head and U; the inverse of :meth:`leaves`."""
        trunk = {path: leaves[path] for path in self.boundary.trunk}
        own = own_paths(self.own, self.boundary)
        head = {path: leaves[self._own_name(path)] for path in own}
        perms = entry_names(self.boundary.entries)
        return trunk, head, {perm: leaves[_matrix_name(perm)] for perm in perms}

    def spec(self) -> PermutationSpec:
        """Returns the spec of these leaves in which only units of the head move.

        They are those that the trunk neither produces nor consumes.
        """
        rows = [self.own.entries[path] for path in self.boundary.trunk]
        zipped = {name for row in rows for name in entry_names(row)}
        spec = self.own.only(self.own.perms.keys() - zipped)
        entries, depths = dict(spec.entries), dict(spec.depths)
        for path in self.boundary.shared:
            entries[self._own_name(path)] = spec.entries[path]
            depths[self._own_name(path)] = self.own.layers
        for path in self.boundary.trunk:
            entries[path] = (None,) * len(spec.entries[path])
        for perm in entry_names(self.boundary.entries):
            rank = 2 + len(self.own.perms[perm].groups)
            entries[_matrix_name(perm)] = (None,) * rank
            depths[_matrix_name(perm)] = 0
        return dataclasses.replace(spec, entries=entries, depths=depths, boundaries=())

    def trace(
        self,
        apply_fn: ApplyFn,
        sizes: Mapping[str, int],
        leaves: Leaves,
        inputs: Sequence[PyTree],
    ) -> "Traced":
        """Traces the model's function with parameters of other widths.

        Args:
          apply_fn: the function.
          sizes: number of units of every perm.
          leaves: the parameters by path; what is known of a shape otherwise.
          inputs: the other inputs.
        """
        shapes = {p: _resized(x, self.own.entries[p], sizes) for p, x in leaves.items()}
        blank = jax.tree_util.tree_unflatten(self.structure, range(len(shapes)))
        params = from_leaves(shapes, blank)
        structures: list[Any] = []

        def flattened(params: PyTree, *inputs: PyTree) -> list[Any]:
            outputs, structure = jax.tree_util.tree_flatten(apply_fn(params, *inputs))
            structures.append(structure)
            return outputs

        program, boundary = trace(flattened, params, *inputs), self.boundary
        fits = functools.partial(boundary.fits, sizes=sizes)
        end = boundary_value(program, boundary.trunk, boundary.shared, fits)
        return Traced(program, end, structures[0])

    def _own_name(self, path: str) -> str:
        return f"{path} (own)" if path in self.boundary.trunk else path


@dataclasses.dataclass(frozen=True)
class StreamHead:
    """A trunk on merged units with a head on its model's own, as one function.

    Called as ``function(leaves, *inputs)`` with :meth:`StreamEnd.leaves`.

    Attributes:
      apply_fn: the model's function.
      end: where the trunk ends.
    """

    apply_fn: ApplyFn
    end: StreamEnd

    def __call__(self, leaves: Leaves, *inputs: PyTree) -> PyTree:
        """Returns the model's output."""
        end, call = self.end, self.apply_fn
        trunk, head, unmerge = end.parts(leaves)
        flat = jax.tree_util.tree_leaves(inputs)
        first = rest = end.trace(call, end.merged.sizes, {**head, **trunk}, inputs)
        if end.own.sizes != end.merged.sizes:
            rest = end.trace(call, end.own.sizes, {**trunk, **head}, inputs)
        (merged,) = compute_from(first.program, first.known(trunk, flat), [first.end])
        value = unmerged(merged, end.boundary.entries, end.merged, unmerge)
        known = {**rest.known(head, flat), rest.end: value}
        outputs = compute_from(rest.program, known, rest.program.outputs)
        return jax.tree_util.tree_unflatten(rest.structure, outputs)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function's program, the boundary in it, and the structure of its outputs."""

    program: Program
    end: ValueId
    structure: Any

    def known(self, leaves: Leaves, inputs: Sequence[Any]) -> dict[ValueId, Any]:
        """Returns the values of these parameters and of all inputs."""
        params = {self.program.params[path]: leaf for path, leaf in leaves.items()}
        return {**params, **dict(zip(self.program.inputs, inputs, strict=True))}


def own_paths(spec: PermutationSpec, boundary: Boundary) -> list[str]:
    """Returns the parameters that are each model's own after a boundary."""
    shared = boundary.shared
    return [p for p in spec.entries if p not in boundary.trunk or p in shared]


def unmerged(
    value: Array, entries: Entries, spec: PermutationSpec, unmerge: Leaves
) -> Array:
    """Copies the merged units of a value to those of one model.

    Args:
      value: the value, on merged units.
      entries: of its axes.
      spec: the spec with the merged widths.
      unmerge: the model's U ``[*groups, n, units]`` by perm.
    """

    def copy(array: Array, axes: Entries) -> Array:
        units = {k: x.perm for k, x in enumerate(axes) if isinstance(x, Axis)}
        result = [array.ndim + k if k in units else k for k in range(array.ndim)]
        # U has the groups in the model's own order: those of the result.
        places = dict(zip(map(atom_name, axes), result, strict=True))
        operands: list[Any] = [array, list(range(array.ndim))]
        for number, perm in units.items():
            groups = [places[group] for group in spec.perms[perm].groups]
            matrix = jnp.asarray(unmerge[perm], array.dtype)
            operands += [matrix, [*groups, result[number], number]]
        return jnp.einsum(*operands, result, precision=jax.lax.Precision.HIGHEST)

    return map_atoms(value, entries, spec.sizes, copy)


def _resized(
    leaf: Any, entries: Entries, sizes: Mapping[str, int]
) -> jax.ShapeDtypeStruct:
    """Returns the shape that a parameter has with these widths."""
    wanted = [entry_size(entry, sizes) for entry in entries]
    shape = [own if n is None else n for n, own in zip(wanted, leaf.shape, strict=True)]
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)


def _matrix_name(perm: str) -> str:
    return f"{perm} (U)"
