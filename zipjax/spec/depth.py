"""Depth: how many layers lead to a parameter, and where a partial zip may stop.

A *layer* is a parameter with two axes or more, or one that consumes a perm. Depth is
the number of layers on the longest path from the network's input, which is how the
ZipIt! paper counts when it writes "13/20": parallel branches, such as a residual
shortcut, do not add to it.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zipjax.spec.entries import (
    Entries,
    Role,
    axes_of,
    entry_from_json,
    entry_names,
    entry_size,
    entry_to_json,
)
from zipjax.types import Shape


@dataclasses.dataclass(frozen=True)
class Boundary:
    """A value of the traced function through which everything after it reads.

    A trunk may end there although its perms do not: its units are copied back to those
    of each model, which goes on with its own parameters.

    Attributes:
      entries: of the value's axes.
      trunk: paths of the parameters that are read before the value.
      shared: those of them that are read after it, too, such as tied embeddings: merged
        in the trunk, and each model's own in its head.
    """

    entries: Entries
    trunk: frozenset[str]
    shared: frozenset[str] = frozenset()

    def fits(self, shape: Shape, sizes: Mapping[str, int]) -> bool:
        """Returns whether a value of this shape may be the boundary.

        Args:
          shape: the shape.
          sizes: number of units of every perm.
        """
        if len(shape) != len(self.entries):
            return False
        wanted = [entry_size(entry, sizes) for entry in self.entries]
        return all(n in (None, size) for n, size in zip(wanted, shape, strict=True))


@dataclasses.dataclass(frozen=True)
class Cut:
    """A place where a partial zip may stop.

    A cut is *closed* if no perm is produced on both sides: the heads read merged units.
    One inside a residual stream lies at a boundary of the traced function: the heads
    read their own model's units.

    Attributes:
      number: 1 for the cut nearest to the input.
      name: that of ``perm``; of a cut inside a stream "after PATH", where PATH is the
        kernel of the last zipped layer.
      perm: the deepest zipped perm, which the heads read.
      layers: number of zipped layers.
      perms: all zipped perms, in depth order.
      boundary: where the trunk ends inside a stream; None for a closed cut.
    """

    number: int
    name: str
    perm: str
    layers: int
    perms: tuple[str, ...]
    boundary: Boundary | None = dataclasses.field(default=None, repr=False)


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


def find_cuts(
    entries: Mapping[str, Entries],
    depths: Mapping[str, int],
    boundaries: Sequence[Boundary] = (),
) -> tuple[Cut, ...]:
    """Returns all cuts, from the input to the output.

    Args:
      entries: every parameter's entries, in the network's order.
      depths: every parameter's depth.
      boundaries: the values inside streams at which the trunk may end.
    """
    spans = perm_spans(entries, depths)
    order = sorted(spans, key=lambda perm: spans[perm][1])
    inside = [_cut_at(boundary, entries, depths, order) for boundary in boundaries]
    # Where both are, what the closed cut shares is more.
    cuts = sorted([*inside, *_closed_cuts(spans, order)], key=lambda cut: cut.layers)
    return tuple(
        dataclasses.replace(cut, number=k) for k, cut in enumerate(cuts, start=1)
    )


def last_layer(paths: Iterable[str], depths: Mapping[str, int]) -> int:
    """Returns the depth of the deepest of some parameters."""
    return max((depths[path] for path in paths), default=0)


def boundaries_to_json(boundaries: Iterable[Boundary]) -> list[Any]:
    """Returns boundaries as JSON data: of each, what its trunk has in addition.

    Args:
      boundaries: one after the other.
    """
    data, known = [], frozenset[str]()
    for boundary in boundaries:
        entries = [entry_to_json(entry) for entry in boundary.entries]
        more = sorted(boundary.trunk - known)
        data.append(
            {"entries": entries, "trunk": more, "shared": sorted(boundary.shared)}
        )
        known = boundary.trunk
    return data


def boundaries_from_json(data: Iterable[Any]) -> tuple[Boundary, ...]:
    """Reads what :func:`boundaries_to_json` returned."""
    found, trunk = [], frozenset[str]()
    for row in data:
        trunk |= set(row["trunk"])
        entries = tuple(map(entry_from_json, row["entries"]))
        found.append(Boundary(entries, trunk, frozenset(row["shared"])))
    return tuple(found)


def _closed_cuts(
    spans: Mapping[str, tuple[int, int]], order: Sequence[str]
) -> list[Cut]:
    """Returns the closed cuts: no perm is produced both before and after one.

    A residual stream is thus zipped together with every block that writes to it.
    """
    cuts = []
    for depth in sorted({high for _, high in spans.values()}):
        if not any(low <= depth < high for low, high in spans.values()):
            perms = tuple(perm for perm in order if spans[perm][1] <= depth)
            cuts.append(Cut(0, perms[-1], perms[-1], depth, perms))
    return cuts


def _cut_at(
    boundary: Boundary,
    entries: Mapping[str, Entries],
    depths: Mapping[str, int],
    order: Sequence[str],
) -> Cut:
    """Returns the cut inside a stream at a boundary; ``order`` is that of the perms."""
    layers = last_layer(boundary.trunk, depths)
    rows = {path: row for path, row in entries.items() if path in boundary.trunk}
    produced = {perm for row in rows.values() for perm in _perms(row, "out")}
    deepest = [path for path in rows if depths[path] == layers]
    kernels = [path for path in deepest if len(rows[path]) > 1]
    return Cut(
        number=0,
        name=f"after {(kernels or deepest)[-1]}",
        perm=entry_names(boundary.entries)[0],
        layers=layers,
        perms=tuple(perm for perm in order if perm in produced),
        boundary=boundary,
    )


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
