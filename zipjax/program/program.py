"""A JAX function as a flat list of primitive equations, and their evaluation.

Nested calls (jit, remat, custom derivatives) are inlined, so that every value of the
forward pass has a number. Activations are read by that number, so that models need no
hooks.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex_core

from zipjax.trees import path_leaves
from zipjax.types import ApplyFn, PyTree

# Primitive -> the parameter that holds the body of the call.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "composite": "jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
}

ValueId = int


@dataclasses.dataclass(frozen=True, eq=False)
class Literal:
    """A constant operand, such as the 0 of a ReLU."""

    value: Any


Operand = ValueId | Literal


@dataclasses.dataclass(frozen=True)
class Equation:
    """One primitive operation.

    Attributes:
      primitive: the operation.
      operands: the values and constants that it reads.
      results: numbers of the values that it computes.
      params: the primitive's parameters.
      source: JAX's record of the user's line.
      call: the same record of the outermost inlined call around it, if there is one. (A
        jitted function is traced once, so its lines are those of its first call.)
    """

    primitive: jex_core.Primitive
    operands: tuple[Operand, ...]
    results: tuple[ValueId, ...]
    params: Mapping[str, Any]
    source: Any
    call: Any = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced function.

    Attributes:
      params: value number of every parameter, by path.
      inputs: value numbers of the function's other inputs, flattened.
      outputs: operands that the function returns, flattened.
      constants: arrays that the function closed over, by value number.
      equations: in an order in which they can be evaluated.
      avals: shape and dtype of every value, by value number.
    """

    params: Mapping[str, ValueId]
    inputs: tuple[ValueId, ...]
    outputs: tuple[Operand, ...]
    constants: Mapping[ValueId, Any]
    equations: tuple[Equation, ...]
    avals: Sequence[Any]

    def producers(self) -> dict[ValueId, Equation]:
        """Returns the equation that computes each computed value."""
        return {result: eqn for eqn in self.equations for result in eqn.results}


@dataclasses.dataclass(frozen=True)
class Derived:
    """A rule that computes a value from others, in place of the program's equation."""

    operands: tuple[ValueId, ...]
    function: Callable[..., Any]


def trace(apply_fn: ApplyFn, params: PyTree, *inputs: PyTree) -> Program:
    """Returns the program of ``apply_fn(params, *inputs)``; nothing is computed.

    Args:
      apply_fn: the forward pass in evaluation mode.
      params: parameter pytree, of arrays or of ``jax.ShapeDtypeStruct``.
      *inputs: the other inputs, of either kind.
    """
    closed = jax.make_jaxpr(apply_fn)(params, *inputs)
    program = from_jaxpr(closed)
    paths = list(path_leaves(params))
    numbers = program.inputs
    return dataclasses.replace(
        program,
        params=dict(zip(paths, numbers[: len(paths)], strict=True)),
        inputs=numbers[len(paths) :],
    )


def from_jaxpr(closed: jex_core.ClosedJaxpr) -> Program:
    """Returns a jaxpr, such as a loop's body, as a program without parameters."""
    tracer = _Flattener()
    numbers = [tracer.new_value(var.aval) for var in closed.jaxpr.invars]
    constants = [tracer.new_value(var.aval) for var in closed.jaxpr.constvars]
    outputs = tracer.inline(closed.jaxpr, constants, numbers)
    return Program(
        params={},
        inputs=tuple(numbers),
        outputs=tuple(outputs),
        constants=dict(zip(constants, closed.consts, strict=True)) | tracer.constants,
        equations=tuple(tracer.equations),
        avals=tuple(tracer.avals),
    )


def compute_values(
    program: Program,
    leaves: Mapping[str, Any],
    inputs: Sequence[Any],
    wanted: Iterable[Operand],
    derived: Mapping[ValueId, Derived] | None = None,
) -> list[Any]:
    """Returns values of a program; only the equations that they need are run.

    Args:
      program: the traced function.
      leaves: parameters by path, of the traced shapes.
      inputs: the other inputs, flattened.
      wanted: the values to return.
      derived: rules that replace the program's equations, by value number.

    Returns:
      The wanted values, in order.
    """
    known: dict[ValueId, Any] = dict(program.constants)
    known.update({number: leaves[path] for path, number in program.params.items()})
    known.update(zip(program.inputs, inputs, strict=True))
    rules = derived or {}
    for number in rules:
        known.pop(number, None)
    producers = program.producers()
    wanted = list(wanted)
    # A stack rather than recursion: networks are deeper than Python's call stack.
    stack = [operand for operand in wanted if not isinstance(operand, Literal)]
    while stack:
        number = stack[-1]
        if number in known:
            stack.pop()
            continue
        rule = rules.get(number) or producers[number]
        needed = [x for x in rule.operands if not isinstance(x, Literal)]
        missing = [x for x in needed if x not in known]
        if missing:
            stack.extend(missing)
        elif isinstance(rule, Derived):
            known[number] = rule.function(*(known[x] for x in needed))
        else:
            known.update(zip(rule.results, _run(rule, known), strict=True))
    return [_value(operand, known) for operand in wanted]


def own_rule(program: Program, value: ValueId) -> Derived:
    """Returns the program's own rule for a value, for use within a replacement."""
    eqn = program.producers()[value]
    operands = tuple(dict.fromkeys(x for x in eqn.operands if isinstance(x, ValueId)))
    position = eqn.results.index(value)

    def function(*values: Any) -> Any:
        return _run(eqn, dict(zip(operands, values, strict=True)))[position]

    return Derived(operands, function)


class _Flattener:
    """Collects equations, with new value numbers, while it inlines calls."""

    def __init__(self) -> None:
        self.avals: list[Any] = []
        self.equations: list[Equation] = []
        self.constants: dict[ValueId, Any] = {}
        self._call: Any = None

    def new_value(self, aval: Any) -> ValueId:
        self.avals.append(aval)
        return len(self.avals) - 1

    def inline(
        self, jaxpr: Any, constants: Sequence[Operand], operands: Sequence[Operand]
    ) -> list[Operand]:
        """Adds a jaxpr's equations; returns its outputs as operands."""
        numbers: dict[Any, Operand] = {}
        numbers.update(zip(jaxpr.constvars, constants, strict=True))
        numbers.update(zip(jaxpr.invars, operands, strict=True))

        def read(atom: Any) -> Operand:
            if isinstance(atom, jex_core.Literal):
                return Literal(atom.val)
            return numbers[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            if eqn.primitive.name in _CALLS:
                results = self._inline_call(eqn, inputs)
            else:
                results = [self.new_value(var.aval) for var in eqn.outvars]
                self.equations.append(
                    Equation(
                        eqn.primitive,
                        tuple(inputs),
                        tuple(results),
                        eqn.params,
                        eqn.source_info,
                        self._call,
                    )
                )
            numbers.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _inline_call(self, eqn: Any, operands: list[Operand]) -> list[Operand]:
        body = eqn.params[_CALLS[eqn.primitive.name]]
        closed_over = getattr(body, "consts", ())
        jaxpr = getattr(body, "jaxpr", body)
        constants = [self.new_value(var.aval) for var in jaxpr.constvars]
        self.constants.update(zip(constants, closed_over, strict=True))
        outer, self._call = self._call, self._call or eqn.source_info
        results = self.inline(jaxpr, constants, operands)
        self._call = outer
        return results


def _run(eqn: Equation, known: Mapping[ValueId, Any]) -> list[Any]:
    operands = [_value(operand, known) for operand in eqn.operands]
    params = eqn.primitive.get_bind_params(dict(eqn.params))
    out = eqn.primitive.bind(*operands, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _value(operand: Operand, known: Mapping[ValueId, Any]) -> Any:
    return operand.value if isinstance(operand, Literal) else known[operand]
