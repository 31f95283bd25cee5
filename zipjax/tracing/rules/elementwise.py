"""Rules of primitives that compute each element from those at the same position."""

from collections.abc import Sequence

from zipjax.program.program import Equation
from zipjax.tracing.ledger import Ledger
from zipjax.tracing.nesting import Axes
from zipjax.tracing.nodes import Node
from zipjax.types import Shapes

ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy cos
    cosh device_put digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt
    igamma igamma_grad_a igammac imag integer_pow is_finite layout_constraint le le_to
    lgamma log log1p logistic lt lt_to max min mul mulhi name ne neg nextafter not
    optimization_barrier or polygamma population_count pow pvary real reduce_precision
    regularized_incomplete_beta rem reshard round rsqrt select_n sharding_constraint
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    stop_gradient sub tan tanh xor zeros_like zeta
    """.split()  # noqa: SIM905
)


def freeze_all(ledger: Ledger, operands: Sequence[Axes], shapes: Shapes) -> list[Axes]:
    """Freezes all axes of an equation's operands and results."""
    for axes in operands:
        ledger.freeze(axes)
    return [tuple(ledger.frozen(size) for size in shape) for shape in shapes]


def elementwise(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> Sequence[Axes]:
    """Ties the operands axis by axis; axes of size 1 and scalars are broadcast."""
    if len(shapes) > 1:
        return operands
    (shape,) = shapes
    if any(axes and len(axes) != len(shape) for axes in operands):
        return freeze_all(ledger, operands, shapes)
    result = []
    for number, size in enumerate(shape):
        found = [
            axes[number] for axes in operands if axes and axes[number].size == size
        ]
        for other in found[1:]:
            ledger.tie(found[0], other)
        result.append(found[0] if found else Node(size))
    return [tuple(result)]
