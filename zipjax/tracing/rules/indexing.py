"""Rules of slices, gathers and scatters."""

import itertools

from zipjax.program.program import Equation
from zipjax.tracing.counters import Numbers
from zipjax.tracing.ledger import Ledger
from zipjax.tracing.nesting import Axes, only_with
from zipjax.tracing.nodes import (
    Cat,
    Fam,
    Node,
    Piece,
    Prod,
    atoms,
    factors,
    find,
    restrict,
)
from zipjax.tracing.refining import cut, part_of
from zipjax.types import Shapes


def slice_(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Cuts axes and keeps one piece; a strided slice freezes."""
    params = eqn.params
    strides = params["strides"] or (1,) * len(operands[0])
    spans = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return [_sliced(ledger, operands[0], list(spans))]


def _sliced(ledger: Ledger, axes: Axes, spans: list[tuple[int, int, int]]) -> Axes:
    """Returns the axes of a slice, given its (start, stop, stride) along every axis."""
    for number, (start, stop, stride) in enumerate(spans):
        size = axes[number].size
        if (start, stop) == (0, size) and (stride == 1 or size == 1):
            continue
        if start == stop:
            axes = _replaced(axes, number, Piece(Node(0)))
            continue
        points = sorted({start, stop} - {0, size})
        pieces = _cut_axis(ledger, axes, number, points) if stride == 1 else None
        if pieces is None:
            ledger.freeze([axes[number]])
            left = -(-(stop - start) // stride)
            piece = Piece(ledger.frozen(left))
        else:
            piece = pieces[1 if start else 0]
        axes = _replaced(axes, number, piece)
    return axes


def _replaced(axes: Axes, number: int, piece: Piece) -> Axes:
    """Returns an array's axes after axis ``number`` was sliced to a piece."""
    restricted = [restrict(node, piece.choices) for node in axes]
    restricted[number] = piece.node
    return tuple(restricted)


def split(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Cuts one axis into pieces."""
    axes, number = operands[0], eqn.params["axis"]
    sizes = [int(size) for size in eqn.params["sizes"]]
    points = sorted({*itertools.accumulate(sizes)} - {0, axes[number].size})
    pieces = _cut_axis(ledger, axes, number, points)
    if pieces is None:
        ledger.freeze([axes[number]])
        pieces = [Piece(ledger.frozen(size)) for size in sizes if size]
    rest = iter(pieces)
    return [
        _replaced(axes, number, next(rest) if size else Piece(Node(0)))
        for size in sizes
    ]


def unstack(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Takes the elements of an axis apart."""
    axes, number = operands[0], eqn.params["axis"]
    pieces = _cut_axis(ledger, axes, number, list(range(1, axes[number].size)))
    if pieces is None:
        ledger.freeze([axes[number]])
        pieces = [Piece(Node(1)) for _ in shapes]
    parts = [_replaced(axes, number, piece) for piece in pieces]
    return [(*part[:number], *part[number + 1 :]) for part in parts]


def _cut_axis(
    ledger: Ledger, axes: Axes, number: int, points: list[int]
) -> list[Piece] | None:
    """Cuts an axis; the units of other axes may differ between its pieces from now on.

    For example, a fused QKV kernel ``[inputs, 3, head_dim]`` is cut along axis 1, at 1
    and 2. ``head_dim`` never occurs without that axis, so it becomes a family of three
    members, one per piece: the features of Q, K and V may be ordered differently.
    ``inputs`` occurs without it, in the value that is multiplied by the kernel, and
    stays an atom.

    Args:
      ledger: the reading so far.
      axes: the axes of the array that is sliced.
      number: the axis to cut.
      points: positions strictly inside it.

    Returns:
      The pieces, or None if the structure of the axis forbids the cut.
    """
    for atom, inside in _atoms_to_cut(axes[number], points):
        companions = _companions(ledger, atom)
        cut(atom, inside)
        if isinstance(atom.form, Cat):
            sizes = tuple(part.size for part in atom.form.parts)
            for node in companions:
                members = tuple(part_of(node, node.size) for _ in sizes)
                node.form, node.events = Fam(atom, sizes, members), []
    return cut(axes[number], points)


def _companions(ledger: Ledger, atom: Node) -> list[Node]:
    """Returns the atoms that never occur anywhere without ``atom``."""
    seen = [ledger.events[number] for number in dict.fromkeys(atom.events)]
    others = {find(node): None for axes in seen for x in axes for node in atoms(x)}
    return [
        node
        for node in others
        if node is not atom
        and node.frozen is None
        and node.size > 1
        and only_with(node, atom, ledger.events)
    ]


def _atoms_to_cut(node: Node, points: list[int]) -> list[tuple[Node, list[int]]]:
    """Returns the atoms that a cut goes through, with the positions in each of them."""
    node = find(node)
    if not points:
        return []
    match node.form:
        case None:
            return [(node, points)]
        case Prod():
            first = factors(node)[0]
            inner = node.size // first.size
            if any(point % inner for point in points):
                return []
            return _atoms_to_cut(first, [point // inner for point in points])
        case Cat(parts):
            found, start = [], 0
            for part in parts:
                inside = [p - start for p in points if start < p < start + part.size]
                found += _atoms_to_cut(part, inside)
                start += part.size
            return found
    return []


def dynamic_slice(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Slices at a position: a row per iteration, a known one, or else freezes."""
    (shape,) = shapes
    axes = tuple(
        _row(ledger, node, 1 + number) if size == 1 else node
        for number, (node, size) in enumerate(zip(operands[0], shape, strict=True))
    )
    starts = [_known_start(x.numbers) for x in ledger.operands[1:]]
    spans = [
        (0, size, 1)
        if node.size == size
        else None
        if start is None
        else _span(start, size, node.size)
        for node, size, start in zip(axes, shape, starts, strict=True)
    ]
    known = [span for span in spans if span is not None]
    if len(known) == len(spans):
        ledger.log(axes)
        return [_sliced(ledger, axes, known)]
    result = []
    for node, size in zip(axes, shape, strict=True):
        result.append(_whole_or_frozen(ledger, node, size))
    ledger.log(node for node, n in zip(axes, shape, strict=True) if node.size == n)
    return [tuple(result)]


def _row(ledger: Ledger, node: Node, number: int) -> Node:
    """Returns what one element of an axis becomes, at a position that is an operand.

    Where iteration i of a scan reads element i, the axis is that of the iterations.
    """
    numbers = ledger.operands[number].numbers
    if node.size == 1 or numbers is None or not numbers.counts(node):
        return node
    assert numbers.loop is not None
    ledger.tie(node, numbers.loop)
    return Node(1)


def _known_start(numbers: Numbers | None) -> int | None:
    if numbers is None or numbers.loop is not None:
        return None
    return int(numbers.values[0])


def _span(start: int, size: int, whole: int) -> tuple[int, int, int]:
    low = min(max(start, 0), whole - size)
    return low, low + size, 1


def _whole_or_frozen(ledger: Ledger, node: Node, size: int) -> Node:
    if node.size == size:
        return node
    ledger.freeze([node])
    return ledger.frozen(size)


def dynamic_update_slice(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Overwrites a part: ties whole axes, freezes the others."""
    axes, update = operands[:2]
    whole = []
    for node, new in zip(axes, update, strict=True):
        if node.size == new.size:
            ledger.tie(node, new)
            whole.append(node)
        else:
            ledger.freeze([node, new])
    ledger.log(whole)
    return [axes]


def gather(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Looks up windows: whole axes pass, axes that are indexed freeze."""
    axes, indices = operands
    numbers = eqn.params["dimension_numbers"]
    sizes, (shape,) = eqn.params["slice_sizes"], shapes
    if len(numbers.start_index_map) == 1:
        # One position alone may be that of an iteration's own element.
        (place,) = numbers.start_index_map
        if sizes[place] == 1:
            axes = _replaced(axes, place, Piece(_row(ledger, axes[place], 1)))
    ledger.freeze(indices[-1:])
    batch = _tie_batch(
        ledger,
        [axes[k] for k in numbers.operand_batching_dims],
        [indices[k] for k in numbers.start_indices_batching_dims],
    )
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    ledger.freeze(axes[k] for k in numbers.collapsed_slice_dims)
    window = [
        _whole_or_frozen(ledger, axes[k], sizes[k])
        for k in range(len(axes))
        if k not in dropped
    ]
    ledger.log([*batch, *window])
    inside, rest = iter(window), iter(indices[:-1])
    offsets = set(numbers.offset_dims)
    return [
        tuple(next(inside) if k in offsets else next(rest) for k in range(len(shape)))
    ]


def scatter(
    ledger: Ledger, eqn: Equation, operands: list[Axes], shapes: Shapes
) -> list[Axes]:
    """Writes windows: whole axes are tied, axes that are indexed freeze."""
    axes, indices, updates = operands
    numbers = eqn.params["dimension_numbers"]
    ledger.freeze(indices[-1:])
    batch = _tie_batch(
        ledger,
        [axes[k] for k in numbers.operand_batching_dims],
        [indices[k] for k in numbers.scatter_indices_batching_dims],
    )
    dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    ledger.freeze(axes[k] for k in numbers.inserted_window_dims)
    kept = [axes[k] for k in range(len(axes)) if k not in dropped]
    whole = []
    for node, number in zip(kept, numbers.update_window_dims, strict=True):
        if node.size == updates[number].size:
            ledger.tie(node, updates[number])
            whole.append(node)
        else:
            ledger.freeze([node, updates[number]])
    rest = [n for k, n in enumerate(updates) if k not in numbers.update_window_dims]
    for index, update in zip(indices[:-1], rest, strict=True):
        ledger.tie(index, update)
    positions = numbers.scatter_indices_batching_dims
    # XLA does not specify the order in which updates of one element are combined.
    ledger.freeze(n for k, n in enumerate(rest) if k not in positions)
    ledger.log([*batch, *whole])
    return [axes]


def _tie_batch(ledger: Ledger, left: list[Node], right: list[Node]) -> list[Node]:
    for a, b in zip(left, right, strict=True):
        ledger.tie(a, b)
    return left


INDEXING = {
    "slice": slice_,
    "split": split,
    "unstack": unstack,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    **dict.fromkeys(
        (
            "scatter",
            "scatter-add",
            "scatter-sub",
            "scatter-mul",
            "scatter-min",
            "scatter-max",
        ),
        scatter,
    ),
}
