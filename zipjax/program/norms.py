"""Norms with running statistics, found in a traced network by what they compute.

A norm subtracts a mean from the data and multiplies by the inverse root of a variance;
names and layouts do not matter. It is recognised in both forms,

    (x - mean) * (scale / sqrt(variance + eps)) + bias
    x * s + (bias - mean * s),    s = scale / sqrt(variance + eps)

with the parameters cast, broadcast, transposed or divided by numbers on the way.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from zipjax.program.dependence import data_values, is_data
from zipjax.program.parameter_views import Axes, relayout
from zipjax.program.program import (
    Equation,
    Literal,
    Operand,
    Program,
    ValueId,
    values_of,
)

_SHIFTS = {"add", "add_any", "sub", "max"}
_UNITWISE = {"sub", "mul", "div", "convert_element_type"}
_ROOTS = {"sqrt", "rsqrt"}


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A parameter that is a mean or a variance, as the network reads it.

    Attributes:
      path: the parameter.
      divisor: the number by which it is divided before use, as Equinox does with
        averages that start at 0; None for 1.
    """

    path: str
    divisor: ValueId | None = None


@dataclasses.dataclass(frozen=True)
class Centre:
    """A mean that is subtracted from data.

    Attributes:
      mean: the mean.
      source: the value from which it is subtracted.
      axes: for every axis of that value, the number of the mean's axis; None where the
        mean is the same for all.
    """

    mean: Statistic
    source: ValueId
    axes: Axes


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm: a centre, and the variance whose root divides the rest."""

    centre: Centre
    variance: Statistic


@dataclasses.dataclass(frozen=True)
class Norms:
    """What a program holds of norms.

    Attributes:
      norms: those that are complete, in program order.
      centres: the first value from which each parameter is subtracted, by path.
      roots: paths of all parameters whose root is taken.
    """

    norms: tuple[Norm, ...]
    centres: Mapping[str, Centre]
    roots: frozenset[str]


def find_norms(program: Program) -> Norms:
    """Returns the norms of a program.

    Where a norm is applied at several places, the first counts.
    """
    pieces = {
        number: _Piece(_own_axes(path, program), frozenset({path}), Statistic(path))
        for path, number in program.params.items()
    }
    finder = _Finder(program, pieces)
    for eqn in program.equations:
        finder.read(eqn)
    return finder.norms()


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A value made of parameters and constants.

    Attributes:
      axes: for every axis, that of the parameter it comes from.
      factors: paths of the parameters that are multiplied in it.
      statistic: the parameter that it is, if it is one.
      shifted: the parameter to which constants were added, if it is that.
      roots: the parameters whose roots are factors.
    """

    axes: Axes
    factors: frozenset[str] = frozenset()
    statistic: Statistic | None = None
    shifted: Statistic | None = None
    roots: frozenset[Statistic] = frozenset()


class _Finder:
    """Reads a program's equations one by one."""

    def __init__(self, program: Program, pieces: Mapping[ValueId, _Piece]) -> None:
        self._program, self._data = program, data_values(program)
        self._pieces = dict(pieces)
        self._in_loops: set[str] = set()
        self._centred: dict[ValueId, Centre] = {}
        self._centres: dict[str, Centre] = {}
        self._norms: dict[Statistic, Norm] = {}
        self._scaled: dict[Statistic, tuple[ValueId, _Piece]] = {}
        self._subtracted: list[_Piece] = []

    def read(self, eqn: Equation) -> None:
        """Records what an equation does with parameters."""
        if eqn.primitive.name == "sub" and (piece := self._piece(eqn.operands[1])):
            self._subtracted.append(piece)
        for body in eqn.bodies:
            self._in_loops |= self._roots_within(body, eqn)
        if is_data(eqn, self._data):
            self._meet(eqn)
        elif any(x in self._pieces for x in values_of(eqn.operands)):
            piece = self._combined(eqn)
            for result in eqn.results:
                # What is no layout change and no arithmetic has other axes.
                rank = len(self._shape(result))
                axes = piece.axes if len(piece.axes) == rank else (None,) * rank
                self._pieces[result] = dataclasses.replace(piece, axes=axes)

    def norms(self) -> Norms:
        """Returns what was found."""
        for variance, (source, piece) in self._scaled.items():
            if variance not in self._norms:
                self._fold(variance, source, piece)
        roots = {x.path for piece in self._pieces.values() for x in piece.roots}
        roots |= self._in_loops
        return Norms(tuple(self._norms.values()), self._centres, frozenset(roots))

    def _roots_within(self, body: Program, eqn: Equation) -> frozenset[str]:
        """Returns the parameters whose root a loop or a branch takes."""
        # A body's inputs are the equation's last operands (while: but its condition's).
        pairs = zip(reversed(body.inputs), reversed(eqn.operands), strict=False)
        pieces = {
            x: dataclasses.replace(piece, axes=(None,) * len(body.avals[x].shape))
            for x, operand in pairs
            if (piece := self._piece(operand))
        }
        data = tuple(x for x in body.inputs if x not in pieces)
        params = self._program.params
        inner = _Finder(dataclasses.replace(body, inputs=data, params=params), pieces)
        for own in body.equations:
            inner.read(own)
        return inner.norms().roots

    def _piece(self, operand: Operand) -> _Piece | None:
        return None if isinstance(operand, Literal) else self._pieces.get(operand)

    def _shape(self, operand: Operand) -> tuple[int, ...]:
        if isinstance(operand, Literal):
            return np.shape(operand.value)
        return tuple(self._program.avals[operand].shape)

    def _combined(self, eqn: Equation) -> _Piece:
        """Returns the result of an equation without data."""
        name, start = eqn.primitive.name, self._piece(eqn.operands[0])
        if start and (axes := relayout(eqn, start.axes, self._program)) is not None:
            return dataclasses.replace(start, axes=axes)
        if start and (divided := self._divided(eqn, start)):
            return divided
        found = [piece for x in eqn.operands if (piece := self._piece(x))]
        axes = max((piece.axes for piece in found), key=len)
        factors = frozenset().union(*(piece.factors for piece in found))
        roots = frozenset().union(*(piece.roots for piece in found))
        shifted = found[0].statistic or found[0].shifted
        if not shifted or len(found) > 1:
            return _Piece(axes, factors, roots=roots)
        if name in _SHIFTS and (name != "sub" or start):
            return _Piece(axes, factors, shifted=shifted)
        is_root = name in _ROOTS or _is_root(eqn)
        return _Piece(axes, factors, roots=frozenset({shifted} if is_root else ()))

    def _divided(self, eqn: Equation, piece: _Piece) -> _Piece | None:
        """Returns a statistic that is divided by a number, as one."""
        whole, divisor = piece.statistic, eqn.operands[-1]
        if eqn.primitive.name != "div" or whole is None or whole.divisor is not None:
            return None
        if isinstance(divisor, Literal) or math.prod(self._shape(divisor)) != 1:
            return None
        statistic = dataclasses.replace(whole, divisor=divisor)
        return dataclasses.replace(piece, statistic=statistic)

    def _meet(self, eqn: Equation) -> None:
        """Records where parameters meet data, unit by unit."""
        name = eqn.primitive.name
        sources = [x for x in values_of(eqn.operands) if x in self._data]
        if name not in _UNITWISE or len(sources) > 1:
            return
        source, centre = sources[0], self._centred.get(sources[0])
        piece = next(filter(None, map(self._piece, eqn.operands)), None)
        first = eqn.operands[0] == source
        if name == "sub" and piece and piece.statistic and first:
            centre = self._centre(piece.statistic, source, piece.axes)
        elif name in ("sub", "div") and not first:
            centre = None
        elif piece and name != "sub":
            self._scale(source, centre, piece)
        if centre and self._shape(eqn.results[0]) == self._shape(source):
            self._centred[eqn.results[0]] = centre

    def _centre(self, mean: Statistic, source: ValueId, axes: Axes) -> Centre:
        # A number is the same for all axes.
        centre = Centre(mean, source, axes or (None,) * len(self._shape(source)))
        self._centres.setdefault(mean.path, centre)
        return centre

    def _scale(self, source: ValueId, centre: Centre | None, piece: _Piece) -> None:
        for variance in piece.roots:
            if centre is not None:
                self._pair(centre, variance)
            self._scaled.setdefault(variance, (source, piece))

    def _pair(self, centre: Centre, variance: Statistic) -> None:
        sizes = [
            [n for n in self._shape(self._program.params[path]) if n > 1]
            for path in (centre.mean.path, variance.path)
        ]
        if sizes[0] == sizes[1] and centre.mean.path != variance.path:
            self._norms.setdefault(variance, Norm(centre, variance))

    def _fold(self, variance: Statistic, source: ValueId, piece: _Piece) -> None:
        """Finds the mean that is subtracted after it was multiplied by the scale."""
        for other in self._subtracted:
            means = other.factors - piece.factors
            if variance in other.roots and len(means) == 1:
                (mean,) = means
                centre = self._centre(Statistic(mean), source, piece.axes)
                self._pair(centre, variance)


def _own_axes(path: str, program: Program) -> Axes:
    shape = program.avals[program.params[path]].shape
    return tuple(k if size > 1 else None for k, size in enumerate(shape))


def _is_root(eqn: Equation) -> bool:
    """Returns whether an equation takes a power of 1/2 or -1/2."""
    exponent: Any = eqn.operands[-1]
    return (
        eqn.primitive.name == "pow"
        and isinstance(exponent, Literal)
        and abs(float(exponent.value)) == 0.5
    )
