"""A JAX function as a flat list of primitive equations, and their evaluation.

Nested calls (jit, remat, custom derivatives) are inlined, and the bodies of loops are
programs of their own, so that every value of the forward pass has a number. Activations
are read by that number, so that models need no hooks.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex_core
import numpy as np

from zipjax.arguments import check_function
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

# Primitive -> the parameters that hold the bodies of a loop, or of a branch.
_BODIES = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
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
      bodies: what a loop repeats, or the branches of a choice, as programs without
        parameters. Their values are numbered before the equation's results.
      effects: whether it does more than compute results, as a callback does.
    """

    primitive: jex_core.Primitive
    operands: tuple[Operand, ...]
    results: tuple[ValueId, ...]
    params: Mapping[str, Any]
    source: Any
    call: Any = None
    bodies: tuple["Program", ...] = ()
    effects: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced function.

    Attributes:
      params: value number of every parameter, by path.
      inputs: value numbers of the function's other inputs, flattened.
      outputs: operands that the function returns, flattened.
      constants: arrays that the function closed over, by value number.
      equations: in an order in which they can be evaluated.
      avals: shape and dtype of every value, by value number; within a loop, of one
        iteration.
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

    def all_producers(self) -> dict[ValueId, Equation]:
        """Returns :meth:`producers`, and those of values within scans."""
        found = self.producers()
        for eqn in self.equations:
            if eqn.primitive.name == "scan":
                found |= eqn.bodies[0].all_producers()
        return found

    def scanned(self) -> dict[ValueId, Equation]:
        """Returns the scan of this program that each value within one belongs to.

        Values that exist once per iteration can be read. Within other loops, and in
        branches, they cannot.
        """
        return {
            value: eqn
            for eqn in self.equations
            if eqn.primitive.name == "scan"
            for value in _values_within(eqn.bodies[0])
        }


@dataclasses.dataclass(frozen=True)
class Derived:
    """A rule that computes a value from others, in place of the program's equation."""

    operands: tuple[ValueId, ...]
    function: Callable[..., Any]


def trace(apply_fn: ApplyFn, params: PyTree, *inputs: PyTree) -> Program:
    """Returns the program of ``apply_fn(params, *inputs)``; nothing is computed.

    Equations that do not lead to an output, and have no other effect, are left out.

    Args:
      apply_fn: the forward pass in evaluation mode.
      params: parameter pytree, of arrays or of ``jax.ShapeDtypeStruct``.
      *inputs: the other inputs, of either kind.

    Raises:
      ValueError: if the function raises an exception, which is the error's cause.
    """
    check_function("apply_fn", apply_fn)
    try:
        closed = jax.make_jaxpr(apply_fn)(params, *inputs)
    except CallError:
        raise
    except Exception as error:  # Whatever the user's function raises.
        raise CallError(_cannot_be_called(inputs, error)) from error
    program = _Flattener().program(closed)
    paths = list(path_leaves(params))
    numbers = program.inputs
    return dataclasses.replace(
        program,
        equations=_needed(program),
        params=dict(zip(paths, numbers[: len(paths)], strict=True)),
        inputs=numbers[len(paths) :],
    )


class CallError(ValueError):
    """The user's function cannot be called; a function around it adds nothing."""


def _cannot_be_called(inputs: Sequence[PyTree], error: Exception) -> str:
    """Says what was tried, what happened and what may be the reason."""
    shapes = [np.shape(x) for x in jax.tree_util.tree_leaves(inputs)]
    what = [line.rstrip(".") for line in str(error).strip().splitlines()[:1]]
    several = (
        f" A batch that is a tuple or list is {len(inputs)} inputs: choose among them "
        "with inputs_of=, such as lambda batch: batch[0]."
        if len(inputs) > 1
        else ""
    )
    return (
        f"apply_fn cannot be traced with these parameters and inputs of shapes "
        f"{shapes}: {': '.join([type(error).__name__, *what])}. Check that it is in "
        "evaluation mode, where it needs no PRNG keys (for dropout), and that inputs "
        f"have the widths that it was made for.{several}"
    )


def compute_values(
    program: Program,
    leaves: Mapping[str, Any],
    inputs: Sequence[Any],
    wanted: Iterable[Operand],
    derived: Mapping[ValueId, Derived] | None = None,
) -> list[Any]:
    """Returns values of a program; only the equations that they need are run.

    A value within a scan is returned for all iterations, along a new first axis.

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
    wanted = list(wanted)
    numbers = values_of(wanted)
    producers, scanned = program.producers(), program.scanned()
    within = {number: scanned[number] for number in numbers if number in scanned}
    producers |= within
    # A stack rather than recursion: networks are deeper than Python's call stack.
    stack = numbers
    while stack:
        number = stack[-1]
        if number in known:
            stack.pop()
            continue
        rule = rules.get(number) or producers[number]
        needed = values_of(rule.operands)
        missing = [x for x in needed if x not in known]
        if missing:
            stack.extend(missing)
        elif isinstance(rule, Derived):
            known[number] = rule.function(*(known[x] for x in needed))
        else:
            inside = [value for value, eqn in within.items() if eqn is rule]
            known.update(_results(rule, known, inside))
    return [_value(operand, known) for operand in wanted]


def compute_from(
    program: Program, known: Mapping[ValueId, Any], wanted: Iterable[Operand]
) -> list[Any]:
    """Returns values of a program, given others by number.

    Args:
      program: the traced function.
      known: inputs, parameters, and values that are not to be computed. What the wanted
        values do not need may be missing.
      wanted: the values to return.
    """
    given = dataclasses.replace(program, params={}, inputs=tuple(known))
    return compute_values(given, {}, list(known.values()), wanted)


def values_of(operands: Iterable[Operand]) -> list[ValueId]:
    """Returns those of an equation's operands that are values."""
    return [x for x in operands if not isinstance(x, Literal)]


def own_rule(program: Program, value: ValueId) -> Derived:
    """Returns the program's own rule for a value, for use within a replacement."""
    eqn = program.producers()[value]
    operands = tuple(dict.fromkeys(values_of(eqn.operands)))
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

    def program(self, closed: jex_core.ClosedJaxpr) -> Program:
        """Returns a jaxpr as a program without parameters."""
        numbers = [self.new_value(var.aval) for var in closed.jaxpr.invars]
        constants = [self.new_value(var.aval) for var in closed.jaxpr.constvars]
        around = self.equations, self.constants
        self.equations, self.constants = [], {}
        outputs = self.inline(closed.jaxpr, constants, numbers)
        found = Program(
            params={},
            inputs=tuple(numbers),
            outputs=tuple(outputs),
            constants=dict(zip(constants, closed.consts, strict=True)) | self.constants,
            equations=tuple(self.equations),
            avals=self.avals,
        )
        self.equations, self.constants = around
        return found

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
                bodies = tuple(self.program(body) for body in _bodies(eqn))
                results = [self.new_value(var.aval) for var in eqn.outvars]
                self.equations.append(
                    Equation(
                        eqn.primitive,
                        tuple(inputs),
                        tuple(results),
                        eqn.params,
                        eqn.source_info,
                        self._call,
                        bodies,
                        bool(eqn.effects),
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


def _needed(program: Program) -> tuple[Equation, ...]:
    """Returns the equations that lead to an output or have another effect."""
    wanted = set(values_of(program.outputs))
    kept = []
    for eqn in reversed(program.equations):
        if eqn.effects or wanted.intersection(eqn.results):
            kept.append(eqn)
            wanted.update(values_of(eqn.operands))
    return tuple(reversed(kept))


def _bodies(eqn: Any) -> list[jex_core.ClosedJaxpr]:
    found = [eqn.params[name] for name in _BODIES.get(eqn.primitive.name, ())]
    return [body for x in found for body in (x if isinstance(x, tuple) else (x,))]


def _values_within(body: Program) -> Iterator[ValueId]:
    """Yields the values of a scan's body, with those of scans inside it."""
    yield from body.inputs
    yield from body.constants
    for eqn in body.equations:
        yield from eqn.results
    yield from body.scanned()


def _results(
    eqn: Equation, known: Mapping[ValueId, Any], inside: Collection[ValueId]
) -> dict[ValueId, Any]:
    """Runs an equation; returns its results, and values inside it if it is a scan."""
    if not inside:
        return dict(zip(eqn.results, _run(eqn, known), strict=True))
    results, found = _run_scan(eqn, [_value(x, known) for x in eqn.operands], inside)
    return {
        **dict(zip(eqn.results, results, strict=True)),
        **dict(zip(inside, found, strict=True)),
    }


def _run_scan(
    eqn: Equation, operands: Sequence[Any], inside: Collection[ValueId]
) -> tuple[list[Any], list[Any]]:
    """Runs a scan that also stacks values of its body, by :func:`compute_values`."""
    (body,), params = eqn.bodies, eqn.params
    first, carried = params["num_consts"], params["num_carry"]
    last = first + carried

    def step(carry: Any, rows: Any) -> Any:
        given = [*operands[:first], *carry, *rows]
        values = compute_values(body, {}, given, [*body.outputs, *inside])
        count = len(body.outputs)
        return values[:carried], (values[carried:count], values[count:])

    carry, (stacked, found) = jax.lax.scan(
        step,
        list(operands[first:last]),
        list(operands[last:]),
        params["length"],
        params["reverse"],
    )
    return [*carry, *stacked], found


def _run(eqn: Equation, known: Mapping[ValueId, Any]) -> list[Any]:
    operands = [_value(operand, known) for operand in eqn.operands]
    params = eqn.primitive.get_bind_params(dict(eqn.params))
    out = eqn.primitive.bind(*operands, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _value(operand: Operand, known: Mapping[ValueId, Any]) -> Any:
    return operand.value if isinstance(operand, Literal) else known[operand]
