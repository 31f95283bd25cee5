"""Roles: which axes produce a perm's units and which consume them.

A second reading ties axes along the flow of values only, not across contractions. Axes
that are tied in it were produced together, and each contraction has a producer and a
consumer:

* data times a weight: the weight consumes;
* two weights, or two values that both depend on data (Q and K): the second consumes.
  If other parameters consume the second, as they do a residual stream, the first does.
"""

from collections.abc import Iterable, Mapping

from zipjax.program.program import Program
from zipjax.spec.entries import Axis, Entries, Entry, atom_name
from zipjax.tracing.ledger import Contraction
from zipjax.tracing.node_entries import Place, atom_at, map_axes, to_entries
from zipjax.tracing.nodes import Node, atoms, find
from zipjax.tracing.reading import Reading


def with_roles(
    raw: Mapping[str, Entries], sizes: Mapping[str, int], program: Program
) -> dict[str, Entries]:
    """Returns the entries with the role of every axis, found by a second reading.

    Args:
      raw: every parameter's entries, as :meth:`Reading.raw_entries` returns them.
      sizes: number of units of the perms in them.
      program: the traced function.
    """
    flow = Reading(program, tie_contractions=False)
    labels: dict[Node, str] = {}

    def label(atom: Node) -> str:
        return labels.setdefault(atom, str(len(labels)))

    flows = {path: to_entries(flow.axes(path), label) for path in raw}
    consuming = {label(atom) for atom in consumers(flow.ledger.contractions)}
    flow_sizes = {name: atom.size for atom, name in labels.items()}

    def filled(path: str, entries: Entries) -> Entries:
        def assign(axis: Axis, place: Place) -> Entry:
            atom = atom_at(flows[path], flow_sizes, place)
            consumed = atom_name(atom) in consuming
            return Axis(axis.perm, "in" if consumed else "out")

        return map_axes(entries, sizes, assign)

    return {path: filled(path, entries) for path, entries in raw.items()}


def consumers(contractions: Iterable[Contraction]) -> set[Node]:
    """Returns the atoms that consume, in a reading that does not tie contractions.

    Args:
      contractions: the contractions of the reading.
    """
    found: set[Node] = set()
    producers: set[Node] = set()
    mixed = []
    for pair in contractions:
        left, right = _atoms(pair.left), _atoms(pair.right)
        if pair.left_data == pair.right_data:
            mixed.append((left, right))
            continue
        data, weight = (left, right) if pair.left_data else (right, left)
        found |= weight - data
        producers |= data
    for left, right in mixed:
        if not right & (producers | left):
            found |= right
        elif not left & (producers | right):
            found |= left
    return found


def _atoms(node: Node) -> set[Node]:
    return {find(atom) for atom in atoms(node) if atom.size > 1}
