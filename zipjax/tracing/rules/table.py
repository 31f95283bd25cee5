"""The table of rules, by primitive.

A rule is ``rule(ledger, equation, operand_axes, result_shapes) -> result_axes``.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from zipjax.program.program import Equation
from zipjax.tracing.ledger import Ledger
from zipjax.tracing.nesting import Axes
from zipjax.tracing.rules.elementwise import ELEMENTWISE, elementwise, freeze_all
from zipjax.tracing.rules.indexing import INDEXING
from zipjax.tracing.rules.layout import LAYOUT
from zipjax.tracing.rules.mixing import MIXING
from zipjax.types import Shapes

Rule: TypeAlias = Callable[[Ledger, Equation, list[Axes], Shapes], Sequence[Axes]]

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
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Freezes everything that a primitive without a rule touches."""
    ledger.count_unknown(eqn.primitive.name)
    return freeze_all(ledger, operands, shapes)
