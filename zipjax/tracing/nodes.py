"""Axes as trees that are refined and tied while a program is read.

Every axis of every value is a :class:`Node`. A node is an atom (units in one order), or
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
      form: None for an atom.
      link: the node that this one was tied to, if it is no longer the representative.
      frozen: why the units of an atom cannot be permuted; None where they can.
      events: of an atom, the numbers of the arrays that it was seen in.
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
    """Returns the concatenation that selects the members; None if it was lost."""
    node = find(family.index)
    while isinstance(node.form, Prod):
        # Its parts were all split by one inner size: the outer factor still selects.
        node = find(node.form.children[0])
    scale = sum(family.sizes) // node.size
    whole = all(size % scale == 0 for size in family.sizes)
    return node if isinstance(node.form, Cat) and whole else None


def freeze(node: Node, why: Reason) -> None:
    """Freezes all atoms of an axis."""
    for atom in atoms(node):
        if atom.frozen is None:
            atom.frozen = why


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
    for member, low, high in segments(family):
        overlap = min(high, choice.high) - max(low, choice.low)
        if overlap > 0:
            sizes.append(overlap)
            members.append(member)
    if len(members) == 1:
        return find(members[0])
    form = Fam(choice.node, tuple(sizes), tuple(members))
    return Node(members[0].size, form)


def segments(family: Fam) -> Iterator[tuple[Node, int, int]]:
    """Yields members with where the index selects them."""
    index = index_of(family)
    scale = 1 if index is None else sum(family.sizes) // index.size
    sizes = [size // scale for size in family.sizes]
    ends = itertools.accumulate(sizes)
    for member, size, end in zip(family.members, sizes, ends, strict=True):
        yield member, end - size, end


def member_at(family: Fam, position: int) -> Node:
    """Returns the member for one element of the index."""
    return next(m for m, low, high in segments(family) if low <= position < high)
