"""The linear layers of a traced network, with the operations that follow each of them.

A layer is the product of a value that depends on the data and a kernel, followed by
affine operations with constants: a bias, a BatchNorm in evaluation mode. Its *value* is
the result of the last of these. If a residual sum comes next, the sum and its other
operand, the *rest*, are recorded too.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from zipjax.program.dependence import data_values, multiplied_parameters
from zipjax.program.parameter_views import (
    ParameterView,
    Part,
    parameter_views,
    replaced_part,
    selected_part,
)
from zipjax.program.program import (
    Equation,
    Literal,
    Program,
    ValueId,
    values_of,
)
from zipjax.types import AnyArray, Leaves

_AFFINE = {"add", "sub", "mul", "div"}
_SUMS = {"add", "add_any"}


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer of a program.

    Attributes:
      kernel: path of its kernel.
      part: the part of the kernel that the layer reads, if it is one of a stack.
      bias: path of the last parameter that is added, or None.
      bias_part: the part of the bias.
      number: position of its product among the program's equations.
      shape: the shape of the kernel, or of its part.
      axes: for every axis of the product's operand, the number of that shape's axis:
        the kernel may be transposed before the product.
      equation: that product, a ``dot_general`` or ``conv_general_dilated``.
      side: number of the product's operand that is the kernel, 0 or 1.
      value: the result of the affine operations after the product.
      rest: the other operand of the residual sum that reads ``value``, unless a later
        layer is part of it.
      total: that sum; ``value`` itself if there is none.
      relu: whether ``total`` is read by a ReLU and by nothing else.
    """

    kernel: str
    part: Part
    bias: str | None
    bias_part: Part
    number: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    equation: Equation
    side: int
    value: ValueId
    rest: ValueId | None
    total: ValueId
    relu: bool

    @property
    def name(self) -> str:
        """The kernel's path, and the part of a stack: "w[0]"."""
        return self.kernel + "".join(f"[{position}]" for _, position in self.part)

    def own_kernel(self, leaves: Leaves) -> AnyArray:
        """Returns the kernel, or the part of it that the layer reads, on the host."""
        return selected_part(np.asarray(leaves[self.kernel]), self.part)

    def own_bias(self, leaves: Leaves) -> AnyArray:
        """Returns the bias, on the host; there must be one."""
        return selected_part(np.asarray(leaves[self.bias or ""]), self.bias_part)

    def replaced(
        self, leaves: Leaves, kernel: AnyArray, bias: AnyArray | None
    ) -> dict[str, Any]:
        """Returns parameters with another kernel and, if there is one, bias."""
        new = {
            **leaves,
            self.kernel: replaced_part(leaves[self.kernel], self.part, kernel),
        }
        if self.bias is not None and bias is not None:
            new[self.bias] = replaced_part(leaves[self.bias], self.bias_part, bias)
        return new

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
    """Returns the layers of a program by name, in program order.

    A layer has the name of its kernel, "w", or of a part of a stack of kernels, "w[0]".
    Kernels that are used more than once, that are computed from parameters, or whose
    produced axes are transposed among themselves, grouped convolutions, and products
    with batch axes are left out.
    """
    return _Finder(program).layers()


def left_kernels(program: Program, layers: Iterable[Layer]) -> list[str]:
    """Returns the kernels of a program that these layers do not cover, by path."""
    covered: dict[str, int] = {}
    for layer in layers:
        size = math.prod(layer.shape)
        covered[layer.kernel] = covered.get(layer.kernel, 0) + size
    sizes = {
        path: math.prod(program.avals[program.params[path]].shape)
        for path in multiplied_parameters(program)
    }
    return [path for path, size in sizes.items() if covered.get(path, 0) < size]


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
            for operand in set(values_of(eqn.operands)):
                self._readers.setdefault(operand, []).append(eqn)
        self._products = self._find_products()
        self._find_latest()

    def layers(self) -> dict[str, Layer]:
        return {
            layer.name: layer
            for number, (eqn, side, view) in self._products.items()
            if self._is_read_once(view) and self._data(eqn)
            for layer in [self._layer(number, eqn, side, view)]
        }

    @functools.cached_property
    def _reads(self) -> dict[str, list[Part]]:
        """The parts of each parameter that equations read, in any layout."""
        found: dict[str, list[Part]] = {}
        for eqn in self._program.equations:
            if not set(eqn.results) & set(self._views):
                for operand in set(values_of(eqn.operands)) & set(self._views):
                    view = self._views[operand]
                    found.setdefault(view.path, []).append(view.part)
        return found

    def _is_read_once(self, view: ParameterView) -> bool:
        reads = self._reads[view.path]
        axes = {tuple(axis for axis, _ in part) for part in reads}
        return len(axes) == 1 and reads.count(view.part) == 1

    def _find_products(self) -> dict[int, tuple[Equation, int, ParameterView]]:
        found = {}
        for number, eqn in enumerate(self._program.equations):
            for side, operand in enumerate(eqn.operands[:2]):
                view = (
                    None if isinstance(operand, Literal) else self._views.get(operand)
                )
                if view is not None and self._is_layer(eqn, side, view):
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
        return [x for x in values_of(eqn.operands) if x in self._latest]

    def _layer(
        self,
        number: int,
        eqn: Equation,
        side: int,
        view: ParameterView,
    ) -> Layer:
        value, bias = eqn.results[0], None
        while (step := self._affine(value)) is not None:
            value = step.results[0]
            bias = self._added(step) or bias
        rest, total = self._residual(value, number)
        own = self._axes(view)
        return Layer(
            kernel=view.path,
            part=view.part,
            bias=None if bias is None else bias.path,
            bias_part=() if bias is None else bias.part,
            number=number,
            shape=tuple(self._shape(view.path)[k] for k in own),
            axes=tuple(own.index(axis) for axis in view.axes if axis is not None),
            equation=eqn,
            side=side,
            value=value,
            rest=rest,
            total=total,
            relu=self._is_relu(total),
        )

    def _shape(self, path: str) -> tuple[int, ...]:
        return tuple(self._program.avals[self._program.params[path]].shape)

    def _axes(self, view: ParameterView) -> list[int]:
        """Returns the numbers of the parameter's axes that its part still has."""
        selected = dict(view.part)
        return [k for k in range(len(self._shape(view.path))) if k not in selected]

    def _is_layer(self, eqn: Equation, side: int, view: ParameterView) -> bool:
        axes = [axis for axis in view.axes if axis is not None]
        if len(axes) < max(len(view.axes), len(self._axes(view))):
            return False
        name, params = eqn.primitive.name, eqn.params
        if name == "conv_general_dilated":
            groups = params["feature_group_count"] * params["batch_group_count"]
            return side == 1 and groups == 1
        if name != "dot_general" or any(params["dimension_numbers"][1]):
            return False
        consumed = params["dimension_numbers"][0][side]
        produced = [axis for k, axis in enumerate(axes) if k not in consumed]
        return all(a < b for a, b in itertools.pairwise(produced))

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

    def _added(self, eqn: Equation) -> ParameterView | None:
        """Returns the parameter with one axis that an equation adds."""
        if eqn.primitive.name not in _SUMS:
            return None
        views = [self._views[x] for x in values_of(eqn.operands) if x in self._views]
        if len(views) != 1 or not self._is_read_once(views[0]):
            return None
        sizes, own = self._shape(views[0].path), self._axes(views[0])
        wide = [k for k in own if sizes[k] > 1] or own
        return views[0] if len(wide) == 1 and wide[0] in views[0].axes else None

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


def places(program: Program, layers: Iterable[Layer]) -> list[tuple[ValueId, ...]]:
    """Returns what must be known to go on from each of a program's places.

    These are its start and, for each layer, the places before its product and after its
    ``total``, in order. What is read at a place or later has to be known there; values
    that do not depend on the program's inputs are left out: they can be computed from
    the parameters.

    Args:
      program: the traced function.
      layers: its layers, in program order.
    """
    producers = {
        result: number
        for number, eqn in enumerate(program.equations)
        for result in eqn.results
    }
    data, done = data_values(program), set[int]()
    found = [program.inputs]
    for layer in layers:
        done.update(range(layer.number))
        found.append(_live_values(program, data, done))
        stack = [layer.total]
        while stack:
            number = producers.get(stack.pop())
            if number is not None and number not in done:
                done.add(number)
                stack.extend(values_of(program.equations[number].operands))
        found.append(_live_values(program, data, done))
    return found


def _live_values(
    program: Program, data: set[ValueId], done: set[int]
) -> tuple[ValueId, ...]:
    """Returns the values that are known once equations are done, and read later."""
    known, later = set(program.inputs), set(values_of(program.outputs))
    for number, eqn in enumerate(program.equations):
        if number in done:
            known.update(eqn.results)
        else:
            later.update(values_of(eqn.operands))
    return tuple(sorted(known & later & data))
