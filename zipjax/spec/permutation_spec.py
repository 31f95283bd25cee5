"""The permutation spec: which parameter axes are tied to which permutation.

A *perm* is a set of axes whose units may be reordered together without changing the
network's function; :mod:`zipjax.entries` says what an axis may be tied to.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from zipjax.spec.depth import Cut, find_cuts, layer_depths, perm_spans
from zipjax.spec.entries import (
    Axis,
    Entries,
    Entry,
    Family,
    Role,
    decode,
    encode,
    entry_size,
    leaf_axes,
    leaf_blocks,
    leaf_indices,
    leaf_name,
)
from zipjax.spec.notes import Notes
from zipjax.trees import check_same_keys, path_leaves
from zipjax.types import Leaves, PyTree, Shape


@dataclasses.dataclass(frozen=True)
class Perm:
    """A perm's number of units and the perms that it is nested in.

    Attributes:
      size: number of units (of one group, where ``groups`` is not empty).
      groups: names of the perms and indices that enclose this one, outermost first:
        the units are permuted on their own for every value of these.
    """

    size: int
    groups: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class PermutationSpec:
    """A declarative map from every parameter axis to its entry.

    Equality and hash go by content, so that a spec may be static data of a jitted
    function.

    Attributes:
      axes: ``{path: (entry, ...)}``, one entry for every axis of every parameter, in
        the order in which the network uses the parameters: depth is counted from it.
      perms: ``{name: Perm}`` in depth order.
      depths: every parameter's depth in layers; empty where it follows from ``axes``.
      notes: what inference has to say about the spec.

    Raises:
      ValueError: if an axis names a perm that ``perms`` lacks or the reverse, or if a
        perm is never produced or never consumed.
    """

    axes: Mapping[str, Entries]
    perms: Mapping[str, Perm]
    depths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Notes | None = None

    def __post_init__(self) -> None:
        axes = {path: tuple(entries) for path, entries in self.axes.items()}
        object.__setattr__(self, "axes", MappingProxyType(axes))
        object.__setattr__(self, "perms", MappingProxyType(dict(self.perms)))
        self._check_perms()
        self._check_groups()
        object.__setattr__(self, "depths", MappingProxyType(dict(self.depths)))
        spans = self.spans
        ordered = sorted(spans, key=lambda name: spans[name][1])
        perms = {name: self.perms[name] for name in ordered}
        object.__setattr__(self, "perms", MappingProxyType(perms))

    @classmethod
    def declare(
        cls,
        axes: Mapping[str, Entries],
        params: PyTree,
        groups: Mapping[str, tuple[str, ...]] | None = None,
    ) -> "PermutationSpec":
        """Makes a spec from entries alone; the sizes come from the parameters.

        Args:
          axes: the entries of every parameter, in the network's order.
          params: parameter pytree, of arrays or of ``jax.ShapeDtypeStruct``.
          groups: for perms nested in others, the names of those.

        Raises:
          ValueError: for unknown paths, parameters without entries, tied axes of
            different size, and whatever the constructor refuses.
        """
        shapes = {path: tuple(x.shape) for path, x in path_leaves(params).items()}
        _check_paths(axes, shapes)
        sizes = _solve_sizes(axes, shapes)
        nesting = groups or {}
        perms = {name: Perm(n, nesting.get(name, ())) for name, n in sizes.items()}
        spec = cls(axes, perms)
        spec.validate(params)
        return spec

    @property
    def sizes(self) -> dict[str, int]:
        """Number of units of every perm, in depth order."""
        return {name: perm.size for name, perm in self.perms.items()}

    def group_sizes(self, perm: str) -> Shape:
        """Returns the sizes of what encloses a perm, outermost first."""
        counts = {**self.sizes, **self.indices}
        return tuple(counts[group] for group in self.perms[perm].groups)

    def units(self, perm: str) -> int:
        """Returns the number of units of a perm in all groups of a model."""
        return math.prod(self.group_sizes(perm)) * self.perms[perm].size

    @property
    def indices(self) -> dict[str, int]:
        """Number of elements of every index."""
        leaves = (
            leaf
            for entries in self.axes.values()
            for entry in entries
            for leaf in leaf_indices(entry)
        )
        return {leaf.name: leaf.size for leaf in leaves}

    @property
    def layers(self) -> int:
        """Number of layers on the longest path from the input to the output."""
        return max(self._layer_depths.values())

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """The depths at which each perm is first and last produced."""
        return perm_spans(self.axes, self.depths)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The places where a partial zip may stop, from the input to the output."""
        return find_cuts(self.axes, self.depths)

    def stop(self, stop_at: str | int | None) -> Cut:
        """Returns the cut at which a zip stops.

        Args:
          stop_at: a perm, the number of a cut, 0 for no zip at all, or None for the
            last cut.

        Raises:
          ValueError: if there is no such cut, naming the valid ones.
        """
        cuts = (Cut(0, "", 0, ()), *self.cuts)
        if stop_at is None:
            return cuts[-1]
        for cut in cuts[1:]:
            if stop_at in self._last_perms(cut):
                return cut
        if isinstance(stop_at, int) and 0 <= stop_at < len(cuts):
            return cuts[stop_at]
        valid = ", ".join(
            f"{c.number} ({c.perm!r}, {c.layers} layers)" for c in self.cuts
        )
        raise ValueError(
            f"stop_at = {stop_at!r} is no valid cut. Behind a cut nothing may write to "
            f"zipped units. The cuts are 0 (nothing is zipped), {valid}"
        )

    def trunk(self, stop_at: str | int | None) -> frozenset[str]:
        """Returns the paths of the parameters that a zip up to there shares."""
        cut = self.stop(stop_at)
        depths = self._layer_depths.items()
        return frozenset(p for p, d in depths if cut.number and d <= cut.layers)

    @property
    def _layer_depths(self) -> Mapping[str, int]:
        return self.depths or layer_depths(self.axes)

    def _last_perms(self, cut: Cut) -> list[str]:
        spans = self.spans
        return [perm for perm in cut.perms if spans[perm][1] == cut.layers]

    def validate(self, params: PyTree) -> None:
        """Checks that the spec fits these parameters.

        Raises:
          ValueError: listing the parameters that the spec does not mention and the
            entries that no parameter matches; or the first axis of another size.
        """
        leaves = path_leaves(params)
        _check_paths(self.axes, leaves)
        for path, leaf in leaves.items():
            self._check_shape(path, tuple(leaf.shape))

    def members(self, perm: str) -> list[tuple[str, int, Axis]]:
        """Lists ``(path, axis number, Axis leaf)`` for everything tied to a perm."""
        return [
            (path, number, axis)
            for path, entries in self.axes.items()
            for number, entry in enumerate(entries)
            for axis in leaf_axes(entry)
            if axis.perm == perm
        ]

    def resize(self, sizes: Mapping[str, int]) -> "PermutationSpec":
        """Returns the spec of the same network with other numbers of units."""
        perms = {
            name: dataclasses.replace(perm, size=sizes.get(name, perm.size))
            for name, perm in self.perms.items()
        }
        return dataclasses.replace(self, perms=perms)

    def to_json(self) -> str:
        """Returns the spec as JSON; :meth:`from_json` reads it back."""
        data = self._content()
        if self.notes is not None:
            data["notes"] = dataclasses.asdict(self.notes)
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> "PermutationSpec":
        """Reads what :meth:`to_json` wrote.

        Raises:
          ValueError: if the text is no spec.
        """
        try:
            data = json.loads(text)
            axes = {p: tuple(map(decode, row)) for p, row in data["axes"].items()}
            perms = {
                name: Perm(int(perm["size"]), tuple(perm["groups"]))
                for name, perm in data["perms"].items()
            }
            depths = {p: int(depth) for p, depth in data.get("depths", {}).items()}
            notes = Notes.from_json(data["notes"]) if "notes" in data else None
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"this is no permutation spec in JSON: {error!r}"
            ) from None
        return cls(axes, perms, depths, notes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PermutationSpec) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    @functools.cached_property
    def _text(self) -> str:
        # Made once: every call of a function that is jitted for a spec hashes it.
        return json.dumps(self._content())

    def _content(self) -> dict[str, Any]:
        axes = {p: [encode(e) for e in entries] for p, entries in self.axes.items()}
        perms = {name: dataclasses.asdict(perm) for name, perm in self.perms.items()}
        content = {"axes": axes, "perms": perms}
        return {**content, "depths": dict(self.depths)} if self.depths else content

    def _check_perms(self) -> None:
        roles: dict[str, dict[Role, list[str]]] = {}
        for path, entries in self.axes.items():
            for axis in (a for entry in entries for a in leaf_axes(entry)):
                perm_roles = roles.setdefault(axis.perm, {"out": [], "in": []})
                perm_roles[axis.role].append(path)
        check_same_keys(
            "the perms named in axes and those in perms differ",
            roles,
            self.perms,
            "List every perm of axes in perms, and no other.",
        )
        enclosing = {*self.perms, *self.indices}
        for name, perm in self.perms.items():
            if not roles[name]["out"] or not roles[name]["in"]:
                raise ValueError(
                    f"perm {name!r} must be produced and consumed, but it is produced "
                    f"by {roles[name]['out']} and consumed by {roles[name]['in']}: "
                    "give units that nothing consumes (outputs) the entry None"
                )
            if perm.size < 1 or not set(perm.groups) <= enclosing:
                raise ValueError(
                    f"perm {name!r} has size {perm.size} and groups {perm.groups}: "
                    f"sizes start at 1, groups are among {sorted(enclosing)}"
                )

    def _check_groups(self) -> None:
        for path, entries in self.axes.items():
            for block in leaf_blocks(entries):
                names = {name for name in map(leaf_name, block) if name is not None}
                for perm in names & set(self.perms):
                    missing = set(self.perms[perm].groups) - names
                    if missing:
                        raise ValueError(
                            f"parameter {path!r} has units of perm {perm!r} without "
                            f"its groups {sorted(missing)}: where groups are not told "
                            "apart, their units have one order"
                        )

    def _check_shape(self, path: str, shape: Shape) -> None:
        entries = self.axes[path]
        if len(entries) != len(shape):
            raise ValueError(
                f"parameter {path!r} has shape {list(shape)} but the spec has "
                f"{len(entries)} entries for it, {list(entries)}: one entry an axis"
            )
        for number, (entry, size) in enumerate(zip(entries, shape, strict=True)):
            expected = entry_size(entry, self.sizes)
            if expected not in (None, size):
                raise ValueError(
                    f"axis {number} of parameter {path!r} has size {size} (shape "
                    f"{list(shape)}) but its entry {entry} has size {expected}: the "
                    "spec belongs to a network of other widths"
                )


def _check_paths(axes: Mapping[str, Entries], leaves: Leaves) -> None:
    check_same_keys(
        "the parameters and the entries of the spec differ",
        axes,
        leaves,
        "Give every parameter one entry an axis (None where it has no perm).",
    )


def _solve_sizes(
    axes: Mapping[str, Entries], shapes: Mapping[str, Shape]
) -> dict[str, int]:
    """Finds every perm's size: from plain axes first, then within compounds."""
    sizes: dict[str, int] = {}
    waiting = [
        (entry, size)
        for path, entries in axes.items()
        for entry, size in zip(entries, shapes[path], strict=False)
        if entry is not None
    ]
    waiting.sort(key=lambda pair: not isinstance(pair[0], Axis))
    while waiting:
        unsolved = [pair for pair in waiting if not _solve_entry(*pair, sizes)]
        if len(unsolved) == len(waiting):
            raise ValueError(
                f"the sizes of the perms in {unsolved[0][0]} do not follow from any "
                "other axis: construct PermutationSpec(axes, perms) with their sizes"
            )
        waiting = unsolved
    return sizes


def _solve_entry(entry: Entry, size: int, sizes: dict[str, int]) -> bool:
    """Adds the size of an entry's one unknown perm; False if there are several."""
    if isinstance(entry, Family):
        solved = [_solve_entry(member, size, sizes) for member in entry.members]
        return all(solved)
    unknown = {axis.perm for axis in leaf_axes(entry)} - set(sizes)
    if len(unknown) == 1:
        guesses = range(1, size + 1) if not isinstance(entry, Axis) else (size,)
        (name,) = unknown
        fits = [n for n in guesses if entry_size(entry, {**sizes, name: n}) == size]
        sizes[name] = fits[0] if fits else size
    return len(unknown) <= 1
