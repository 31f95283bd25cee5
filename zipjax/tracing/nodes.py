"""Axes as trees that are refined and tied while a program is read.

Every axis of every value is a :class:`Node`. A node is an *atom* (units in one order)
or has a form:

* ``Prod(children)``: a row-major product, such as (heads, head_dim) or (height, width,
  channels);
* ``Cat(parts)``: a concatenation, such as a fused QKV or a padded shortcut;
* ``Fam(index, sizes, members)``: a family: the axis is ``members[s]`` wherever another
  axis of the same array, ``index``, is in its segment s, of ``sizes[s]`` elements. An
  example is the last axis of a fused QKV kernel stored as (3, heads, head_dim): the
  index is the axis of size 3; the members for Q and K are tied, that for V is not.

Nodes are tied by union-find and refined in place, so that every value that uses a node
sees what later equations say about it. Tying and freezing only ever remove symmetry, so
either of them is a safe answer to doubt.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why an axis is frozen.

    Attributes:
      what: the primitive, or another cause.
      equation: the equation that froze it, which knows the user's line.
    """

    what: str
    equation: Any = None


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """An axis; see the module's docstring.

    Attributes:
      size: number of elements.
      form: how the axis is made of others; None for an atom.
      link: the node that this one was tied to, if it is no longer the representative.
      frozen: why an atom's units cannot be permuted; None if they can.
      events: the numbers of the arrays that an atom was seen in.
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
    """A family: ``members[s]`` wherever ``index`` is in its segment s."""

    index: Node
    sizes: tuple[int, ...]
    members: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A slice of the concatenation ``cat`` to ``[low, high)``, which is ``node``."""

    cat: Node
    low: int
    high: int
    node: Node


@dataclasses.dataclass(frozen=True)
class Piece:
    """A slice of an axis, and what it means for the families of other axes."""

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
    """Returns the innermost factors of a node, without those of size 1."""
    node = find(node)
    if node.size == 1:
        return []
    if isinstance(node.form, Prod):
        return [f for child in node.form.children for f in factors(child)]
    return [node]


def product(nodes: Iterable[Node]) -> Node:
    """Returns the row-major product of nodes."""
    children = tuple(f for node in nodes for f in factors(node))
    if len(children) == 1:
        return children[0]
    return Node(math.prod(child.size for child in children), Prod(children))


def concatenation(nodes: Sequence[Node]) -> Node:
    """Returns the concatenation of nodes."""
    parts = tuple(node for node in nodes if node.size > 0)
    if len(parts) == 1:
        return parts[0]
    return Node(sum(part.size for part in parts), Cat(parts))


def atoms(node: Node) -> Iterator[Node]:
    """Yields the atoms of an axis from left to right, those of size 1 included."""
    node = find(node)
    match node.form:
        case None:
            yield node
        case Prod(children) | Cat(children) | Fam(_, _, children):
            for child in children:
                yield from atoms(child)


def index_of(family: Fam) -> Node | None:
    """Returns the concatenation whose parts select the members; None if it was lost.

    If the index has become a product, its outermost factor still selects, provided that
    the inner factors divide every segment. For example, when an index of 3 * 8 elements
    with segments of sizes (8, 8, 8) is split into 3 x 8, the axis of size 3 selects.
    """
    index = find(family.index)
    while isinstance(index.form, Prod):
        index = find(index.form.children[0])
    inner = sum(family.sizes) // index.size
    divides = all(size % inner == 0 for size in family.sizes)
    return index if isinstance(index.form, Cat) and divides else None


def freeze(node: Node, why: Reason) -> None:
    """Freezes all atoms of an axis."""
    for atom in atoms(node):
        if atom.frozen is None:
            atom.frozen = why


def restrict(node: Node, choices: Iterable[Choice]) -> Node:
    """Returns what an axis becomes when another axis of its array is sliced."""
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
    """Returns what a family becomes when its index is sliced."""
    sizes, members = [], []
    for segment in segments(family):
        overlap = min(segment.high, choice.high) - max(segment.low, choice.low)
        if overlap > 0:
            sizes.append(overlap)
            members.append(segment.member)
    if len(members) == 1:
        return find(members[0])
    form = Fam(choice.node, tuple(sizes), tuple(members))
    return Node(members[0].size, form)


class Segment(NamedTuple):
    """A family's member, and the range ``[low, high)`` of the index that selects it."""

    member: Node
    low: int
    high: int


def segments(family: Fam) -> list[Segment]:
    """Returns the members in order, with their ranges along :func:`index_of`.

    For example, three members of sizes (8, 8, 8) have the ranges [0, 8), [8, 16) and
    [16, 24), or, once the index has been split into 3 x 8, [0, 1), [1, 2) and [2, 3).
    """
    index = index_of(family)
    inner = 1 if index is None else sum(family.sizes) // index.size
    sizes = [size // inner for size in family.sizes]
    ends = itertools.accumulate(sizes)
    return [
        Segment(member, end - size, end)
        for member, size, end in zip(family.members, sizes, ends, strict=True)
    ]


def member_at(family: Fam, position: int) -> Node:
    """Returns the member that one element of the index selects."""
    return next(s.member for s in segments(family) if s.low <= position < s.high)
