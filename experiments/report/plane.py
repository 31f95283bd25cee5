"""Planes through networks and their merges, and the tasks' losses on them.

ZipIt!, Figure 2: the plane goes through model A, model B with its units in A's order
(Permute), and the zipped network, whose merged units are put in A's order too: the
numbers of merged units are arbitrary, and would only move the zip away from the others.
MuDSC, Figure 3: the plane of the principal components of A, B and several zips, which
lie close to it.
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
      corners: coordinates of the networks that it was laid through, or close to
        ``[networks, 2]``.
    """

    model: Variables
    axes: Float[np.ndarray, "2 parameters"]
    corners: Float[np.ndarray, "networks 2"]

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

    @classmethod
    def close_to(cls, networks: Sequence[Variables]) -> "Plane | None":
        """Lays the plane of the two principal components of networks.

        The first network is the origin; others lie where they are projected to. None if
        they lie on a line.
        """
        flat = np.stack(list(map(_flat, networks)))
        _, sizes, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
        if sizes[1] <= _FLAT * sizes[0]:
            return None
        # The second network to the right of the first one.
        ways = np.where(axes[:2] @ (flat[1] - flat[0]) < 0, -1, 1)
        axes = axes[:2] * ways[:, None]
        return cls(networks[0], axes, (flat - flat[0]) @ axes.T)

    def at(self, x: float, y: float) -> Variables:
        """Returns the network at a point."""
        params = _unflat(_flat(self.model) + [x, y] @ self.axes, self.model["params"])
        return {**self.model, "params": params}

    def grid(self, points: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the coordinates ``[points]`` of a grid around the corners."""
        margin = _MARGIN * np.ptp(self.corners[:, 0])
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
      corners: coordinates of the networks ``[networks, 2]``.
      names: theirs; A, B and the zip by default.
    """

    x: Float[np.ndarray, "columns"]
    y: Float[np.ndarray, "rows"]
    losses: Float[np.ndarray, "tasks rows columns"]
    corners: Float[np.ndarray, "networks 2"]
    names: tuple[str, ...] = ("A", "B, permuted", "ZipIt!")

    @classmethod
    def of(
        cls,
        plane: Plane | None,
        losses: Callable[[Variables], np.ndarray],
        points: int,
        track: Callable[[Iterable], Iterable] = iter,
        names: tuple[str, ...] = names,
    ) -> "Landscape | None":
        """Measures losses on a plane.

        Args:
          plane: the plane; None if there is none.
          losses: returns the losses ``[tasks]`` of a network.
          points: number of points of the grid, per side.
          track: wraps the points in a progress bar.
          names: those of the plane's networks.

        Returns:
          The losses; None if there is no plane: networks lie on a line when a zip only
          permutes.
        """
        if plane is None:
            return None
        x, y = plane.grid(points)
        places = [(column, row) for row in y for column in x]
        found = np.array([losses(plane.at(*place)) for place in track(places)])
        return cls(x, y, found.T.reshape(-1, points, points), plane.corners, names)


def corners(
    models: Sequence[Variables],
    spec: zipjax.PermutationSpec,
    moments: Mapping[str, zipjax.Moments],
    *zips: Mapping[str, np.ndarray],
) -> list[Variables]:
    """Returns model A, B with its units in A's order, and zips in A's order.

    Args:
      models: A and B.
      spec: their permutation spec.
      moments: of both.
      *zips: assignments ``[*groups, N*n]`` of zips of all layers that keep widths.
    """
    aligned = zipjax.match(models, spec, zipjax.permute(), moments=moments)
    # With all the weight, B only has the order of its units changed.
    permuted = zipjax.merge_units(models, spec, aligned, weights=(0, 1))
    found = [models[0], permuted.params()]
    for zipped in zips:
        ordered = {perm: in_order(zipped[perm], aligned[perm]) for perm in aligned}
        found.append(zipjax.merge_units(models, spec, ordered).params())
    return found


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
