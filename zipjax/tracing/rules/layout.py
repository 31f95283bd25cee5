"""Rules of primitives that only move elements, or repeat them."""

from collections.abc import Sequence

from zipjax.program.program import Equation
from zipjax.tracing.ledger import Ledger
from zipjax.tracing.nesting import Axes
from zipjax.tracing.nodes import Node, concatenation, product
from zipjax.tracing.refining import regroup
from zipjax.types import Shape, Shapes


def reshape(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Splits and merges axes, major first, in blocks of equal size."""
    (axes, *_), (shape,) = operands, shapes
    if eqn.params.get("dimensions") is not None:
        ledger.freeze(axes)
        return [tuple(ledger.frozen(size) for size in shape)]
    if 0 in shape:  # Without elements there is nothing to tie.
        return [tuple(Node(size) for size in shape)]
    result: list[Node] = []
    for block, sizes in _blocks(axes, shape):
        nodes = regroup(block, sizes)
        if nodes is None:
            ledger.freeze(block)
            nodes = [ledger.frozen(size) for size in sizes]
        result.extend(nodes)
    return [tuple(result)]


def _blocks(axes: Sequence[Node], shape: Shape) -> list[tuple[list[Node], list[int]]]:
    """Returns the shortest runs of axes with the runs of sizes that they become.

    For example, a reshape from [2, 3, 4] to [6, 2, 2] turns [2, 3] into [6], and [4]
    into [2, 2].
    """
    blocks: list[tuple[list[Node], list[int]]] = []
    old, new = list(axes), list(shape)
    while old or new:
        block, sizes = old[:1], new[:1]
        del old[:1], new[:1]
        left = block[0].size if block else 1
        right = sizes[0] if sizes else 1
        while left != right:
            if left < right:
                block.append(old.pop(0))
                left *= block[-1].size
            else:
                sizes.append(new.pop(0))
                right *= sizes[-1]
        blocks.append((block, sizes))
    return blocks


def broadcast_in_dim(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Moves axes among new ones, along which all elements are equal."""
    (axes, *_), (shape,) = operands, shapes
    result = [Node(size) for size in shape]
    for node, place in zip(axes, eqn.params["broadcast_dimensions"], strict=True):
        if node.size == shape[place]:
            result[place] = node
    return [tuple(result)]


def tile(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Repeats whole axes: the result is the product of the copies and the axis."""
    repeats = eqn.params["reps"]
    axes = operands[0]
    pairs = zip(repeats, axes, strict=True)
    return [tuple(n if r == 1 else product([Node(r), n]) for r, n in pairs)]


def transpose(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Reorders axes."""
    return [tuple(operands[0][k] for k in eqn.params["permutation"])]


def squeeze(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Drops axes of size 1."""
    dropped = eqn.params["dimensions"]
    return [tuple(n for k, n in enumerate(operands[0]) if k not in dropped)]


def rev(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Reverses axes, which fixes their order."""
    ledger.freeze(operands[0][k] for k in eqn.params["dimensions"])
    return [operands[0]]


def concatenate(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Concatenates along one axis and ties the others."""
    along = eqn.params["dimension"]
    first, *rest = operands
    for axes in rest:
        for number, node in enumerate(axes):
            if number != along:
                ledger.tie(first[number], node)
    result = list(first)
    result[along] = concatenation([axes[along] for axes in operands])
    return [tuple(result)]


def stack(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Ties arrays and concatenates them along a new axis."""
    first, *rest = operands
    for axes in rest:
        for a, b in zip(first, axes, strict=True):
            ledger.tie(a, b)
    new = concatenation([Node(1) for _ in operands])
    along = eqn.params["axis"]
    return [(*first[:along], new, *first[along:])]


def pad(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Pads with one value: a concatenation with axes of equal elements."""
    result = []
    config = eqn.params["padding_config"]
    for node, (low, high, interior), size in zip(
        operands[0], config, shapes[0], strict=True
    ):
        if interior or low < 0 or high < 0:
            ledger.freeze([node])
            result.append(ledger.frozen(size))
        else:
            result.append(concatenation([Node(int(low)), node, Node(int(high))]))
    return [tuple(result)]


def iota(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Counts along one axis; the elements of all others are equal."""
    counted = eqn.params["dimension"]
    sizes = enumerate(shapes[0])
    return [tuple(ledger.frozen(n) if k == counted else Node(n) for k, n in sizes)]


LAYOUT = {
    "reshape": reshape,
    "broadcast_in_dim": broadcast_in_dim,
    "tile": tile,
    "transpose": transpose,
    "squeeze": squeeze,
    "rev": rev,
    "concatenate": concatenate,
    "stack": stack,
    "pad": pad,
    "iota": iota,
}
