"""Cuts inside residual streams: boundaries of a program that hold units."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from zipjax.program.boundaries import BoundaryValue, boundary_values
from zipjax.spec.depth import Boundary, last_layer
from zipjax.spec.entries import Entries, atom_blocks, atom_name, axes_of, entry_names
from zipjax.spec.permutation_spec import PermutationSpec
from zipjax.tracing.node_entries import FamilyError, simplified, to_entries
from zipjax.tracing.nodes import Node
from zipjax.tracing.reading import Reading
from zipjax.types import Shape

Key = tuple[frozenset[str], frozenset[str]]
"""The parameters before a boundary, and those of them that are read after it, too."""


@dataclasses.dataclass(frozen=True)
class _Candidate:
    found: BoundaryValue
    boundary: Boundary
    layers: int

    def follows(self, other: "_Candidate") -> bool:
        """Returns whether everything before ``other`` is before this one."""
        return bool(self.found.inside >> other.found.number & 1)


def read_boundaries(
    reading: Reading, names: Mapping[Node, str], spec: PermutationSpec
) -> tuple[Boundary, ...]:
    """Returns the boundaries at which a partial zip may stop inside a stream.

    Of several values with the same parameters before them it is the first, whose units
    are the stream's own: norms and nonlinearities after it see each model's units. Of
    several after the same number of layers it is the last. Boundaries follow one after
    the other; of parallel branches, the one with more of them has its cuts.

    Args:
      reading: a reading of the function.
      names: the perm of every atom that belongs to one.
      spec: the function's spec, without cuts inside streams.
    """
    closed = [(cut.layers, spec.trunk(cut.number)) for cut in spec.cuts]
    candidates = [x for x in _candidates(reading, names, spec) if _is_new(x, closed)]
    chain = {x.layers: x.boundary for x in _longest_chain(candidates)}
    return tuple(chain.values())


def _candidates(
    reading: Reading, names: Mapping[Node, str], spec: PermutationSpec
) -> Iterator[_Candidate]:
    """Yields the boundaries that hold units, the first with the same parameters."""
    passed: dict[Key, list[Shape]] = {}  # Shapes of those that hold none.
    known: set[Key] = set()
    for found in boundary_values(reading.program):
        key = found.trunk, found.shared
        goes_on = found.shared or spec.entries.keys() - found.trunk - spec.unread
        if key in known or not goes_on:
            continue
        shape = tuple(reading.program.avals[found.value].shape)
        entries = _entries(reading, names, found)
        if entries is None or not _is_complete(entries, found.trunk, spec):
            passed.setdefault(key, []).append(shape)
            continue
        known.add(key)
        boundary = Boundary(entries, *key)
        # It must be the one that is found again by its parameters and its shape.
        if not any(boundary.fits(other, spec.sizes) for other in passed.get(key, [])):
            yield _Candidate(found, boundary, last_layer(found.trunk, spec.depths))


def _entries(
    reading: Reading, names: Mapping[Node, str], found: BoundaryValue
) -> Entries | None:
    try:
        return simplified(to_entries(reading.values[found.value].axes, names.get))
    except FamilyError:
        return None


def _is_complete(
    entries: Entries, trunk: frozenset[str], spec: PermutationSpec
) -> bool:
    """Returns whether a value holds units, with their groups, of a trunk's perms."""
    blocks = [set(map(atom_name, block)) - {None} for block in atom_blocks(entries)]
    groups = {name: set(perm.groups) for name, perm in spec.perms.items()}
    nested = all(groups[x or ""] <= block for block in blocks for x in block)
    roles: dict[str, set[str]] = {"out": set(), "in": set()}
    for axis in (a for p in trunk for entry in spec.entries[p] for a in axes_of(entry)):
        roles[axis.role].add(axis.perm)
    written = roles["out"] >= roles["in"].union(entry_names(entries))
    return any(blocks) and nested and written


def _is_new(
    candidate: _Candidate, closed: Sequence[tuple[int, frozenset[str]]]
) -> bool:
    """Returns whether no closed cut is in a boundary's place, or beside it.

    Args:
      candidate: the boundary.
      closed: the layers before every closed cut, and their parameters.
    """
    boundary = candidate.boundary
    for layers, trunk in closed:
        if layers == candidate.layers and not boundary.shared:
            return False
        if layers < candidate.layers and not trunk <= boundary.trunk:
            return False
    return True


def _longest_chain(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Returns as many boundaries as possible of which each follows the one before."""
    chains: list[list[_Candidate]] = []
    for candidate in candidates:
        before = [chain for chain in chains if candidate.follows(chain[-1])]
        chains.append([*max(before, key=len, default=[]), candidate])
    return max(chains, key=len, default=[])
