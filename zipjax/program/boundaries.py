"""Boundaries: values through which everything later in a program reads.

A program can be stopped at such a value and go on with another one in its place. Only
values that depend on inputs *and* parameters count as read: what depends on one of both
alone, such as a mask or a transposed kernel, can be computed again after the boundary.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator

from zipjax.program.program import Program, ValueId, values_of
from zipjax.types import Shape


@dataclasses.dataclass(frozen=True, eq=False)
class BoundaryValue:
    """A value through which everything later reads.

    Attributes:
      value: its number.
      number: position of the equation that computes it.
      inside: the equations that lead to it, itself included: bit k is the one at
        position k.
      trunk: the parameters that these read.
      shared: the parameters in ``trunk`` that are read after the value, too.
    """

    value: ValueId
    number: int
    inside: int
    trunk: frozenset[str]
    shared: frozenset[str]


def boundary_values(program: Program) -> Iterator[BoundaryValue]:
    """Yields all boundaries of a program, in its order."""
    return _Finder(program).find()


def boundary_value(
    program: Program,
    trunk: Collection[str],
    shared: Collection[str],
    fits: Callable[[Shape], bool],
) -> ValueId:
    """Returns the first boundary with these parameters before it.

    Args:
      program: the program.
      trunk: the parameters that are read before the boundary.
      shared: those of them that are read after it, too.
      fits: whether a value of this shape may be the boundary.

    Raises:
      ValueError: if there is none.
    """
    for found in boundary_values(program):
        same = found.trunk == trunk and found.shared == shared
        if same and fits(tuple(program.avals[found.value].shape)):
            return found.value
    raise ValueError(
        "the function has no value through which everything after the trunk reads, "
        f"though its spec says so: it is not the function that the spec is of. The "
        f"trunk's parameters are {sorted(trunk)}. Infer the spec of this function"
    )


class _Finder:
    """Finds a program's boundaries; sets of equations are numbers, bit by bit.

    Attributes:
      equations: those of the program, by position.
      positions: of the equation that computes each value.
      reads: the parameters that each equation on data reads, in any layout.
      mixed: the values that depend on inputs and on parameters.
      readers: the equations that read each of these.
    """

    def __init__(self, program: Program) -> None:
        self.equations = program.equations
        self.positions: dict[ValueId, int] = {}
        self.reads: dict[int, frozenset[str]] = {}
        self.mixed: set[ValueId] = set()
        self.readers: dict[ValueId, int] = {}
        self._read(program)
        for output in self.mixed.intersection(values_of(program.outputs)):
            self.readers[output] = self._readers(output) | 1 << len(program.equations)
        self._uses: dict[str, int] = {}
        for number, paths in self.reads.items():
            for path in paths:
                self._uses[path] = self._uses.get(path, 0) | 1 << number
        self._found: dict[ValueId, BoundaryValue] = {}

    def find(self) -> Iterator[BoundaryValue]:
        """Yields the boundaries, in the order of the program."""
        for number, eqn in enumerate(self.equations):
            for value in self.mixed.intersection(eqn.results):
                found = self._boundary(value, number)
                if found is not None:
                    self._found[value] = found
                    yield found

    def _read(self, program: Program) -> None:
        data = set(program.inputs)
        origins = {n: frozenset([p]) for p, n in program.params.items()}
        for number, eqn in enumerate(self.equations):
            operands = set(values_of(eqn.operands))
            paths = frozenset[str]().union(*(origins.get(x, ()) for x in operands))
            self.positions.update(dict.fromkeys(eqn.results, number))
            if not operands & data:
                origins.update(dict.fromkeys(eqn.results, paths))
                continue
            data.update(eqn.results)
            self.reads[number] = paths
            if paths or operands & self.mixed:
                self.mixed.update(eqn.results)
            for operand in operands & self.mixed:
                self.readers[operand] = self._readers(operand) | 1 << number

    def _boundary(self, value: ValueId, number: int) -> BoundaryValue | None:
        """Returns the boundary at a value, if it is one."""
        walk = self._walk(value, number)
        if walk is None:
            return None
        walked, before = walk
        inside = sum(1 << position for position in walked)
        for known in before:
            inside |= known.inside
        results = [x for position in walked for x in self.equations[position].results]
        ends = [known.value for known in before]
        if any(self._readers(x) & ~inside for x in (*ends, *results) if x != value):
            return None
        paths = [self.reads.get(position, frozenset()) for position in walked]
        read = frozenset[str]().union(*paths, *(known.trunk for known in before))
        shared = frozenset(path for path in read if self._uses[path] & ~inside)
        return BoundaryValue(value, number, inside, read, shared)

    def _walk(
        self, value: ValueId, number: int
    ) -> tuple[set[int], list[BoundaryValue]] | None:
        """Walks back from a value, up to the boundaries before it.

        Returns:
          The equations on the way and these boundaries; None as soon as something is
          seen to be read after the value.
        """
        walked: set[int] = set()
        before: dict[ValueId, BoundaryValue] = {}
        stack = [number]
        while stack:
            position = stack.pop()
            if position in walked:
                continue
            walked.add(position)
            eqn = self.equations[position]
            for x in (*eqn.results, *values_of(eqn.operands)):
                if x != value and self._readers(x) >> number + 1:
                    return None
            for x in values_of(eqn.operands):
                if x in self._found:
                    before[x] = self._found[x]
                elif x in self.positions:
                    stack.append(self.positions[x])
        return walked, list(before.values())

    def _readers(self, value: ValueId) -> int:
        return self.readers.get(value, 0)
