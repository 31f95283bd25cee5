"""Rules of loops and branches: their bodies are programs that are read in turn.

They take and return values, not axes alone, for what depends on data may come out of
the body of a loop in another way than it went in.
"""

import dataclasses
from collections.abc import Sequence

from zipjax.program import Equation, from_jaxpr
from zipjax.tracing.reader import Reader, Value


def scan(reader: Reader, eqn: Equation, operands: Sequence[Value]) -> list[Value]:
    """Ties what is carried in and out; the axis of iterations is frozen."""
    params = eqn.params
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    loop = reader.frozen(params["length"])
    for value in operands[last:]:
        reader.tie(loop, value.axes[0])
    carry = _carried(reader, operands[first:last], operands)
    rows = [dataclasses.replace(x, axes=x.axes[1:]) for x in operands[last:]]
    inside = [*operands[:first], *carry, *rows]
    results = reader.read_body(from_jaxpr(params["jaxpr"]), inside, loop=(loop,))
    carried = _tie_carry(reader, carry, results[: len(carry)])
    stacked = [
        dataclasses.replace(x, axes=(loop, *x.axes)) for x in results[len(carry) :]
    ]
    return [*carried, *stacked]


def while_(reader: Reader, eqn: Equation, operands: Sequence[Value]) -> list[Value]:
    """Ties what is carried in and out."""
    params = eqn.params
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    carry = _carried(reader, operands[last:], operands)
    reader.read_body(from_jaxpr(params["cond_jaxpr"]), [*operands[:first], *carry])
    body = from_jaxpr(params["body_jaxpr"])
    results = reader.read_body(body, [*operands[first:last], *carry])
    return _tie_carry(reader, carry, results)


def cond(reader: Reader, eqn: Equation, operands: Sequence[Value]) -> list[Value]:
    """Ties the results of the branches."""
    choice, *inside = operands
    first, *others = [
        reader.read_body(from_jaxpr(branch), inside)
        for branch in eqn.params["branches"]
    ]
    for results in others:
        first = [_joined(reader, a, b) for a, b in zip(first, results, strict=True)]
    return [dataclasses.replace(x, data=x.data or choice.data) for x in first]


def _carried(
    reader: Reader, carry: Sequence[Value], operands: Sequence[Value]
) -> list[Value]:
    """Returns the carry as the body sees it: it depends on all that the loop reads."""
    data = [value.depth for value in operands if value.data]
    if not data:
        return list(carry)
    reader.use(carry, max(data))
    return [Value(value.axes, data=True, depth=max(data)) for value in carry]


def _tie_carry(
    reader: Reader, before: Sequence[Value], after: Sequence[Value]
) -> list[Value]:
    carried = [_joined(reader, a, b) for a, b in zip(before, after, strict=True)]
    for value in carried:
        # What is carried is the next iteration's too: not one array an iteration.
        reader.log(value.axes)
    return carried


def _joined(reader: Reader, a: Value, b: Value) -> Value:
    """Returns a value that is either of two."""
    for x, y in zip(a.axes, b.axes, strict=True):
        reader.tie(x, y)
    origins = dict.fromkeys((*a.origins, *b.origins))
    return Value(a.axes, a.data or b.data, tuple(origins), max(a.depth, b.depth))


LOOPS = {"scan": scan, "while": while_, "cond": cond}
