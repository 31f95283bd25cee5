"""The rule table: what each primitive says about the axes of its operands.

A rule is ``rule(reader, equation, operand_axes, result_shapes) -> result_axes``.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from zipjax.program import Equation
from zipjax.tracing.elementwise import ELEMENTWISE, elementwise, freeze_all
from zipjax.tracing.groups import Axes
from zipjax.tracing.indexing import INDEXING
from zipjax.tracing.layout import LAYOUT
from zipjax.tracing.mixing import MIXING
from zipjax.tracing.reader import Reader

Shapes: TypeAlias = Sequence[tuple[int, ...]]
Rule: TypeAlias = Callable[[Reader, Equation, list[Axes], Shapes], Sequence[Axes]]

_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **LAYOUT,
    **INDEXING,
    **MIXING,
}


def rule_of(eqn: Equation) -> Rule:
    """Returns the rule of an equation's primitive."""
    return _RULES.get(eqn.primitive.name, _unknown)


def _unknown(
    reader: Reader, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Freezes everything that a primitive without a rule touches."""
    name = eqn.primitive.name
    reader.unknown[name] = reader.unknown.get(name, 0) + 1
    return freeze_all(reader, operands, shapes)
