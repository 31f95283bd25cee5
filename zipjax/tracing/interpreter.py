"""The interpreter: gives every value of a program its axes, equation by equation.

Most primitives have a rule that maps axes to axes (:mod:`zipjax.tracing.rules`). The
bodies of loops and branches are programs to be interpreted in turn. Those take and
return values, not axes alone: a value that does not depend on data when it enters the
body of a loop may depend on data when it leaves.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from zipjax.program.program import Equation, Literal, Operand, Program, ValueId
from zipjax.tracing.counters import (
    Numbers,
    carried_numbers,
    computed_numbers,
    row_numbers,
)
from zipjax.tracing.ledger import Ledger, Value
from zipjax.tracing.nesting import Axes
from zipjax.tracing.nodes import Node
from zipjax.tracing.rules.table import rule_of

# Primitives that are layers if one of their operands is made of parameters.
_LAYERS = {"dot_general", "conv_general_dilated", "gather"}


def interpret(
    ledger: Ledger, program: Program, values: Mapping[ValueId, Value]
) -> dict[ValueId, Value]:
    """Returns all values of a program, given those of its inputs and parameters.

    Args:
      ledger: records ties, frozen axes and contractions.
      program: the program.
      values: its inputs and parameters, by value number.
    """
    known = dict(values)
    for number, array in program.constants.items():
        known[number] = ledger.constant(array)
    for eqn in program.equations:
        with ledger.caused_by(eqn):
            operands = [_value(ledger, x, known) for x in eqn.operands]
            results = _results(ledger, program, eqn, operands)
            for number, value in zip(eqn.results, results, strict=True):
                known[number] = value
                ledger.log(value.axes)
    return known


def returned_values(
    ledger: Ledger, program: Program, known: Mapping[ValueId, Value]
) -> list[Value]:
    """Returns the values that a program returns."""
    return [_value(ledger, x, known) for x in program.outputs]


def _value(ledger: Ledger, operand: Operand, known: Mapping[ValueId, Value]) -> Value:
    if isinstance(operand, Literal):
        return ledger.constant(operand.value)
    return known[operand]


def _results(
    ledger: Ledger, program: Program, eqn: Equation, operands: list[Value]
) -> list[Value]:
    if eqn.primitive.name in _LOOPS:
        return _LOOPS[eqn.primitive.name](ledger, eqn, operands)
    ledger.operands = operands
    shapes = [tuple(program.avals[x].shape) for x in eqn.results]
    axes = rule_of(eqn)(ledger, eqn, [x.axes for x in operands], shapes)
    results = _with_depth(ledger, eqn, operands, axes)
    if len(results) != 1:
        return results
    aval = program.avals[eqn.results[0]]
    numbers = computed_numbers(eqn, [x.numbers for x in operands], aval)
    return [dataclasses.replace(results[0], numbers=numbers)]


def _with_depth(
    ledger: Ledger, eqn: Equation, operands: Sequence[Value], axes: Iterable[Axes]
) -> list[Value]:
    """Returns an equation's results; a layer's are one deeper than its operands."""
    data = [value.depth for value in operands if value.data]
    if not data:
        paths = dict.fromkeys(path for x in operands for path in x.origins)
        return [Value(tuple(nodes), False, tuple(paths)) for nodes in axes]
    layer = eqn.primitive.name in _LAYERS and any(x.origins for x in operands)
    depth = max(data) + layer
    ledger.use(operands, depth)
    return [Value(tuple(nodes), True, depth=depth) for nodes in axes]


def _interpret_body(
    ledger: Ledger,
    body: Program,
    operands: Sequence[Value],
    loop: Axes | None = None,
) -> list[Value]:
    """Returns the results of the body of a loop, or of a branch.

    Args:
      ledger: as for :func:`interpret`.
      body: the body.
      operands: the values of its inputs.
      loop: the axis of a scan's iterations: every value in the body exists once for
        each. None for other loops and branches.
    """
    given = dict(zip(body.inputs, operands, strict=True))
    with ledger.inside_loop(loop):
        known = interpret(ledger, body, given)
        ledger.keep(known)
        return returned_values(ledger, body, known)


def _scan(ledger: Ledger, eqn: Equation, operands: Sequence[Value]) -> list[Value]:
    """Ties what is carried in to what is carried out; freezes the iterations' axis."""
    (body,), params = eqn.bodies, eqn.params
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    loop = ledger.frozen(params["length"])
    for value in operands[last:]:
        ledger.tie(loop, value.axes[0])
    carry = [
        dataclasses.replace(value, numbers=_counted(eqn, k, operands[first + k], loop))
        for k, value in enumerate(_carried(ledger, operands[first:last], operands))
    ]
    rows = [
        dataclasses.replace(x, axes=x.axes[1:], numbers=row_numbers(x.numbers, loop))
        for x in operands[last:]
    ]
    with ledger.inside_loop((loop,)):
        for value in (*carry, *rows):
            ledger.log(value.axes)
    inside = [*operands[:first], *carry, *rows]
    results = _interpret_body(ledger, body, inside, (loop,))
    carried = _tie_carry(ledger, carry, results[: len(carry)])
    stacked = [
        dataclasses.replace(x, axes=(loop, *x.axes), numbers=None)
        for x in results[len(carry) :]
    ]
    return [*carried, *stacked]


def _counted(eqn: Equation, number: int, start: Value, loop: Node) -> Numbers | None:
    """Returns what a scan carries as number ``number``, if it counts iterations."""
    (body,), params = eqn.bodies, eqn.params
    return carried_numbers(
        body,
        body.inputs[params["num_consts"] + number],
        body.outputs[number],
        start.numbers,
        loop,
        reverse=params["reverse"],
    )


def _while(ledger: Ledger, eqn: Equation, operands: Sequence[Value]) -> list[Value]:
    """Ties what is carried in to what is carried out."""
    condition, body = eqn.bodies
    first = eqn.params["cond_nconsts"]
    last = first + eqn.params["body_nconsts"]
    # What is known of the first iteration is not known of the others.
    carry = [
        dataclasses.replace(value, numbers=None)
        for value in _carried(ledger, operands[last:], operands)
    ]
    _interpret_body(ledger, condition, [*operands[:first], *carry])
    results = _interpret_body(ledger, body, [*operands[first:last], *carry])
    return _tie_carry(ledger, carry, results)


def _cond(ledger: Ledger, eqn: Equation, operands: Sequence[Value]) -> list[Value]:
    """Ties the results of the branches."""
    choice, *inside = operands
    first, *others = [_interpret_body(ledger, b, inside) for b in eqn.bodies]
    for results in others:
        first = [_joined(ledger, a, b) for a, b in zip(first, results, strict=True)]
    return [dataclasses.replace(x, data=x.data or choice.data) for x in first]


_LOOPS: dict[str, Callable[[Ledger, Equation, Sequence[Value]], list[Value]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


def _carried(
    ledger: Ledger, carry: Sequence[Value], operands: Sequence[Value]
) -> list[Value]:
    """Returns the carry within the body: it depends on all data that the loop reads."""
    data = [value.depth for value in operands if value.data]
    if not data:
        return list(carry)
    ledger.use(carry, max(data))
    return [Value(value.axes, data=True, depth=max(data)) for value in carry]


def _tie_carry(
    ledger: Ledger, before: Sequence[Value], after: Sequence[Value]
) -> list[Value]:
    carried = [_joined(ledger, a, b) for a, b in zip(before, after, strict=True)]
    for value in carried:
        # The carry passes between iterations, so it is not one array for each of them.
        ledger.log(value.axes)
    return carried


def _joined(ledger: Ledger, a: Value, b: Value) -> Value:
    """Ties two values; returns one that may be either of them."""
    for x, y in zip(a.axes, b.axes, strict=True):
        ledger.tie(x, y)
    origins = dict.fromkeys((*a.origins, *b.origins))
    return Value(a.axes, a.data or b.data, tuple(origins), max(a.depth, b.depth))
