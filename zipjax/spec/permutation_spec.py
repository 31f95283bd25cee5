"""The permutation spec: which axes of which parameters are tied to which perm.

A *perm* is a set of axes whose units may be reordered together without changing the
network's function; :mod:`zipjax.spec.entries` lists what an axis may be tied to.
"""

import dataclasses
import functools
import graphlib
import json
import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from zipjax.arguments import is_whole
from zipjax.spec.depth import (
    Boundary,
    Cut,
    boundaries_from_json,
    boundaries_to_json,
    find_cuts,
    layer_depths,
    perm_spans,
)
from zipjax.spec.entries import (
    Axis,
    Entries,
    Entry,
    Family,
    Fixed,
    Index,
    Role,
    atom_blocks,
    atom_name,
    axes_of,
    entry_from_json,
    entry_names,
    entry_size,
    entry_to_json,
    indices_of,
    replace_atoms,
)
from zipjax.spec.notes import Notes
from zipjax.trees import check_same_keys, path_leaves
from zipjax.types import Leaves, PyTree, Shape


@dataclasses.dataclass(frozen=True)
class Perm:
    """A perm's number of units, and the groups that it is nested in.

    Attributes:
      size: number of units; if there are groups, of one group.
      groups: names of the perms and indices that enclose this one, outermost first:
        the units within each of their elements have an order of their own.
    """

    size: int
    groups: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class PermutationSpec:
    """A declarative map from every axis of every parameter to its entry.

    Specs are compared and hashed by content, so a spec may be a static argument of a
    jitted function.

    For example, two Dense layers with 8 hidden units:

    >>> h_out, h_in = Axis("h", "out"), Axis("h", "in")
    >>> entries = {"w1": (None, h_out), "b1": (h_out,), "w2": (h_in, None)}
    >>> spec = PermutationSpec(entries, {"h": Perm(8)})
    >>> spec.layers, spec.cuts
    (2, (Cut(number=1, name='h', perm='h', layers=1, perms=('h',)),))

    Attributes:
      entries: ``{path: (entry, ...)}``, one entry for every axis of every parameter, in
        the order in which the network uses the parameters; depths follow from it.
      perms: ``{name: Perm}`` in depth order.
      depths: every parameter's depth in layers; empty if it follows from ``entries``.
      notes: what inference has to say about the spec.
      boundaries: where a partial zip may stop inside a residual stream, one after the
        other; only inference finds these.
      unread: paths of parameters on which the function's outputs do not depend, such as
        counters: no zip averages or shares them.
      paired: pairs of perms that a merge must widen, or narrow, alike: the function
        divides the channels that it adds between them.

    Raises:
      ValueError: if ``entries`` and ``perms`` do not name the same perms, if a perm is
        never produced or never consumed, if perms are nested in one another, if there
        is no perm that a pair names, or if sizes or depths are no whole numbers from 1
        or from 0 on.
    """

    entries: Mapping[str, Entries]
    perms: Mapping[str, Perm]
    depths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Notes | None = None
    boundaries: tuple[Boundary, ...] = dataclasses.field(default=(), repr=False)
    unread: frozenset[str] = frozenset()
    paired: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        entries = {path: tuple(row) for path, row in self.entries.items()}
        self._set("entries", entries)
        self._set("perms", self.perms)
        self._set("depths", self.depths)
        self._check_perms()
        self._check_groups()
        self._check_depths()
        spans = self.spans
        ordered = sorted(spans, key=lambda name: spans[name][1])
        self._set("perms", {name: self.perms[name] for name in ordered})

    def _set(self, name: str, mapping: Mapping[str, Any]) -> None:
        # Read-only copies: derived values are cached, so that nothing may change.
        object.__setattr__(self, name, MappingProxyType(dict(mapping)))

    @classmethod
    def declare(
        cls,
        entries: Mapping[str, Entries],
        params: PyTree,
        groups: Mapping[str, tuple[str, ...]] | None = None,
    ) -> "PermutationSpec":
        """Returns a spec made from entries; the sizes come from the parameters.

        Args:
          entries: every parameter's entries, in the network's order.
          params: parameter pytree, of arrays or of ``jax.ShapeDtypeStruct``.
          groups: the names of the groups of every nested perm.

        Raises:
          ValueError: for unknown paths, parameters without entries, tied axes of
            different sizes, and whatever the constructor refuses.
        """
        shapes = {path: tuple(x.shape) for path, x in path_leaves(params).items()}
        _check_paths(entries, shapes)
        sizes = _solve_sizes(entries, shapes)
        nesting = groups or {}
        perms = {name: Perm(n, nesting.get(name, ())) for name, n in sizes.items()}
        spec = cls(entries, perms)
        spec.validate(params)
        return spec

    @property
    def sizes(self) -> dict[str, int]:
        """Number of units of every perm, in depth order."""
        return {name: perm.size for name, perm in self.perms.items()}

    def group_sizes(self, perm: str) -> Shape:
        """Returns the sizes of a perm's groups, outermost first."""
        counts = {**self.sizes, **self.indices}
        return tuple(counts[group] for group in self.perms[perm].groups)

    def units(self, perm: str) -> int:
        """Returns the number of a model's units of a perm that are matched together.

        They are those of all groups, within one element of the indices.
        """
        groups = zip(self.perms[perm].groups, self.group_sizes(perm), strict=True)
        enclosing = (size for group, size in groups if group not in self.indices)
        return math.prod(enclosing) * self.perms[perm].size

    def elements(self, perm: str) -> int | None:
        """Returns the number of elements of a perm's indices; None without any."""
        own = [group for group in self.perms[perm].groups if group in self.indices]
        return math.prod(self.indices[group] for group in own) if own else None

    @functools.cached_property
    def indices(self) -> Mapping[str, int]:
        """Number of elements of every index."""
        atoms = (
            atom
            for entries in self.entries.values()
            for entry in entries
            for atom in indices_of(entry)
        )
        return MappingProxyType({atom.name: atom.size for atom in atoms})

    @functools.cached_property
    def layers(self) -> int:
        """Number of layers on the longest path from the input to the output."""
        return max(self._layer_depths.values())

    @functools.cached_property
    def spans(self) -> Mapping[str, tuple[int, int]]:
        """The depths at which each perm is first and last produced."""
        return MappingProxyType(perm_spans(self.entries, self._layer_depths))

    @functools.cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """The places where a partial zip may stop, from the input to the output."""
        return find_cuts(self.entries, self._layer_depths, self.boundaries)

    @functools.cached_property
    def group_perms(self) -> frozenset[str]:
        """The perms and indices that enclose others, such as attention heads."""
        return frozenset(g for perm in self.perms.values() for g in perm.groups)

    def is_plain(self, perm: str) -> bool:
        """Returns whether a perm neither encloses others nor is enclosed by any."""
        return perm not in self.group_perms and not self.perms[perm].groups

    def stop(self, stop_at: str | int) -> Cut:
        """Returns the cut at which a zip stops.

        Args:
          stop_at: the name of a cut, a perm that ends at a closed one, the number of a
            cut, or 0 for no zip at all.

        Raises:
          ValueError: if there is no such cut, naming the valid ones.
        """
        cuts = (Cut(0, "", "", 0, ()), *self.cuts)
        for cut in cuts[1:]:
            if stop_at == cut.name or stop_at in self._last_perms(cut):
                return cut
        if is_whole(stop_at) and int(stop_at) in range(len(cuts)):
            return cuts[int(stop_at)]
        valid = ", ".join(
            f"{c.number} ({c.name!r}, {c.layers} layers)" for c in self.cuts
        )
        raise ValueError(
            f"stop_at = {stop_at!r} is not a valid cut. After one, nothing may write "
            "to zipped units, or, in an inferred spec, everything reads the trunk "
            "through one value outside of loops. Choose one of 0 (nothing is zipped), "
            + valid
        )

    def trunk(self, stop_at: str | int) -> frozenset[str]:
        """Returns the paths of the parameters that a zip up to a cut shares.

        Args:
          stop_at: the cut, as in :meth:`stop`.
        """
        cut = self.stop(stop_at)
        if cut.boundary is not None:
            return cut.boundary.trunk
        depths = self._layer_depths.items()
        within = (p for p, d in depths if cut.number and d <= cut.layers)
        return frozenset(within) - self.unread

    def boundary_after(self, trunk: Collection[str]) -> Boundary:
        """Returns the boundary of a cut inside a stream.

        Args:
          trunk: paths of the parameters that a zip up to the cut shares.

        Raises:
          ValueError: if there is no such boundary.
        """
        for boundary in self.boundaries:
            if boundary.trunk == trunk:
                return boundary
        raise ValueError(
            f"the spec has no cut inside a stream after the parameters {sorted(trunk)}:"
            " use the spec that the models were merged with"
        )

    @functools.cached_property
    def _layer_depths(self) -> Mapping[str, int]:
        return self.depths or layer_depths(self.entries)

    def _last_perms(self, cut: Cut) -> list[str]:
        if cut.boundary is not None:
            return []
        return [perm for perm in cut.perms if self.spans[perm][1] == cut.layers]

    def validate(self, params: PyTree) -> None:
        """Checks that the spec fits these parameters.

        Raises:
          ValueError: if parameters have no entries or entries no parameter, listing
            all of these, or if an axis has a different size.
        """
        leaves = path_leaves(params)
        _check_paths(self.entries, leaves)
        for path, leaf in leaves.items():
            self._check_shape(path, tuple(leaf.shape))

    def members(self, perm: str) -> list[tuple[str, int, Axis]]:
        """Returns ``(path, axis number, Axis)`` for everything tied to a perm.

        Raises:
          ValueError: if there is no such perm.
        """
        if perm not in self._members:
            raise ValueError(
                f"the spec has no perm {perm!r}: choose one of {list(self.perms)}"
            )
        return list(self._members[perm])

    @functools.cached_property
    def _members(self) -> Mapping[str, list[tuple[str, int, Axis]]]:
        found: dict[str, list[tuple[str, int, Axis]]] = {p: [] for p in self.perms}
        for path, entries in self.entries.items():
            for number, entry in enumerate(entries):
                for axis in axes_of(entry):
                    found[axis.perm].append((path, number, axis))
        return found

    def resize(self, sizes: Mapping[str, int]) -> "PermutationSpec":
        """Returns the spec of the same network with different numbers of units.

        Raises:
          ValueError: if perms that are paired do not get as many units more, or fewer.
        """
        self.check_widths(sizes)
        perms = {
            name: dataclasses.replace(perm, size=sizes.get(name, perm.size))
            for name, perm in self.perms.items()
        }
        return dataclasses.replace(self, perms=perms)

    def check_widths(self, sizes: Mapping[str, int]) -> None:
        """Checks that the function could run with these numbers of units.

        Args:
          sizes: those that change, by perm.

        Raises:
          ValueError: if perms that are paired do not change alike.
        """
        for pair in self.paired:
            old = [self.sizes[perm] for perm in pair]
            new = [sizes.get(perm, size) for perm, size in zip(pair, old, strict=True)]
            if new[0] - old[0] != new[1] - old[1]:
                alike = dict(zip(pair, (new[0], old[1] + new[0] - old[0]), strict=True))
                raise ValueError(
                    f"perms {pair[0]!r} and {pair[1]!r} would have {new[0]} and "
                    f"{new[1]} units instead of {old[0]} and {old[1]}, but the "
                    "function adds channels in equal parts on both sides of those "
                    "that it has: change both by one number, such as num_units="
                    f"{alike}"
                )

    def only(self, perms: Collection[str]) -> "PermutationSpec":
        """Returns the spec in which no other units may be reordered.

        Args:
          perms: some perms, with all perms that these are nested in.
        """

        def kept(row: Entries) -> Entries:
            return tuple(replace_atoms(entry, keep) for entry in row)

        def keep(atom: Axis | Index) -> Entry:
            if isinstance(atom, Axis) and atom.perm not in perms:
                return Fixed(self.sizes[atom.perm])
            return atom

        inside = (
            dataclasses.replace(x, entries=kept(x.entries)) for x in self.boundaries
        )
        return dataclasses.replace(
            self,
            entries={path: kept(row) for path, row in self.entries.items()},
            perms={name: perm for name, perm in self.perms.items() if name in perms},
            depths=self._layer_depths,
            notes=None,
            boundaries=tuple(x for x in inside if entry_names(x.entries)),
            paired=tuple(pair for pair in self.paired if set(pair) <= set(perms)),
        )

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
          ValueError: if the text is not a spec.
        """
        try:
            data = json.loads(text)
            rows = data["entries"].items()
            entries = {path: tuple(map(entry_from_json, row)) for path, row in rows}
            perms = {
                name: Perm(perm["size"], tuple(perm["groups"]))
                for name, perm in data["perms"].items()
            }
            depths = dict(data.get("depths", {}))
            notes = Notes.from_json(data["notes"]) if "notes" in data else None
            found = boundaries_from_json(data.get("boundaries", ()))
            unread = frozenset(data.get("unread", ()))
            paired = tuple((a, b) for a, b in data.get("paired", ()))
            return cls(entries, perms, depths, notes, found, unread, paired)
        except (
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            json.JSONDecodeError,
        ) as error:
            raise ValueError(
                f"this is not a permutation spec in JSON: {error!r}. Read what "
                "to_json wrote"
            ) from None

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, PermutationSpec) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        """Everything that makes two specs equal; the order of parameters counts."""
        parts = self.entries, self.perms, self.depths
        rest = self.boundaries, self.unread, self.paired
        return *(tuple(part.items()) for part in parts), *rest

    @functools.cached_property
    def _hash(self) -> int:
        # Every call of a jitted function hashes its static arguments.
        return hash(self._key)

    def _content(self) -> dict[str, Any]:
        rows = self.entries.items()
        entries = {path: [entry_to_json(entry) for entry in row] for path, row in rows}
        perms = {name: dataclasses.asdict(perm) for name, perm in self.perms.items()}
        content: dict[str, Any] = {"entries": entries, "perms": perms}
        if self.depths:
            content["depths"] = dict(self.depths)
        if self.boundaries:
            content["boundaries"] = boundaries_to_json(self.boundaries)
        if self.unread:
            content["unread"] = sorted(self.unread)
        if self.paired:
            content["paired"] = [list(pair) for pair in self.paired]
        return content

    def _check_perms(self) -> None:
        roles: dict[str, dict[Role, list[str]]] = {}
        for path, entries in self.entries.items():
            for axis in (a for entry in entries for a in axes_of(entry)):
                perm_roles = roles.setdefault(axis.perm, {"out": [], "in": []})
                perm_roles[axis.role].append(path)
        check_same_keys(
            "the perms named in entries and those in perms differ",
            roles,
            self.perms,
            "List every perm of the entries in perms, and no other.",
        )
        strange = {name for pair in self.paired for name in pair} - {*self.perms}
        if strange:
            raise ValueError(
                f"paired names {sorted(strange)}, which are no perms: choose among "
                f"{list(self.perms)}"
            )
        enclosing = {*self.perms, *self.indices}
        for name, perm in self.perms.items():
            if not roles[name]["out"] or not roles[name]["in"]:
                raise ValueError(
                    f"perm {name!r} must be produced and consumed, but it is produced "
                    f"by {roles[name]['out']} and consumed by {roles[name]['in']}: "
                    "give units that nothing consumes (outputs) the entry None"
                )
            whole = is_whole(perm.size) and perm.size >= 1
            if not whole or not set(perm.groups) <= enclosing:
                raise ValueError(
                    f"perm {name!r} has size {perm.size} and groups {perm.groups}: "
                    "sizes are whole numbers and start at 1, groups are among "
                    f"{sorted(enclosing)}"
                )

    def _check_depths(self) -> None:
        if self.depths:
            check_same_keys(
                "the parameters of depths and those of entries differ",
                self.entries,
                self.depths,
                "Give every parameter a depth, or none, so that they follow from the "
                "entries.",
            )
        wrong = {
            path: depth
            for path, depth in self.depths.items()
            if not is_whole(depth) or depth < 0
        }
        if wrong:
            raise ValueError(
                f"the depths {wrong} are no numbers of layers: pass whole numbers from "
                "0 on, or none, so that they follow from the entries"
            )

    def _check_groups(self) -> None:
        groups = {name: perm.groups for name, perm in self.perms.items()}
        try:
            graphlib.TopologicalSorter(groups).prepare()
        except graphlib.CycleError as error:
            raise ValueError(
                f"the perms {error.args[1]} are nested in one another: name as groups "
                "of a perm only those that enclose it"
            ) from None
        for path, entries in self.entries.items():
            for block in atom_blocks(entries):
                names = {name for name in map(atom_name, block) if name is not None}
                for perm in names & set(self.perms):
                    missing = set(self.perms[perm].groups) - names
                    if missing:
                        raise ValueError(
                            f"parameter {path!r} has units of perm {perm!r} without "
                            f"its groups {sorted(missing)}: if the groups share one "
                            "order of units, declare the perm without groups"
                        )

    def _check_shape(self, path: str, shape: Shape) -> None:
        entries = self.entries[path]
        if len(entries) != len(shape):
            raise ValueError(
                f"parameter {path!r} has shape {list(shape)} but the spec has "
                f"{len(entries)} entries for it, {list(entries)}: give one per axis"
            )
        for number, (entry, size) in enumerate(zip(entries, shape, strict=True)):
            expected = entry_size(entry, self.sizes)
            if expected not in (None, size):
                raise ValueError(
                    f"axis {number} of parameter {path!r} has size {size} (shape "
                    f"{list(shape)}) but its entry {entry} has size {expected}: the "
                    "spec belongs to a network of other widths. Use its own spec"
                )


def _check_paths(entries: Mapping[str, Entries], leaves: Leaves) -> None:
    check_same_keys(
        "the parameters and the entries of the spec differ",
        entries,
        leaves,
        "Give every parameter one entry per axis (None for an axis without a perm); "
        "infer the spec from, and merge, the same collections.",
    )


def _solve_sizes(
    entries: Mapping[str, Entries], shapes: Mapping[str, Shape]
) -> dict[str, int]:
    """Returns every perm's size, found from plain axes first, then from compounds."""
    sizes: dict[str, int] = {}
    waiting = [
        (entry, size)
        for path, row in entries.items()
        for entry, size in zip(row, shapes[path], strict=False)
        if entry is not None
    ]
    waiting.sort(key=lambda pair: not isinstance(pair[0], Axis))
    while waiting:
        unsolved = [pair for pair in waiting if not _solve_entry(*pair, sizes)]
        if len(unsolved) == len(waiting):
            raise ValueError(
                f"the sizes of the perms in {unsolved[0][0]} do not follow from the "
                "other axes: construct PermutationSpec(entries, perms) with their sizes"
            )
        waiting = unsolved
    return sizes


def _solve_entry(entry: Entry, size: int, sizes: dict[str, int]) -> bool:
    """Adds the size of an entry's unknown perm; returns False if there are several."""
    if isinstance(entry, Family):
        solved = [_solve_entry(member, size, sizes) for member in entry.members]
        return all(solved)
    unknown = {axis.perm for axis in axes_of(entry)} - set(sizes)
    if len(unknown) == 1:
        guesses = range(1, size + 1) if not isinstance(entry, Axis) else (size,)
        (name,) = unknown
        fits = [n for n in guesses if entry_size(entry, {**sizes, name: n}) == size]
        sizes[name] = fits[0] if fits else size
    return len(unknown) <= 1
