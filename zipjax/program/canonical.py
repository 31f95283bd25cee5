"""Parts of programs without names and numbers, so that equal parts are compiled once.

Value numbers, parameter paths and source lines tell the layers of a network apart even
where they compute the same. Here a part of a program is a function of a list of arrays,
and its key says all that decides what it computes.
"""

import dataclasses
import functools
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.extend.core as jex_core
import numpy as np

from zipjax.program.layers import Layer
from zipjax.program.program import (
    Equation,
    Literal,
    Operand,
    Program,
    ValueId,
    compute_values,
    values_of,
)
from zipjax.types import Leaves

T = TypeVar("T")

_NOTHING = Program({}, (), (), {}, (), ())


@dataclasses.dataclass(frozen=True)
class Keyed(Generic[T]):
    """A value that counts as equal to all others with its key: static data of a jit."""

    key: Hashable
    value: T = dataclasses.field(compare=False)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.key)


@dataclasses.dataclass(frozen=True)
class Fragment:
    """The part of a program that leads from known values to wanted ones.

    Attributes:
      program: that part, with everything that it reads as its inputs.
      sources: the numbers of these inputs in the whole program.
      paths: the paths of the parameters among them.
      constants: the arrays closed over among them.
    """

    program: Keyed[Program]
    sources: tuple[ValueId, ...]
    paths: Mapping[ValueId, str]
    constants: Mapping[ValueId, Any]

    def arguments(self, leaves: Leaves, values: Mapping[ValueId, Any]) -> list[Any]:
        """Returns the inputs of ``program``.

        Args:
          leaves: the parameters by path.
          values: the known values by number.
        """
        own = {number: leaves[path] for number, path in self.paths.items()}
        known = {**self.constants, **own, **values}
        return [known[number] for number in self.sources]


def fragment(
    program: Program, known: Collection[ValueId], wanted: Iterable[ValueId]
) -> Fragment:
    """Returns the part of a program that leads from known values to wanted ones.

    Args:
      program: the traced function.
      known: the values that need not be computed.
      wanted: the values to compute.
    """
    wanted, given = tuple(wanted), set(known)
    equations = _between(program, given, wanted)
    computed = {result for eqn in equations for result in eqn.results}
    read = (x for eqn in equations for x in values_of(eqn.operands))
    sources = tuple(dict.fromkeys(x for x in (*read, *wanted) if x not in computed))
    results = [result for eqn in equations for result in eqn.results]
    numbers = {old: new for new, old in enumerate([*sources, *results])}
    bare = Program(
        params={},
        inputs=tuple(range(len(sources))),
        outputs=tuple(numbers[x] for x in wanted),
        constants={},
        equations=tuple(_bare_equation(eqn, numbers) for eqn in equations),
        avals=[program.avals[x] for x in numbers],
    )
    free = set(sources) - given
    return Fragment(
        Keyed(_program_key(bare.inputs, equations, wanted, numbers), bare),
        sources,
        {x: path for path, x in program.params.items() if x in free},
        {x: value for x, value in program.constants.items() if x in free},
    )


@functools.partial(jax.jit, static_argnums=0)
def run_fragment(program: Keyed[Program], arguments: Sequence[Any]) -> list[Any]:
    """Returns the outputs of a fragment's program; compiled once for equal ones."""
    return compute_values(program.value, {}, arguments, program.value.outputs)


def keyed_layer(layer: Layer) -> Keyed[Layer]:
    """Returns a layer as a product of matrices, without its names and numbers."""
    nowhere = dataclasses.replace(
        layer.equation, operands=(), results=(), source=None, call=None
    )
    bare = dataclasses.replace(
        layer,
        kernel="",
        part=(),
        bias=None,
        bias_part=(),
        number=0,
        equation=nowhere,
        value=0,
        rest=None,
        total=0,
        relu=False,
    )
    eqn = layer.equation
    key = eqn.primitive, _frozen(eqn.params), layer.side, layer.shape, layer.axes
    return Keyed(key, bare)


def _between(
    program: Program, known: set[ValueId], wanted: Iterable[ValueId]
) -> list[Equation]:
    """Returns the equations that wanted values need, in program order."""
    needed = set(wanted) - known
    found = []
    for eqn in reversed(program.equations):
        if needed.intersection(eqn.results):
            found.append(eqn)
            needed.update(x for x in values_of(eqn.operands) if x not in known)
    return found[::-1]


def _bare_equation(eqn: Equation, numbers: Mapping[ValueId, ValueId]) -> Equation:
    operands = (x if isinstance(x, Literal) else numbers[x] for x in eqn.operands)
    results = (numbers[x] for x in eqn.results)
    # Values within loops are not read: bodies run as JAX's own parameters have them.
    return dataclasses.replace(
        eqn,
        operands=tuple(operands),
        results=tuple(results),
        source=None,
        call=None,
        bodies=(_NOTHING,) * len(eqn.bodies),
    )


def _program_key(
    inputs: Sequence[ValueId],
    equations: Iterable[Equation],
    outputs: Iterable[Operand],
    numbers: Mapping[ValueId, ValueId],
) -> Hashable:
    own = tuple(_equation_key(eqn, numbers) for eqn in equations)
    return len(inputs), own, tuple(_operand_key(x, numbers) for x in outputs)


def _equation_key(eqn: Equation, numbers: Mapping[ValueId, ValueId]) -> Hashable:
    params = eqn.params
    if eqn.bodies:
        params = {name: x for name, x in params.items() if not _is_body(x)}
    return (
        eqn.primitive,
        _frozen(params),
        tuple(map(_body_key, eqn.bodies)),
        tuple(_operand_key(x, numbers) for x in eqn.operands),
        tuple(numbers[x] for x in eqn.results),
    )


def _is_body(x: Any) -> bool:
    parts = x if isinstance(x, tuple) else (x,)
    return bool(parts) and all(isinstance(y, jex_core.ClosedJaxpr) for y in parts)


def _body_key(body: Program) -> Hashable:
    """Returns the key of what a loop repeats; constants closed over count as such."""
    results = (x for eqn in body.equations for x in eqn.results)
    order = enumerate([*body.inputs, *body.constants, *results])
    numbers = {old: new for new, old in order}
    own = _program_key(body.inputs, body.equations, body.outputs, numbers)
    return own, tuple(map(_Same, body.constants.values()))


def _operand_key(operand: Operand, numbers: Mapping[ValueId, ValueId]) -> Hashable:
    if not isinstance(operand, Literal):
        return numbers[operand]
    value = operand.value
    kind = (getattr(value, name, None) for name in ("dtype", "weak_type"))
    return "literal", *kind, _frozen(value)


@dataclasses.dataclass(frozen=True, eq=False)
class _Same:
    """An object that is equal to nothing but itself."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _frozen(x: Any) -> Hashable:
    """Returns a key of an equation's parameters; what has none is only itself."""
    if isinstance(x, Mapping):
        return tuple((name, _frozen(x[name])) for name in sorted(x))
    if isinstance(x, (tuple, list)):
        return type(x), tuple(map(_frozen, x))
    if isinstance(x, (float, complex, np.generic, np.ndarray)):
        # By their bits: 0 and -0 are equal, but not the same constant.
        array = np.asarray(x)
        return type(x), array.dtype, array.shape, array.tobytes()
    try:
        hash(x)
    except TypeError:
        return _Same(x)
    return type(x), x
