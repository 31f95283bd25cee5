"""The ledger: what is known of a program's axes while its equations are read."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from zipjax.program.program import Equation
from zipjax.tracing.nesting import Axes
from zipjax.tracing.nodes import Node, Reason, atoms, find, freeze
from zipjax.tracing.refining import unify


@dataclasses.dataclass(frozen=True)
class Value:
    """The axes of a value.

    Attributes:
      axes: one node per axis.
      data: whether the value depends on the function's inputs; if not, it is a
        parameter, or computed from parameters and constants alone.
      origins: for a value that is not data, the paths of the parameters it is made of.
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


class Ledger:
    """What one reading of a program has found so far; rules write to it.

    Attributes:
      events: the axes of every array; see :mod:`zipjax.tracing.nesting`.
      contractions: all pairs of contracted axes.
      depths: the layer depth of every parameter, in the order of their first use with
        data.
      why: the reason to give for what the current equation freezes.
      unknown: how often each primitive without a rule was met.
      operands: what the current equation reads.
    """

    def __init__(self, *, tie_contractions: bool = True) -> None:
        """Opens an empty ledger.

        Args:
          tie_contractions: whether contracted axes become one perm. Without, axes are
            tied along the flow of values only, which tells who consumes whom.
        """
        self.events: list[Axes] = []
        self.contractions: list[Contraction] = []
        self.depths: dict[str, int] = {}
        self.why = Reason("")
        self.unknown: dict[str, int] = {}
        self.operands: Sequence[Value] = ()
        self._tie_contractions = tie_contractions
        self._seen: set[tuple[int, ...]] = set()
        self._ambient: Axes = ()
        self._loops = 0

    @contextlib.contextmanager
    def reading(self, eqn: Equation) -> Iterator[None]:
        """While open, an equation is the cause of what is tied and frozen."""
        before = self.why
        self.why = Reason(eqn.primitive.name, eqn)
        yield
        self.why = before

    @contextlib.contextmanager
    def inside_loop(self, axes: Axes) -> Iterator[None]:
        """While open, every array exists once for each element of these axes."""
        before, self._ambient = self._ambient, (*self._ambient, *axes)
        self._loops += 1
        yield
        self._ambient = before
        self._loops -= 1

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
        """Freezes axes because of the current equation."""
        for node in nodes:
            freeze(node, self.why)

    def tie(self, a: Node, b: Node) -> None:
        """Ties two axes because of the current equation."""
        unify(a, b, self.why)

    def contract(self, left: Node, right: Node) -> None:
        """Notes that an axis of the first operand is contracted with one of the second.

        Must be called with the operands in the equation's own order.
        """
        first, second = self.operands[:2]
        eqn = None if self._loops else self.why.equation
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
            for atom in atoms(node):
                atom.events.append(len(self.events))
        self.events.append(event)

    def use(self, values: Iterable[Value], depth: int) -> None:
        """Notes the first use of the parameters that values are made of."""
        for value in values:
            for path in value.origins:
                self.depths.setdefault(path, depth)

    def count_unknown(self, name: str) -> None:
        """Notes that a primitive has no rule."""
        self.unknown[name] = self.unknown.get(name, 0) + 1


def _uniform(array: Any, axis: int) -> bool:
    """Returns whether a constant does not vary along an axis."""
    dtype = getattr(array, "dtype", np.dtype(float))
    if not (dtype == np.bool_ or jnp.issubdtype(dtype, np.number)):
        return False
    values = np.asarray(array)
    return bool(np.all(values == np.take(values, [0], axis)))
