"""Refining and tying axes: split, cut and unify.

A split turns an axis into a product, a cut turns it into a concatenation; both happen
in place.
"""

import itertools
import math
from collections import deque
from collections.abc import Sequence

from zipjax.tracing.nodes import (
    Cat,
    Choice,
    Fam,
    Node,
    Piece,
    Prod,
    Reason,
    atoms,
    concatenation,
    factors,
    find,
    freeze,
    product,
    restrict,
    segments,
)


def collapse(node: Node, why: Reason) -> None:
    """Turns a family into one axis by tying its members."""
    form = find(node).form
    assert isinstance(form, Fam)
    first, *rest = form.members
    for member in rest:
        unify(first, member, why)
    root, target = find(node), find(first)
    if root is not target:
        root.form, root.link = None, target


def halves(node: Node, outer: int) -> tuple[Node, Node] | None:
    """Splits an axis into (outer, inner); returns None if its structure forbids it."""
    parts = regroup(factors(node), [outer, node.size // outer])
    return None if parts is None else (parts[0], parts[1])


def regroup(nodes: Sequence[Node], sizes: Sequence[int]) -> list[Node] | None:
    """Returns the product of ``nodes`` as a product of axes of the given ``sizes``.

    Returns:
      One node for each size, or None if some factor cannot be split that way.
    """
    queue = deque(factor for node in nodes for factor in factors(node))
    out = []
    for size in sizes:
        taken, missing = [], size
        while missing > 1:
            head = _next(queue)
            if missing % head.size == 0:
                taken.append(head)
                missing //= head.size
                continue
            pair = _split(head, missing) if head.size % missing == 0 else None
            if pair is None:
                return None
            taken.append(pair[0])
            queue.extendleft(reversed(factors(pair[1])))
            missing = 1
        out.append(product(taken))
    return out


def _next(queue: deque[Node]) -> Node:
    """Takes the next factor, which may have been refined since it was queued."""
    first, *rest = factors(queue.popleft())
    queue.extendleft(reversed(rest))
    return first


def _split(node: Node, outer: int) -> tuple[Node, Node] | None:
    """Splits an axis that is not a product in place; None if that is impossible."""
    inner = node.size // outer
    match node.form:
        case None:
            pair = (part_of(node, outer), part_of(node, inner))
        case Cat(parts):
            if any(part.size % inner for part in parts):
                return None
            split = [halves(part, part.size // inner) for part in parts]
            pairs = [pair for pair in split if pair is not None]
            if len(pairs) < len(split):
                return None
            index = Node(outer, Cat(tuple(a for a, _ in pairs)))
            pair = (index, _family(index, [b for _, b in pairs]))
        case Fam(index, sizes, members):
            split = [halves(member, outer) for member in members]
            pairs = [pair for pair in split if pair is not None]
            if len(pairs) < len(split):
                return None
            first = Node(outer, Fam(index, sizes, tuple(a for a, _ in pairs)))
            pair = (first, Node(inner, Fam(index, sizes, tuple(b for _, b in pairs))))
        case Prod():
            raise TypeError("a product is split through its factors")
    node.form, node.events = Prod(pair), []
    return pair


def _family(index: Node, members: Sequence[Node]) -> Node:
    assert isinstance(index.form, Cat)
    sizes = tuple(part.size for part in index.form.parts)
    return Node(members[0].size, Fam(index, sizes, tuple(members)))


def part_of(atom: Node, size: int) -> Node:
    """Returns a new atom that takes the place of a part of another one."""
    return Node(size, frozen=atom.frozen, events=list(atom.events))


def cut(node: Node, points: Sequence[int]) -> list[Piece] | None:
    """Cuts an axis at positions strictly inside it, in place.

    Returns:
      The pieces, or None if the structure forbids the cut.
    """
    node = find(node)
    if not points:
        return [Piece(node)]
    match node.form:
        case None:
            ends = zip([0, *points], [*points, node.size], strict=True)
            node.form = Cat(tuple(part_of(node, b - a) for a, b in ends))
            node.events = []
            return cut(node, points)
        case Cat(parts):
            return _cut_parts(node, parts, points)
        case Prod():
            return _cut_product(factors(node), points)
        case Fam(index, sizes, members):
            cuts = [cut(member, points) for member in members]
            found = [pieces for pieces in cuts if pieces is not None]
            if len(found) < len(cuts):
                return None
            rows = zip(*found, strict=True)
            new = [tuple(piece.node for piece in row) for row in rows]
            parts = tuple(Node(m[0].size, Fam(index, sizes, m)) for m in new)
            node.form = Cat(parts)
            return cut(node, points)


def _cut_parts(
    node: Node, parts: tuple[Node, ...], points: Sequence[int]
) -> list[Piece] | None:
    """Cuts a concatenation: a piece is a part, a piece of one, or a run of these."""
    small: list[tuple[int, Piece]] = []
    start = 0
    for part in parts:
        inside = [p - start for p in points if start < p < start + part.size]
        pieces = cut(part, inside)
        if pieces is None:
            return None
        position = start
        for piece in pieces:
            small.append((position, piece))
            position += piece.node.size
        start += part.size
    out = []
    for low, high in zip([0, *points], [*points, node.size], strict=True):
        run = [piece for position, piece in small if low <= position < high]
        merged = concatenation([piece.node for piece in run])
        own = Choice(node, low, high, merged)
        out.append(Piece(merged, (own, *(run[0].choices if len(run) == 1 else ()))))
    return out


def _cut_product(parts: list[Node], points: Sequence[int]) -> list[Piece] | None:
    """Cuts the outermost factor of a product."""
    first, *rest = parts
    inner = math.prod(factor.size for factor in rest)
    if any(point % inner for point in points):
        return None
    pieces = cut(first, [point // inner for point in points])
    if pieces is None:
        return None
    return [
        Piece(product([p.node, *(restrict(f, p.choices) for f in rest)]), p.choices)
        for p in pieces
    ]


def boundaries(node: Node) -> list[int]:
    """Returns the positions where the parts of a concatenation meet."""
    form = find(node).form
    if not isinstance(form, Cat):
        return []
    return list(itertools.accumulate(part.size for part in form.parts))[:-1]


def unify(a: Node, b: Node, why: Reason) -> None:
    """Ties two axes: from now on they have one order of units.

    Args:
      a: an axis.
      b: an axis of the same size.
      why: the reason to record if they cannot be aligned and both freeze.
    """
    a, b = find(a), find(b)
    if a is b or a.size == b.size == 1:
        return
    if a.size != b.size:
        _freeze_both(a, b, why)
    elif a.form is None:
        _bind(a, b, why)
    elif b.form is None:
        _bind(b, a, why)
    elif isinstance(a.form, Prod) or isinstance(b.form, Prod):
        _unify_products(a, b, why)
    elif isinstance(a.form, Cat) and isinstance(b.form, Cat):
        _unify_concatenations(a, b, why)
    elif isinstance(a.form, Fam) and isinstance(b.form, Fam):
        _unify_families(a, b, why)
    else:
        collapse(a if isinstance(a.form, Fam) else b, why)
        unify(a, b, why)


def _freeze_both(a: Node, b: Node, why: Reason) -> None:
    freeze(a, why)
    freeze(b, why)


def _bind(atom: Node, other: Node, why: Reason) -> None:
    if other.form is not None and _occurs(atom, other):
        if isinstance(other.form, Fam):
            collapse(other, why)
            unify(atom, other, why)
        else:
            _freeze_both(atom, other, why)
        return
    atom.link = other
    for part in atoms(other):
        part.events.extend(atom.events)
    atom.events = []
    if atom.frozen is not None:
        freeze(other, atom.frozen)


def _occurs(atom: Node, node: Node) -> bool:
    node = find(node)
    if node is atom:
        return True
    match node.form:
        case Prod(children) | Cat(children):
            return any(_occurs(atom, child) for child in children)
        case Fam(index, _, members):
            return any(_occurs(atom, child) for child in (index, *members))
    return False


def _unify_products(a: Node, b: Node, why: Reason) -> None:
    left, right = deque(factors(a)), deque(factors(b))
    while left:
        x, y = _next(left), _next(right)
        if x.size != y.size:
            (big, small), queue = ((x, y), left) if x.size > y.size else ((y, x), right)
            pair = _split(big, small.size) if big.size % small.size == 0 else None
            if pair is None:
                _freeze_both(a, b, why)
                return
            x, y = pair[0], small
            queue.extendleft(reversed(factors(pair[1])))
        unify(x, y, why)


def _unify_concatenations(a: Node, b: Node, why: Reason) -> None:
    points = sorted({*boundaries(a), *boundaries(b)})
    left, right = cut(a, points), cut(b, points)
    if left is None or right is None:
        _freeze_both(a, b, why)
        return
    for x, y in zip(left, right, strict=True):
        unify(x.node, y.node, why)
    a, b = find(a), find(b)
    finer, coarser = (a, b) if len(boundaries(a)) >= len(boundaries(b)) else (b, a)
    if finer is not coarser and finer.form is not None:
        coarser.form, coarser.link = None, finer


def _unify_families(a: Node, b: Node, why: Reason) -> None:
    assert isinstance(a.form, Fam)
    assert isinstance(b.form, Fam)
    left, right = a.form, b.form
    unify(left.index, right.index, why)
    for x in segments(left):
        for y in segments(right):
            if max(x.low, y.low) < min(x.high, y.high):
                unify(x.member, y.member, why)
