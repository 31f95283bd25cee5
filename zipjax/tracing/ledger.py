"""The ledger: what is known about a program's axes while its equations are read."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from zipjax.program.program import Equation, ValueId
from zipjax.tracing.counters import Numbers, constant_numbers
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
      origins: for a value that is not data, the paths of the parameters in it.
      depth: number of layers before it.
      loops: how many of the first axes are iterations of scans around the value.
      numbers: what the value is, if it is whole numbers that are known.
    """

    axes: Axes
    data: bool
    origins: tuple[str, ...] = ()
    depth: int = 0
    loops: int = 0
    numbers: Numbers | None = None


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A pair of contracted axes.

    Attributes:
      left: axis of the first operand.
      right: axis of the second operand.
      left_data: whether the first operand depends on the function's inputs.
      right_data: whether the second does.
      equation: the product.
    """

    left: Node
    right: Node
    left_data: bool
    right_data: bool
    equation: Equation


class Ledger:
    """What one reading of a program has found so far; rules write to it.

    Attributes:
      events: the axes of every array; see :mod:`zipjax.tracing.nesting`.
      contractions: all pairs of contracted axes.
      depths: the layer depth of every parameter, in the order in which they are first
        used with data.
      why: the reason to give for what the current equation freezes.
      unknown: how often each primitive without a rule has occurred.
      operands: the values that the current equation reads.
      within: the values within scans, for all iterations, by value number.
    """

    def __init__(self, *, tie_contractions: bool = True) -> None:
        """Opens an empty ledger.

        Args:
          tie_contractions: whether contracted axes become one perm. If not, axes are
            tied along the flow of values only, so that the two axes of a contraction
            can be distinguished as producer and consumer.
        """
        self.events: list[Axes] = []
        self.contractions: list[Contraction] = []
        self.depths: dict[str, int] = {}
        self.why = Reason("")
        self.unknown: dict[str, int] = {}
        self.operands: Sequence[Value] = ()
        self.within: dict[ValueId, Value] = {}
        self._tie_contractions = tie_contractions
        self._seen: set[tuple[int, ...]] = set()
        self._ambient: Axes = ()
        self._scanned = True

    @contextlib.contextmanager
    def caused_by(self, eqn: Equation) -> Iterator[None]:
        """Records an equation, while open, as the cause of what is tied and frozen."""
        before = self.why
        self.why = Reason(eqn.primitive.name, eqn)
        yield
        self.why = before

    @contextlib.contextmanager
    def inside_loop(self, axes: Axes | None) -> Iterator[None]:
        """Adds axes, while open, to every logged array: each iteration has its own.

        Args:
          axes: the iterations' axis of a scan; None for other loops and branches, whose
            values do not exist for every iteration.
        """
        before = self._ambient, self._scanned
        self._ambient = (*self._ambient, *(axes or ()))
        self._scanned = self._scanned and axes is not None
        yield
        self._ambient, self._scanned = before

    def keep(self, values: Mapping[ValueId, Value]) -> None:
        """Keeps the values of the body of a scan, stacked over its iterations."""
        around = self._ambient
        for number, value in values.items() if self._scanned else ():
            axes = (*around, *value.axes)
            stacked = dataclasses.replace(value, axes=axes, loops=len(around))
            self.within[number] = stacked

    def constant(self, array: Any) -> Value:
        """Returns a constant's value: the axes along which it varies are frozen."""
        shape = np.shape(array)
        why = Reason("a constant of the function", self.why.equation)
        axes = []
        for number, size in enumerate(shape):
            uniform = size == 1 or (0 not in shape and _uniform(array, number))
            axes.append(Node(size, frozen=None if uniform else why))
        return Value(tuple(axes), data=False, numbers=constant_numbers(array))

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
        """Records that the equation contracts two axes.

        Args:
          left: an axis of the equation's first operand.
          right: an axis of its second operand.
        """
        first, second = self.operands[:2]
        eqn = self.why.equation
        pair = Contraction(left, right, first.data, second.data, eqn)
        self.contractions.append(pair)
        if self._tie_contractions:
            self.tie(left, right)

    def log(self, axes: Iterable[Node], *, ambient: bool = True) -> None:
        """Records that axes were seen in one array.

        Args:
          axes: the array's axes, or the axes that stay aligned in an operation.
          ambient: whether the array exists separately in each iteration of the loops
            around it.
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
        """Records the depth of the parameters in these values at their first use."""
        for value in values:
            for path in value.origins:
                self.depths.setdefault(path, depth)

    def count_unknown(self, name: str) -> None:
        """Counts an occurrence of a primitive without a rule."""
        self.unknown[name] = self.unknown.get(name, 0) + 1


def _uniform(array: Any, axis: int) -> bool:
    """Returns whether a constant is the same everywhere along an axis."""
    dtype = getattr(array, "dtype", np.dtype(float))
    if not (dtype == np.bool_ or jnp.issubdtype(dtype, np.number)):
        return False
    values = np.asarray(array)
    return bool(np.all(values == np.take(values, [0], axis)))
