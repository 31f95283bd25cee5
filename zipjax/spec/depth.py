"""Depth: how many layers lead to a parameter, and where a partial zip may stop.

A *layer* is a parameter with two axes or more, or one that consumes a perm. Depth is
the number of layers on the longest path from the network's input, which is how the
ZipIt! paper counts when it writes "13/20": parallel branches, such as a residual
shortcut, do not add to it.
"""

import dataclasses
from collections.abc import Mapping

from zipjax.spec.entries import Entries, Role, axes_of


@dataclasses.dataclass(frozen=True)
class Cut:
    """A place where a partial zip may stop.

    Attributes:
      number: 1 for the cut nearest to the input.
      perm: the deepest zipped perm, which the heads read.
      layers: number of zipped layers.
      perms: all zipped perms, in depth order.
    """

    number: int
    perm: str
    layers: int
    perms: tuple[str, ...]


def layer_depths(entries: Mapping[str, Entries]) -> dict[str, int]:
    """Returns every parameter's depth, in layers.

    A parameter that consumes perms is one layer deeper than their deepest producer. A
    kernel that consumes none reads the network's input, or units without a perm, and
    comes after every layer whose outputs have no perm. Biases and norms, which have one
    axis, have the depth at which the perm that they belong to was last produced.

    >>> from zipjax.spec.entries import Axis
    >>> h_out, h_in = Axis("h", "out"), Axis("h", "in")
    >>> layer_depths({"w1": (None, h_out), "b1": (h_out,), "w2": (h_in, None)})
    {'w1': 1, 'b1': 1, 'w2': 2}

    Args:
      entries: every parameter's entries, in the order in which the network uses them.
    """
    depths: dict[str, int] = {}
    produced_at: dict[str, int] = {}  # By perm: the deepest layer that writes to it.
    frontier = 0  # The deepest layer whose outputs have no perm.
    previous = 0  # The depth of the parameter before this one.
    for path, row in entries.items():
        consumed, produced = _read_perms(row), _perms(row, "out")
        written = max((produced_at.get(p, 0) for p in produced), default=0)
        if consumed:
            depth = 1 + max(produced_at.get(p, 0) for p in consumed)
        elif len(row) > 1:
            depth = max(written, 1 + frontier)
        else:
            depth = written or previous
        if not produced and (consumed or len(row) > 1):
            frontier = max(frontier, depth)
        produced_at.update({p: max(depth, produced_at.get(p, 0)) for p in produced})
        depths[path] = previous = depth
    return depths


def perm_spans(
    entries: Mapping[str, Entries], depths: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Returns the depths at which each perm is first and last produced.

    Args:
      entries: every parameter's entries, in the network's order.
      depths: every parameter's depth.
    """
    spans: dict[str, tuple[int, int]] = {}
    for path, depth in depths.items():
        for perm in _perms(entries[path], "out"):
            low, high = spans.get(perm, (depth, depth))
            spans[perm] = (min(low, depth), max(high, depth))
    return spans


def find_cuts(spans: Mapping[str, tuple[int, int]]) -> tuple[Cut, ...]:
    """Returns the closed cuts: no perm is produced both before and after one.

    A residual stream is thus zipped together with every block that writes to it.

    Args:
      spans: the depths at which each perm is first and last produced.
    """
    cuts = []
    for depth in sorted({high for _, high in spans.values()}):
        if not any(low <= depth < high for low, high in spans.values()):
            perms = sorted(
                (perm for perm, (_, high) in spans.items() if high <= depth),
                key=lambda perm: spans[perm][1],
            )
            cuts.append(Cut(len(cuts) + 1, perms[-1], depth, tuple(perms)))
    return tuple(cuts)


def _read_perms(entries: Entries) -> list[str]:
    """Returns the perms that a parameter reads.

    In a fused QKV kernel K consumes what Q produces, along the same axis: the kernel
    does not read that perm.
    """
    return [
        perm
        for entry in entries
        for perm in _perms((entry,), "in")
        if perm not in _perms((entry,), "out")
    ]


def _perms(entries: Entries, role: Role) -> list[str]:
    axes = (axis for entry in entries for axis in axes_of(entry))
    return list(dict.fromkeys(axis.perm for axis in axes if axis.role == role))
