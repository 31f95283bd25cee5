"""Reads a program: gives every value its axes, equation by equation."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from zipjax.program import Equation, Literal, Operand, Program, ValueId
from zipjax.tracing.groups import Axes
from zipjax.tracing.nodes import Node, Reason, find, freeze, leaves
from zipjax.tracing.refining import unify

# With a parameter as an operand these are layers.
_LAYERS = {"dot_general", "conv_general_dilated", "gather"}


@dataclasses.dataclass(frozen=True)
class Value:
    """The axes of a value.

    Attributes:
      axes: one node an axis.
      data: whether the value depends on the function's inputs; if not it is a
        parameter, or computed from parameters and constants alone.
      origins: of a value that is no data, paths of the parameters it is made of.
      depth: number of layers before it.
    """

    axes: Axes
    data: bool
    origins: tuple[str, ...] = ()
    depth: int = 0


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A pair of contracted axes.

    Attributes:
      left: axis of the first operand.
      right: axis of the second operand.
      left_data: whether the first operand depends on the function's inputs.
      right_data: whether the second does.
      equation: the product; None within loops, whose values have other numbers.
    """

    left: Node
    right: Node
    left_data: bool
    right_data: bool
    equation: Equation | None


class Reader:
    """State of one reading.

    Attributes:
      events: the axes of every array; see :mod:`zipjax.tracing.groups`.
      contractions: all pairs of contracted axes.
      depths: the layer depth of every parameter, in the order in which they are used:
        first come, first noted, where a parameter meets data.
      why: the reason to give for what is frozen by the equation at hand.
      unknown: primitives without a rule that were met, with their number.
    """

    def __init__(self, *, tie_contractions: bool = True) -> None:
        """Starts a reading.

        Args:
          tie_contractions: whether contracted axes become one perm. Without, axes are
            tied along the flow of values only, which tells who consumes whom.
        """
        self.events: list[Axes] = []
        self.contractions: list[Contraction] = []
        self.depths: dict[str, int] = {}
        self.why = Reason("")
        self.unknown: dict[str, int] = {}
        self._tie_contractions = tie_contractions
        self._seen: set[tuple[int, ...]] = set()
        self._ambient: Axes = ()
        self._operands: list[Value] = []
        self._equation: Equation | None = None
        self._level = 0

    def read(self, program: Program, values: Mapping[ValueId, Value]) -> dict:
        """Returns the values of a program, given those of its inputs and parameters."""
        # Imported here: the rules of loops read the program of the loop's body.
        from zipjax.tracing.loops import LOOPS
        from zipjax.tracing.rules import rule_of

        known = dict(values)
        for number, array in program.constants.items():
            known[number] = self.constant(array)
        for eqn in program.equations:
            outer = self.why
            self.why = Reason(eqn.primitive.name, eqn)
            operands = [self._value(x, known) for x in eqn.operands]
            if eqn.primitive.name in LOOPS:
                made = LOOPS[eqn.primitive.name](self, eqn, operands)
            else:
                self._operands, self._equation = operands, eqn
                shapes = [tuple(program.avals[x].shape) for x in eqn.results]
                axes = rule_of(eqn)(self, eqn, [x.axes for x in operands], shapes)
                made = self._values(eqn, operands, axes)
            for number, value in zip(eqn.results, made, strict=True):
                known[number] = value
                self.log(value.axes)
            self.why = outer
        return known

    def outputs(self, program: Program, known: Mapping[ValueId, Value]) -> list[Value]:
        """Returns what a program returns."""
        return [self._value(x, known) for x in program.outputs]

    def constant(self, array: Any) -> Value:
        """Gives a constant its axes: those along which it varies are frozen."""
        shape = np.shape(array)
        why = Reason("a constant of the function", self.why.equation)
        axes = []
        for number, size in enumerate(shape):
            uniform = size == 1 or (0 not in shape and _uniform(array, number))
            axes.append(Node(size, frozen=None if uniform else why))
        return Value(tuple(axes), data=False)

    def frozen(self, size: int) -> Node:
        """Returns a new axis that cannot be permuted."""
        return Node(size, frozen=self.why)

    def freeze(self, nodes: Iterable[Node]) -> None:
        """Freezes axes because of the equation at hand."""
        for node in nodes:
            freeze(node, self.why)

    def tie(self, a: Node, b: Node) -> None:
        """Ties two axes because of the equation at hand."""
        unify(a, b, self.why)

    def contract(self, left: Node, right: Node) -> None:
        """Notes that an axis of the first operand is contracted with one of the other.

        Must be called with the operands' own order.
        """
        first, second = self._operands[:2]
        eqn = None if self._level else self._equation
        pair = Contraction(left, right, first.data, second.data, eqn)
        self.contractions.append(pair)
        if self._tie_contractions:
            self.tie(left, right)

    def log(self, axes: Iterable[Node], *, ambient: bool = True) -> None:
        """Notes that axes were seen in one array.

        Args:
          axes: the array's axes, or those of an operation that stay aligned in it.
          ambient: whether the array exists once for each iteration of the loops around.
        """
        found = (*(self._ambient if ambient else ()), *axes)
        event = tuple(node for node in map(find, found) if node.size > 1)
        key = tuple(id(node) for node in event)
        if key in self._seen:
            return
        self._seen.add(key)
        for node in event:
            for leaf in leaves(node):
                leaf.events.append(len(self.events))
        self.events.append(event)

    def read_body(
        self, program: Program, operands: Sequence[Value], loop: Axes = ()
    ) -> list[Value]:
        """Reads the program of a loop's body or of a branch.

        Args:
          program: its inputs are those of the body.
          operands: the values of the inputs.
          loop: axes that every value in the body has one value for each element of.
        """
        before, self._ambient = self._ambient, (*self._ambient, *loop)
        self._level += 1
        known = dict(zip(program.inputs, operands, strict=True))
        for value in operands:
            self.log(value.axes)
        results = self.outputs(program, self.read(program, known))
        self._ambient = before
        self._level -= 1
        return results

    def use(self, values: Iterable[Value], depth: int) -> None:
        """Notes the first use of the parameters that values are made of."""
        for value in values:
            for path in value.origins:
                self.depths.setdefault(path, depth)

    def _values(
        self, eqn: Equation, operands: Sequence[Value], axes: Iterable[Axes]
    ) -> list[Value]:
        data = [value.depth for value in operands if value.data]
        if not data:
            paths = dict.fromkeys(path for x in operands for path in x.origins)
            return [Value(tuple(nodes), False, tuple(paths)) for nodes in axes]
        layer = eqn.primitive.name in _LAYERS and any(x.origins for x in operands)
        depth = max(data) + layer
        self.use(operands, depth)
        return [Value(tuple(nodes), True, depth=depth) for nodes in axes]

    def _value(self, operand: Operand, known: Mapping[ValueId, Value]) -> Value:
        if isinstance(operand, Literal):
            return self.constant(operand.value)
        return known[operand]


def _uniform(array: Any, axis: int) -> bool:
    """Returns whether a constant does not vary along an axis."""
    dtype = getattr(array, "dtype", np.dtype(float))
    if not (dtype == np.bool_ or jnp.issubdtype(dtype, np.number)):
        return False
    values = np.asarray(array)
    return bool(np.all(values == np.take(values, [0], axis)))
