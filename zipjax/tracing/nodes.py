"""Axes as trees that are refined and tied while a program is read.

Every axis of every value is a :class:`Node`. A node is a leaf (units in one order), or
it has a form:

* ``Prod(children)``: a row-major product, as (heads, head_dim) or (height, width, c);
* ``Cat(parts)``: a concatenation, as a fused QKV or a padded shortcut;
* ``Fam(index, sizes, members)``: a family: the axis is ``members[s]`` where another
  axis of the same array, ``index``, is in its segment s. So are the head dimensions of
  a fused QKV stored as (3, heads, head_dim): those of Q and K are one perm, that of V
  is another.

Nodes are tied by union-find and refined in place, so that every value that uses a node
sees what later equations say about it. Tying and freezing only ever take symmetry away,
so doubt is resolved by either of them.
"""

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why an axis is frozen.

    Attributes:
      what: the primitive, or another cause.
      equation: that of the primitive, which knows the user's line.
    """

    what: str
    equation: Any = None


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """An axis; see the module's docstring.

    Attributes:
      size: number of elements.
      form: None for a leaf.
      link: the node that this one was tied to, if it is no longer the representative.
      frozen: why the units of a leaf cannot be permuted; None where they can.
      events: of a leaf, the numbers of the arrays that it was seen in.
    """

    size: int
    form: "Prod | Cat | Fam | None" = None
    link: "Node | None" = None
    frozen: Reason | None = None
    events: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Prod:
    """A row-major product, outermost first."""

    children: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Cat:
    """A concatenation."""

    parts: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Fam:
    """``members[s]`` where ``index`` is in its segment s, of ``sizes[s]`` elements."""

    index: Node
    sizes: tuple[int, ...]
    members: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A slice went through ``cat``: ``[low, high)`` is left of it, and is ``node``."""

    cat: Node
    low: int
    high: int
    node: Node


@dataclasses.dataclass(frozen=True)
class Piece:
    """A slice of an axis and the choices that it made on the way."""

    node: Node
    choices: tuple[Choice, ...] = ()


def find(node: Node) -> Node:
    """Returns the representative of a node."""
    root = node
    while root.link is not None:
        root = root.link
    while node.link is not None:
        node.link, node = root, node.link
    return root


def factors(node: Node) -> list[Node]:
    """Lists the factors of a node that are no products, without those of size 1."""
    node = find(node)
    if node.size == 1:
        return []
    if isinstance(node.form, Prod):
        return [f for child in node.form.children for f in factors(child)]
    return [node]


def product(nodes: Iterable[Node]) -> Node:
    """Makes the row-major product of nodes."""
    children = tuple(f for node in nodes for f in factors(node))
    if len(children) == 1:
        return children[0]
    return Node(math.prod(child.size for child in children), Prod(children))


def concatenation(nodes: Sequence[Node]) -> Node:
    """Makes the concatenation of nodes."""
    parts = tuple(node for node in nodes if node.size > 0)
    if len(parts) == 1:
        return parts[0]
    return Node(sum(part.size for part in parts), Cat(parts))


def leaves(node: Node) -> Iterator[Node]:
    """Yields the leaves of an axis from left to right, those of size 1 included."""
    node = find(node)
    match node.form:
        case None:
            yield node
        case Prod(children) | Cat(children) | Fam(_, _, children):
            for child in children:
                yield from leaves(child)


def index_of(family: Fam) -> Node | None:
    """Returns the concatenation that selects the members; None if it was lost."""
    node = find(family.index)
    while isinstance(node.form, Prod):
        # Its parts were all split by one inner size: the outer factor still selects.
        node = find(node.form.children[0])
    scale = sum(family.sizes) // node.size
    whole = all(size % scale == 0 for size in family.sizes)
    return node if isinstance(node.form, Cat) and whole else None


def freeze(node: Node, why: Reason) -> None:
    """Freezes all leaves of an axis."""
    for leaf in leaves(node):
        if leaf.frozen is None:
            leaf.frozen = why


def restrict(node: Node, choices: Iterable[Choice]) -> Node:
    """Returns an axis of an array of which another axis was sliced."""
    for choice in choices:
        node = _restrict(node, choice)
    return node


def _restrict(node: Node, choice: Choice) -> Node:
    node = find(node)
    match node.form:
        case Prod(children):
            new = [_restrict(child, choice) for child in children]
            same = all(a is find(b) for a, b in zip(new, children, strict=True))
            return node if same else product(new)
        case Cat(children):
            new = [_restrict(child, choice) for child in children]
            same = all(a is find(b) for a, b in zip(new, children, strict=True))
            return node if same else Node(node.size, Cat(tuple(new)))
        case Fam() as family if index_of(family) is choice.cat:
            return _members_between(family, choice)
    return node


def _members_between(family: Fam, choice: Choice) -> Node:
    sizes, members = [], []
    for member, low, high in _segments(family):
        overlap = min(high, choice.high) - max(low, choice.low)
        if overlap > 0:
            sizes.append(overlap)
            members.append(member)
    if len(members) == 1:
        return find(members[0])
    form = Fam(choice.node, tuple(sizes), tuple(members))
    return Node(members[0].size, form)


def _segments(family: Fam) -> Iterator[tuple[Node, int, int]]:
    """Yields members with where the index selects them."""
    index = index_of(family)
    scale = 1 if index is None else sum(family.sizes) // index.size
    sizes = [size // scale for size in family.sizes]
    ends = itertools.accumulate(sizes)
    for member, size, end in zip(family.members, sizes, ends, strict=True):
        yield member, end - size, end


def member_at(family: Fam, position: int) -> Node:
    """Returns the member for one element of the index."""
    return next(m for m, low, high in _segments(family) if low <= position < high)


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
    """Splits an axis into (outer, inner); None if its structure forbids it."""
    parts = regroup(factors(node), [outer, node.size // outer])
    return None if parts is None else (parts[0], parts[1])


def regroup(nodes: Sequence[Node], sizes: Sequence[int]) -> list[Node] | None:
    """Reads the product of ``nodes`` as the product of axes of other ``sizes``.

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
    """Takes the next factor: what was done meanwhile may have refined it."""
    first, *rest = factors(queue.popleft())
    queue.extendleft(reversed(rest))
    return first


def _split(node: Node, outer: int) -> tuple[Node, Node] | None:
    """Splits an axis that is no product in place."""
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
            raise TypeError("a product has factors to split, not itself")
    node.form, node.events = Prod(pair), []
    return pair


def _family(index: Node, members: Sequence[Node]) -> Node:
    assert isinstance(index.form, Cat)
    sizes = tuple(part.size for part in index.form.parts)
    return Node(members[0].size, Fam(index, sizes, tuple(members)))


def part_of(leaf: Node, size: int) -> Node:
    """Makes a leaf that takes the place of a part of another one."""
    return Node(size, frozen=leaf.frozen, events=list(leaf.events))


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
    """Cuts a concatenation: pieces are parts, pieces of parts, or runs of these."""
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
    """Returns the positions at which the parts of a concatenation meet."""
    form = find(node).form
    if not isinstance(form, Cat):
        return []
    return list(itertools.accumulate(part.size for part in form.parts))[:-1]


def unify(a: Node, b: Node, why: Reason) -> None:
    """Ties two axes: they have one order of units from now on.

    Args:
      a: an axis.
      b: an axis of the same size.
      why: recorded where the two cannot be aligned and both freeze.
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


def _bind(leaf: Node, other: Node, why: Reason) -> None:
    if other.form is not None and _occurs(leaf, other):
        if isinstance(other.form, Fam):
            collapse(other, why)
            unify(leaf, other, why)
        else:
            _freeze_both(leaf, other, why)
        return
    leaf.link = other
    for part in leaves(other):
        part.events.extend(leaf.events)
    leaf.events = []
    if leaf.frozen is not None:
        freeze(other, leaf.frozen)


def _occurs(leaf: Node, node: Node) -> bool:
    node = find(node)
    if node is leaf:
        return True
    match node.form:
        case Prod(children) | Cat(children):
            return any(_occurs(leaf, child) for child in children)
        case Fam(index, _, members):
            return any(_occurs(leaf, child) for child in (index, *members))
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
    for x, x_low, x_high in list(_segments(left)):
        for y, y_low, y_high in list(_segments(right)):
            if max(x_low, y_low) < min(x_high, y_high):
                unify(x, y, why)
