"""Rules of products, convolutions, reductions and sorts."""

from typing import Any

from zipjax.program.program import Equation
from zipjax.tracing.ledger import Ledger
from zipjax.tracing.nesting import Axes
from zipjax.tracing.nodes import Node, product
from zipjax.tracing.refining import halves
from zipjax.tracing.rules.elementwise import freeze_all
from zipjax.types import Shapes


def dot_general(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Ties batch axes and contracted axes."""
    return _dot(ledger, operands[0], operands[1], eqn.params["dimension_numbers"])


def _dot(ledger: Ledger, left: Axes, right: Axes, numbers: Any) -> list[Axes]:
    contracted, batched = numbers
    batch = [left[k] for k in batched[0]]
    for a, b in zip(*batched, strict=True):
        ledger.tie(left[a], right[b])
    for a, b in zip(*contracted, strict=True):
        ledger.contract(left[a], right[b])
    used = [{*contracted[side], *batched[side]} for side in (0, 1)]
    kept = [
        [node for k, node in enumerate(axes) if k not in used[side]]
        for side, axes in enumerate((left, right))
    ]
    ledger.log([*batch, *(left[k] for k in contracted[0])])
    for nodes in kept:
        ledger.log([*batch, *nodes])
    return [(*batch, *kept[0], *kept[1])]


def ragged_dot(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Multiplies each run of rows by its own matrix: rows and matrices freeze."""
    left, right, sizes = operands[:3]
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batched = numbers.dot_dimension_numbers
    ragged, groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    if {*ragged} & {*contracted[0], *batched[0]}:
        return freeze_all(ledger, operands, shapes)
    ledger.freeze(sizes)
    ledger.freeze([*(left[k] for k in ragged), *(right[k] for k in groups)])
    (axes,) = _dot(ledger, left, right, numbers.dot_dimension_numbers)
    kept = [k for k in range(len(right)) if k not in {*contracted[1], *batched[1]}]
    first = len(axes) - len(kept)
    rest = (axes[first + i] for i, k in enumerate(kept) if k not in groups)
    return [(*axes[:first], *rest)]


def convolution(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Contracts the input channels; splits the channels of a grouped convolution."""
    image, kernel = operands[:2]
    layout, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        return freeze_all(ledger, operands, shapes)
    ledger.freeze(kernel[k] for k in layout.rhs_spec[2:])
    sample, channels = (image[k] for k in layout.lhs_spec[:2])
    features, inputs = (kernel[k] for k in layout.rhs_spec[:2])
    batch: list[Node] = []
    if groups > 1:
        split, split_features = halves(channels, groups), halves(features, groups)
        if split is None or split_features is None:
            return freeze_all(ledger, operands, shapes)
        (group, channels), (other, inner) = split, split_features
        ledger.tie(group, other)
        batch, features = [group], product([group, inner])
    ledger.contract(channels, inputs)
    ledger.log([*batch, channels])
    ledger.log([sample])
    ledger.log([features])
    result = {layout.out_spec[0]: sample, layout.out_spec[1]: features}
    for number, place in enumerate(layout.out_spec[2:]):
        result[place] = _moved(ledger, eqn, image, shapes[0][place], number)
    return [tuple(result[k] for k in range(len(result)))]


def _moved(ledger: Ledger, eqn: Equation, image: Axes, size: int, number: int) -> Node:
    """Returns a spatial axis of a convolution's result."""
    params = eqn.params
    node = image[params["dimension_numbers"].lhs_spec[2 + number]]
    pointwise = (
        size == node.size
        and params["window_strides"][number] == 1
        and tuple(params["padding"][number]) == (0, 0)
        and params["lhs_dilation"][number] == 1
    )
    if pointwise:
        return node
    ledger.freeze([node])
    return ledger.frozen(size)


def reduce(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Drops axes: sums, products and extrema do not depend on the order."""
    dropped = eqn.params["axes"]
    return [tuple(n for k, n in enumerate(operands[0]) if k not in dropped)]


def arg_extremum(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Drops axes and freezes them: the result is a position along them."""
    ledger.freeze(operands[0][k] for k in eqn.params["axes"])
    return reduce(ledger, eqn, operands, shapes)


def window(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Freezes the axes that a window slides along."""
    if len(shapes) > 1:
        return freeze_all(ledger, operands, shapes)
    params, result = eqn.params, []
    for number, (node, size) in enumerate(zip(operands[0], shapes[0], strict=True)):
        still = node.size == size and params["window_dimensions"][number] == 1
        result.append(node if still else ledger.frozen(size))
        if not still:
            ledger.freeze([node])
    kept = zip(operands[0], result, strict=True)
    ledger.log(node for node, after in kept if node is after)
    return [tuple(result)]


def fft(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Freezes the axes that are transformed: the last ones."""
    (axes,), (shape,) = operands, shapes
    kept = axes[: len(axes) - len(eqn.params["fft_lengths"])]
    ledger.freeze(axes[len(kept) :])
    ledger.log(kept)
    return [(*kept, *(ledger.frozen(size) for size in shape[len(kept) :]))]


def cumulate(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Freezes the axis along which a running sum is taken."""
    return _ordered(ledger, operands, eqn.params["axis"])


def sort(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Freezes the sorted axis; several operands are sorted together."""
    for axes in operands[1:]:
        for a, b in zip(operands[0], axes, strict=True):
            ledger.tie(a, b)
    return _ordered(ledger, operands, eqn.params["dimension"])


def _ordered(ledger: Ledger, operands: list[Axes], axis: int) -> list[Axes]:
    for axes in operands:
        ledger.freeze([axes[axis]])
    ledger.log(node for k, node in enumerate(operands[0]) if k != axis)
    return operands


def top_k(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Freezes the axis along which the largest elements are taken."""
    (axes,) = operands
    axis = eqn.params.get("axis", -1) % len(axes)
    ledger.freeze([axes[axis]])
    kept = [node for k, node in enumerate(axes) if k != axis]
    ledger.log(kept)
    return [
        tuple(ledger.frozen(s[k]) if k == axis else axes[k] for k in range(len(s)))
        for s in shapes
    ]


MIXING = {
    "dot_general": dot_general,
    "ragged_dot_general": ragged_dot,
    "conv_general_dilated": convolution,
    "fft": fft,
    **dict.fromkeys(
        (
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "reduce_xor",
        ),
        reduce,
    ),
    "argmax": arg_extremum,
    "argmin": arg_extremum,
    **dict.fromkeys(
        (
            "reduce_window_sum",
            "reduce_window_max",
            "reduce_window_min",
            "reduce_window",
        ),
        window,
    ),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), cumulate
    ),
    "sort": sort,
    "top_k": top_k,
}
