"""The plane through two networks and their zip, and the tasks' losses on it.

ZipIt!, Figure 2. The plane goes through model A, model B with its units in A's order
(Permute), and the zipped network, whose merged units are put in A's order too: the
numbers of merged units are arbitrary, and would only move the zip away from the others.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

import zipjax
from experiments.parents.train import Variables

_MARGIN = 0.35  # Around the corners, as a share of the distance of A and B.
_FLAT = 1e-4  # A triangle is a line if its height is a smaller share of its base.


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """A plane in the space of parameters.

    Attributes:
      model: the network at (0, 0), whose other variables all points share.
      axes: the plane's orthonormal axes ``[2, parameters]``.
      corners: coordinates of the networks that span it ``[3, 2]``.
    """

    model: Variables
    axes: Float[np.ndarray, "2 parameters"]
    corners: Float[np.ndarray, "3 2"]

    @classmethod
    def through(cls, corners: Sequence[Variables]) -> "Plane | None":
        """Lays a plane through three networks; None if they lie on a line.

        The first network is the origin and the second one lies on the first axis.
        """
        origin, *others = map(_flat, corners)
        base, side = (other - origin for other in others)
        width = np.linalg.norm(base)
        first = base / max(width, np.finfo(float).tiny)
        along = first @ side
        rest = side - along * first
        height = np.linalg.norm(rest)
        if height <= _FLAT * width:
            return None
        places = np.array([[0, 0], [width, 0], [along, height]])
        return cls(corners[0], np.stack([first, rest / height]), places)

    def at(self, x: float, y: float) -> Variables:
        """Returns the network at a point."""
        params = _unflat(_flat(self.model) + [x, y] @ self.axes, self.model["params"])
        return {**self.model, "params": params}

    def grid(self, points: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the coordinates ``[points]`` of a grid around the corners."""
        margin = _MARGIN * self.corners[1, 0]
        low, high = self.corners.min(0) - margin, self.corners.max(0) + margin
        x, y = np.linspace(low, high, points).T
        return x, y


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """Every task's loss on a plane.

    Attributes:
      x: coordinates of the columns.
      y: coordinates of the rows.
      losses: of every task at every point.
      corners: coordinates of A, of B and of the zip ``[3, 2]``.
    """

    x: Float[np.ndarray, "columns"]
    y: Float[np.ndarray, "rows"]
    losses: Float[np.ndarray, "tasks rows columns"]
    corners: Float[np.ndarray, "3 2"]

    @classmethod
    def of(
        cls,
        corners: Sequence[Variables],
        losses: Callable[[Variables], np.ndarray],
        points: int,
        track: Callable[[Iterable], Iterable] = iter,
    ) -> "Landscape | None":
        """Measures losses on the plane through A, B and the zip.

        Args:
          corners: these networks.
          losses: returns the losses ``[tasks]`` of a network.
          points: number of points of the grid, per side.
          track: wraps the points in a progress bar.

        Returns:
          The losses; None if the networks lie on a line, as they do when a zip only
          permutes.
        """
        plane = Plane.through(corners)
        if plane is None:
            return None
        x, y = plane.grid(points)
        places = [(column, row) for row in y for column in x]
        found = np.array([losses(plane.at(*place)) for place in track(places)])
        return cls(x, y, found.T.reshape(-1, points, points), plane.corners)


def corners(
    models: Sequence[Variables],
    spec: zipjax.PermutationSpec,
    moments: Mapping[str, zipjax.Moments],
    zipped: Mapping[str, np.ndarray],
) -> list[Variables]:
    """Returns model A, B with its units in A's order, and the zip in A's order.

    Args:
      models: A and B.
      spec: their permutation spec.
      moments: of both.
      zipped: assignments ``[*groups, N*n]`` of a zip of all layers that keeps widths.
    """
    aligned = zipjax.match(models, spec, zipjax.permute(), moments=moments)
    ordered = {perm: in_order(zipped[perm], aligned[perm]) for perm in aligned}
    # With all the weight, B only has the order of its units changed.
    permuted = zipjax.merge_units(models, spec, aligned, weights=(0, 1))
    merged = zipjax.merge_units(models, spec, ordered)
    return [models[0], permuted.params(), merged.params()]


def in_order(
    assignment: Int[np.ndarray, "*groups total"],
    aligned: Int[np.ndarray, "*groups total"],
) -> Int[np.ndarray, "*groups total"]:
    """Numbers merged units like the units of model A that they mostly come from.

    In an alignment, units have the number of A's unit that they are aligned with. The
    merged units are numbered so that as many units as possible keep that number.

    Args:
      assignment: the merged unit of every unit, in a merge that keeps widths.
      aligned: the same in an alignment with A, with the same groups.

    Returns:
      The same merge, with other numbers.
    """

    def renumbered(merged: np.ndarray, places: np.ndarray) -> np.ndarray:
        size = places.max() + 1
        shared = np.zeros((size, size), int)
        np.add.at(shared, (merged, places), 1)
        return linear_sum_assignment(shared, maximize=True)[1][merged]

    rows = [np.reshape(each, (-1, each.shape[-1])) for each in (assignment, aligned)]
    return np.stack(list(map(renumbered, *rows))).reshape(assignment.shape)


def _flat(model: Variables) -> Float[np.ndarray, "parameters"]:
    leaves = jax.tree_util.tree_leaves(model["params"])
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def _unflat(flat: Float[np.ndarray, "parameters"], like: Variables) -> Variables:
    leaves, structure = jax.tree_util.tree_flatten(like)
    parts = np.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [
        part.reshape(leaf.shape).astype(leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, shaped)
