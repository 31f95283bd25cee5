"""The linear layers of a traced network, with the operations that follow each of them.

A layer is the product of a value that depends on the data and a kernel, followed by
affine operations with constants: a bias, a BatchNorm in evaluation mode. Its *value* is
the result of the last of these. If a residual sum comes next, the sum and its other
operand, the *rest*, are recorded too.
"""

import collections
import dataclasses
import itertools

import numpy as np

from zipjax.program.parameter_views import ParameterView, parameter_views
from zipjax.program.program import Equation, Literal, Operand, Program, ValueId

_AFFINE = {"add", "sub", "mul", "div"}
_SUMS = {"add", "add_any"}


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer of a program.

    Attributes:
      kernel: path of its kernel.
      bias: path of the last parameter that is added, or None.
      number: position of its product among the program's equations.
      shape: the kernel's shape.
      equation: that product, a ``dot_general`` or ``conv_general_dilated``.
      side: number of the product's operand that is the kernel, 0 or 1.
      value: the result of the affine operations after the product.
      rest: the other operand of the residual sum that reads ``value``, unless a later
        layer is part of it.
      total: that sum; ``value`` itself if there is none.
      relu: whether ``total`` is read by a ReLU and by nothing else.
    """

    kernel: str
    bias: str | None
    number: int
    shape: tuple[int, ...]
    equation: Equation
    side: int
    value: ValueId
    rest: ValueId | None
    total: ValueId
    relu: bool

    @property
    def rank(self) -> int:
        """Number of the kernel's axes."""
        return len(self.shape)

    @property
    def inputs(self) -> ValueId:
        """The value that is multiplied by the kernel."""
        value = self.equation.operands[1 - self.side]
        if isinstance(value, Literal):
            raise TypeError("a layer's input must be a value, not a constant")
        return value


def find_layers(program: Program) -> dict[str, Layer]:
    """Returns the layers of a program by the paths of their kernels, in program order.

    Kernels that are used more than once or in another layout, grouped convolutions, and
    products with batch axes are left out.
    """
    return _Finder(program).layers()


class _Finder:
    """Finds the layers of one program.

    It knows every value's readers and, for values that depend on data, the position of
    the latest layer that they depend on (-1 if there is none).
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._views = parameter_views(program)
        self._readers: dict[ValueId, list[Equation]] = {}
        self._latest = dict.fromkeys(program.inputs, -1)
        for eqn in program.equations:
            for operand in set(_values(eqn.operands)):
                self._readers.setdefault(operand, []).append(eqn)
        self._products = self._find_products()
        self._find_latest()

    def layers(self) -> dict[str, Layer]:
        uses = self._uses()
        return {
            view.path: self._layer(number, eqn, side, view.path, uses)
            for number, (eqn, side, view) in self._products.items()
            if uses[view.path] == 1 and self._data(eqn)
        }

    def _uses(self) -> collections.Counter[str]:
        """Counts the equations that read each parameter, in any layout."""
        return collections.Counter(
            self._views[operand].path
            for eqn in self._program.equations
            for operand in set(_values(eqn.operands)) & set(self._views)
            if not set(eqn.results) & set(self._views)
        )

    def _find_products(self) -> dict[int, tuple[Equation, int, ParameterView]]:
        found = {}
        for number, eqn in enumerate(self._program.equations):
            for side, operand in enumerate(eqn.operands[:2]):
                view = (
                    None if isinstance(operand, Literal) else self._views.get(operand)
                )
                if view is not None and _is_layer(eqn, side, view):
                    found[number] = eqn, side, view
        return found

    def _find_latest(self) -> None:
        """Records the latest layer that each data value depends on."""
        for number, eqn in enumerate(self._program.equations):
            sources = [self._latest[x] for x in self._data(eqn)]
            if sources:
                here = number if number in self._products else -1
                latest = max(*sources, here)
                self._latest.update(dict.fromkeys(eqn.results, latest))

    def _data(self, eqn: Equation) -> list[ValueId]:
        return [x for x in _values(eqn.operands) if x in self._latest]

    def _layer(
        self,
        number: int,
        eqn: Equation,
        side: int,
        kernel: str,
        uses: collections.Counter[str],
    ) -> Layer:
        value, bias = eqn.results[0], None
        while (step := self._affine(value)) is not None:
            value = step.results[0]
            bias = self._added(step, uses) or bias
        rest, total = self._residual(value, number)
        shape = tuple(self._program.avals[self._program.params[kernel]].shape)
        relu = self._is_relu(total)
        return Layer(kernel, bias, number, shape, eqn, side, value, rest, total, relu)

    def _only_reader(self, value: ValueId) -> Equation | None:
        readers = self._readers.get(value, [])
        return readers[0] if len(readers) == 1 else None

    def _affine(self, value: ValueId) -> Equation | None:
        """Returns a value's only reader if that adds to, scales or casts the value."""
        eqn = self._only_reader(value)
        if eqn is None or not self._same_shape(eqn, value):
            return None
        if eqn.primitive.name == "convert_element_type":
            return eqn
        alone = self._data(eqn) == [value] and len(eqn.operands) == 2
        if eqn.primitive.name not in _AFFINE or not alone:
            return None
        return None if eqn.primitive.name == "div" and eqn.operands[1] == value else eqn

    def _same_shape(self, eqn: Equation, value: ValueId) -> bool:
        avals = self._program.avals
        return avals[eqn.results[0]].shape == avals[value].shape

    def _added(self, eqn: Equation, uses: collections.Counter[str]) -> str | None:
        """Returns the path of a parameter with one axis that an equation adds."""
        if eqn.primitive.name not in _SUMS:
            return None
        views = [self._views[x] for x in _values(eqn.operands) if x in self._views]
        axes = [axis for view in views for axis in view.axes if axis is not None]
        single = len(views) == 1 and axes == [0] and uses[views[0].path] == 1
        return views[0].path if single else None

    def _residual(self, value: ValueId, number: int) -> tuple[ValueId | None, ValueId]:
        eqn = self._only_reader(value)
        if eqn is None or eqn.primitive.name not in _SUMS:
            return None, value
        others = [x for x in self._data(eqn) if x != value]
        if len(others) != 1 or not self._same_shape(eqn, others[0]):
            return None, value
        if self._latest[others[0]] > number:
            return None, value
        return others[0], eqn.results[0]

    def _is_relu(self, value: ValueId) -> bool:
        eqn = self._only_reader(value)
        if eqn is None or eqn.primitive.name != "max":
            return False
        constants = [x.value for x in eqn.operands if isinstance(x, Literal)]
        return len(constants) == 1 and not np.any(constants[0])


def _is_layer(eqn: Equation, side: int, view: ParameterView) -> bool:
    name, params = eqn.primitive.name, eqn.params
    if view.axes != tuple(range(len(view.axes))):
        return False
    if name == "conv_general_dilated":
        groups = params["feature_group_count"] * params["batch_group_count"]
        return side == 1 and groups == 1
    return name == "dot_general" and not any(params["dimension_numbers"][1])


def _values(operands: tuple[Operand, ...]) -> list[ValueId]:
    return [x for x in operands if not isinstance(x, Literal)]


def live_values(program: Program, number: int) -> tuple[ValueId, ...]:
    """Returns the values that are known before an equation and read there or later.

    Values that do not depend on the program's inputs are left out: they can be computed
    from the parameters.

    Args:
      program: the traced function.
      number: the equation's position.
    """
    known = set(program.inputs)
    for eqn in program.equations[:number]:
        if known.intersection(_values(eqn.operands)):
            known.update(eqn.results)
    later = itertools.chain.from_iterable(
        _values(eqn.operands) for eqn in program.equations[number:]
    )
    wanted = known.intersection([*later, *_values(program.outputs)])
    return tuple(sorted(wanted))
