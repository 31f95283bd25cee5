"""``infer_spec``: the permutation spec of any JAX function, from its jaxpr."""

from collections.abc import Collection, Mapping

from zipjax.entries import Axis, Entries, Entry, Fixed, leaf_axes
from zipjax.program import Program, trace
from zipjax.spec import Perm, PermutationSpec
from zipjax.tracing.convert import (
    FamilyError,
    Place,
    leaf_at,
    map_leaves,
    simplified,
    to_entries,
)
from zipjax.tracing.groups import find_parents, settle
from zipjax.tracing.nodes import Node, Reason, collapse
from zipjax.tracing.reader import Reader, Value
from zipjax.tracing.roles import consumers
from zipjax.types import ApplyFn, PyTree


def infer_spec(apply_fn: ApplyFn, params: PyTree, *inputs: PyTree) -> PermutationSpec:
    """Infers the permutation spec of a function from its jaxpr.

    Nothing is computed. What the rules do not know freezes the axes that it touches, so
    that the spec is sound for any function; the perms that are found are those of the
    usual architectures.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, in evaluation mode, returning outputs
        only (returned batch statistics would count as outputs).
      params: parameter pytree, of arrays or of ``jax.ShapeDtypeStruct``.
      *inputs: the other inputs, likewise.

    Returns:
      The spec, with the parameters in the order in which the function uses them.
    """
    return read_spec(trace(apply_fn, params, *inputs))


def read_spec(program: Program) -> PermutationSpec:
    """Infers the permutation spec of a traced function."""
    reading = Reading(program)
    raw, names = reading.raw_entries()
    axes = _with_roles(raw, {names[n]: n.size for n in names}, program)
    return _assemble(axes, names, reading)


class Reading:
    """A program that was read, ready to be asked for entries.

    Attributes:
      reader: with what was logged.
      values: axes of every value.
    """

    def __init__(self, program: Program, *, tie_contractions: bool = True) -> None:
        """Reads a program."""
        self.program = program
        self.reader = Reader(tie_contractions=tie_contractions)
        self.values = self.reader.read(program, self._given())
        self.reader.why = Reason("an output of the function")
        for value in self.reader.outputs(program, self.values):
            self.reader.freeze(value.axes)
        settle(self.reader.events)
        self._collapse_families()

    def raw_entries(self) -> tuple[dict[str, Entries], dict[Node, str]]:
        """Returns entries with numbered perms, all of role "out", and the numbers."""
        names: dict[Node, str] = {}

        def name(leaf: Node) -> str | None:
            if leaf.frozen is not None:
                return None
            return names.setdefault(leaf, str(len(names)))

        return {path: to_entries(self.axes(path), name) for path in self.order}, names

    def axes(self, path: str) -> tuple[Node, ...]:
        """Returns the axes of a parameter."""
        return self.values[self.program.params[path]].axes

    @property
    def order(self) -> list[str]:
        """Paths of the parameters in the order in which the program uses them."""
        used = self.reader.depths
        return [*used, *(path for path in self.program.params if path not in used)]

    def _given(self) -> dict[int, Value]:
        program, values = self.program, {}
        why = Reason("an input of the function")
        for number in program.inputs:
            shape = program.avals[number].shape
            nodes = tuple(Node(size, frozen=why) for size in shape)
            values[number] = Value(nodes, data=True)
        for path, number in program.params.items():
            nodes = tuple(Node(size) for size in program.avals[number].shape)
            values[number] = Value(nodes, data=False, origins=(path,))
            self.reader.log(nodes)
        return values

    def _collapse_families(self) -> None:
        """Ties the members of families that no entry of a parameter can express."""
        pending = list(self.program.params)
        while pending:
            try:
                to_entries(self.axes(pending[-1]), lambda _: None)
            except FamilyError as error:
                collapse(error.node, Reason("members of a family in another axis"))
            else:
                pending.pop()


def _with_roles(
    raw: Mapping[str, Entries], sizes: Mapping[str, int], program: Program
) -> dict[str, Entries]:
    """Fills in the roles, which a reading along the flow of values tells."""
    flow = Reading(program, tie_contractions=False)
    labels: dict[Node, str] = {}

    def label(leaf: Node) -> str:
        return labels.setdefault(leaf, str(len(labels)))

    flows = {path: to_entries(flow.axes(path), label) for path in raw}
    consuming = {label(leaf) for leaf in consumers(flow.reader.contractions)}
    flow_sizes = {name: leaf.size for leaf, name in labels.items()}

    def with_roles(path: str, entries: Entries) -> Entries:
        def assign(axis: Axis, place: Place) -> Entry:
            leaf = leaf_at(flows[path], flow_sizes, place)
            consumed = leaf is not None and leaf.perm in consuming
            return Axis(axis.perm, "in" if consumed else "out")

        return map_leaves(entries, sizes, assign)

    return {path: with_roles(path, entries) for path, entries in raw.items()}


def _assemble(
    axes: Mapping[str, Entries], names: Mapping[Node, str], reading: Reading
) -> PermutationSpec:
    """Names the perms and drops those that are not both produced and consumed."""
    found = _producers(axes)
    leaves = {number: leaf for leaf, number in names.items()}
    final: dict[str, str] = {}
    for number, (produced, consumed) in found.items():
        if produced and consumed:
            final[number] = _unique(produced[0], final.values())
    sizes = {number: leaf.size for number, leaf in leaves.items()}

    def rename(axis: Axis, _: Place) -> Entry:
        if axis.perm in final:
            return Axis(final[axis.perm], axis.role)
        return Fixed(sizes[axis.perm])

    renamed = {
        path: simplified(map_leaves(entries, sizes, rename))
        for path, entries in axes.items()
    }
    parents = find_parents(reading.reader.events)
    perms = {}
    for number, name in final.items():
        above = [names.get(parent) for parent in parents.get(leaves[number], ())]
        groups = tuple(final[n] for n in above if n is not None and n in final)
        perms[name] = Perm(sizes[number], groups)
    return PermutationSpec(renamed, perms)


def _producers(
    axes: Mapping[str, Entries],
) -> dict[str, tuple[list[str], list[str]]]:
    """Lists for every perm the parameters that produce it and that consume it."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for path, entries in axes.items():
        for axis in (leaf for entry in entries for leaf in leaf_axes(entry)):
            lists = found.setdefault(axis.perm, ([], []))
            lists[axis.role == "in"].append(path)
    return found


def _unique(path: str, taken: Collection[str]) -> str:
    """Names a perm by the layer that produces it."""
    base = path.rpartition("/")[0] or path
    name, number = base, 2
    while name in taken:
        name, number = f"{base}.{number}", number + 1
    return name
