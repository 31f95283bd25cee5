"""A reading of a program: the axes of all its values, once it has been interpreted."""

import functools
from collections.abc import Mapping

from zipjax.program.program import Program
from zipjax.spec.entries import Entries
from zipjax.tracing.interpreter import interpret, returned_values
from zipjax.tracing.ledger import Ledger, Value
from zipjax.tracing.nesting import find_parents, settle
from zipjax.tracing.node_entries import FamilyError, to_entries
from zipjax.tracing.nodes import Node, Reason
from zipjax.tracing.refining import collapse
from zipjax.trees import is_weight


class Reading:
    """A program together with the axes of all its values.

    Attributes:
      program: the program.
      ledger: what was recorded on the way.
      values: every value with its axes, by value number; those within scans have the
        iterations' axes first.
    """

    def __init__(self, program: Program, *, tie_contractions: bool = True) -> None:
        """Reads a program.

        Args:
          program: the traced function.
          tie_contractions: whether contracted axes become one perm; see ``Ledger``.
        """
        self.program = program
        self.ledger = Ledger(tie_contractions=tie_contractions)
        self.values = interpret(self.ledger, program, self._given())
        self.ledger.why = Reason("an output of the function")
        for value in returned_values(self.ledger, program, self.values):
            self.ledger.freeze(value.axes)
        self.values.update(self.ledger.within)
        settle(self.ledger.events)
        self._collapse_families()

    def raw_entries(self) -> tuple[dict[str, Entries], dict[Node, str]]:
        """Returns every parameter's entries, with every atom as a perm.

        Returns:
          The entries by path, in which perms are named "0", "1", ... and all axes have
          the role "out"; and the name of every atom, frozen ones included.
        """
        names: dict[Node, str] = {}

        def name(atom: Node) -> str:
            return names.setdefault(atom, str(len(names)))

        return {path: to_entries(self.axes(path), name) for path in self.order}, names

    def axes(self, path: str) -> tuple[Node, ...]:
        """Returns the axes of a parameter."""
        return self.values[self.program.params[path]].axes

    @functools.cached_property
    def parents(self) -> Mapping[Node, list[Node]]:
        """The atoms that enclose each atom, outermost first."""
        return find_parents(self.ledger.events)

    @property
    def order(self) -> list[str]:
        """The parameters' paths in the order in which the program uses them."""
        used = self.ledger.depths
        return [*used, *(path for path in self.program.params if path not in used)]

    def _given(self) -> dict[int, Value]:
        program, values = self.program, {}
        why = Reason("an input of the function")
        for number in program.inputs:
            shape = program.avals[number].shape
            nodes = tuple(Node(size, frozen=why) for size in shape)
            values[number] = Value(nodes, data=True)
        for path, number in program.params.items():
            aval = program.avals[number]
            own = None if is_weight(aval) else Reason("no floating-point numbers")
            nodes = tuple(Node(size, frozen=own) for size in aval.shape)
            values[number] = Value(nodes, data=False, origins=(path,))
            self.ledger.log(nodes)
        return values

    def _collapse_families(self) -> None:
        """Ties the members of families that a parameter's entries cannot express."""
        pending = list(self.program.params)
        while pending:
            try:
                to_entries(self.axes(pending[-1]), lambda _: None)
            except FamilyError as error:
                collapse(error.node, Reason("members of a family in another axis"))
            else:
                pending.pop()
