"""Maps of micrometres of one section to micrometres of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from deepspace.core.errors import InputError

FloatArray = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

_INVERSE_UM = 1e-4
_INVERSE_STEPS = 200
_STEEPEST = 0.9


@dataclass(frozen=True)
class Field:
    """A smooth displacement on a regular grid, linear between the nodes, constant outside.

    Attributes
    ----------
    origin_um
        x, y of the first node, um of the moving section.
    step_um
        Distance of neighbouring nodes, um.
    values
        Displacement x, y at the nodes, um of the fixed section, shape (rows, columns, 2).
    """

    origin_um: tuple[float, float]
    step_um: float
    values: FloatArray

    def at(self, points_um: FloatArray) -> FloatArray:
        """Displacement (n, 2) at points (n, 2), um."""
        column, row = ((points_um - np.asarray(self.origin_um)) / self.step_um).T
        parts = [
            ndimage.map_coordinates(self.values[..., axis], (row, column), order=1, mode="nearest")
            for axis in (0, 1)
        ]
        return np.stack(parts, axis=-1)

    def nodes(self) -> FloatArray:
        """x, y of all nodes in um, shape (rows * columns, 2)."""
        rows, columns = self.values.shape[:2]
        x = self.origin_um[0] + self.step_um * np.arange(columns)
        y = self.origin_um[1] + self.step_um * np.arange(rows)
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


@dataclass(frozen=True)
class Transform:
    """Maps micrometres of one section (moving) to micrometres of another (fixed).

    x, y count from the top-left corner of the slide. ``forward(p) = A p + t + d(p)``, where A
    and t are the first two rows of `matrix` and d is the `field`. A may mirror.

    Attributes
    ----------
    matrix
        Affine map in homogeneous coordinates, shape (3, 3).
    field
        Smooth displacement that is added, or None.

    Examples
    --------
    >>> shift = Transform.of(np.eye(2), (10.0, 0.0))
    >>> shift.forward([[1.0, 2.0]])
    array([[11.,  2.]])
    >>> shift.backward([[11.0, 2.0]])
    array([[1., 2.]])
    """

    matrix: FloatArray
    field: Field | None = None

    @classmethod
    def identity(cls) -> Self:
        """Return the map of every point to itself."""
        return cls(np.eye(3))

    @classmethod
    def of(cls, linear: ArrayLike, shift_um: ArrayLike) -> Self:
        """Return the affine map with this (2, 2) matrix and this shift x, y in um."""
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        matrix[:2, 2] = shift_um
        return cls(matrix)

    @property
    def linear(self) -> FloatArray:
        """Rotation, scale, shear and mirroring, shape (2, 2)."""
        return self.matrix[:2, :2]

    def forward(self, points_um: ArrayLike) -> FloatArray:
        """Map points of the moving section, (n, 2) um, to the fixed one, (n, 2) um."""
        points = np.asarray(points_um, np.float64).reshape(-1, 2)
        out: FloatArray = points @ self.linear.T + self.matrix[:2, 2]
        return out if self.field is None else out + self.field.at(points)

    def backward(self, points_um: ArrayLike) -> FloatArray:
        """Map points of the fixed section, (n, 2) um, to the moving one, (n, 2) um.

        Fixed-point iteration; converges where `steepness` is below 1, as `checked` makes sure.
        """
        target = np.asarray(points_um, np.float64).reshape(-1, 2)
        inverse = np.linalg.inv(self.matrix)
        linear, shift = inverse[:2, :2], inverse[:2, 2]
        found: FloatArray = target @ linear.T + shift
        if self.field is None or not len(target):
            return found
        for _ in range(_INVERSE_STEPS):
            following = (target - self.field.at(found)) @ linear.T + shift
            moved = float(np.abs(following - found).max())
            found = following
            if moved < _INVERSE_UM:
                break
        return found

    def then(self, other: Transform) -> Transform:
        """Return the map that applies this one first and `other` to its result.

        A displacement of `other` alone is sampled on a grid as fine as its own.
        """
        matrix = other.matrix @ self.matrix
        field = self.field
        if other.field is not None:
            field = field or self._pulled_back(other.field)
        if field is None:
            return Transform(matrix)
        nodes = field.nodes()
        exact = other.forward(self.forward(nodes))
        affine = nodes @ matrix[:2, :2].T + matrix[:2, 2]
        values = (exact - affine).reshape(field.values.shape)
        return Transform(matrix, Field(field.origin_um, field.step_um, values))

    def _pulled_back(self, field: Field) -> Field:
        """Empty grid of the moving section that covers a grid of the fixed one."""
        corners = self.backward(field.nodes())
        low, high = corners.min(axis=0), corners.max(axis=0)
        step = field.step_um / float(np.sqrt(abs(np.linalg.det(self.linear))))
        columns, rows = (np.ceil((high - low) / step).astype(int) + 1).tolist()
        return Field((float(low[0]), float(low[1])), step, np.zeros((rows, columns, 2)))

    def steepness(self) -> float:
        """Largest change of the displacement against the affine part; below 1 it is invertible."""
        if self.field is None or min(self.field.values.shape[:2]) < 2:
            return 0.0
        values = self.field.values @ np.linalg.inv(self.linear).T / self.field.step_um
        across = np.diff(values, axis=1)
        down = np.diff(values, axis=0)
        # inside a cell the Jacobian is a mixture of those at its corners
        corners = [
            np.stack([x, y], axis=-1)
            for x in (across[:-1], across[1:])
            for y in (down[:, :-1], down[:, 1:])
        ]
        return float(max(np.linalg.norm(c, ord=2, axis=(-2, -1)).max() for c in corners))

    def checked(self) -> Transform:
        """Return an invertible map: the displacement is smoothed until nothing folds."""
        out = self
        while out.field is not None and out.steepness() > _STEEPEST:
            values = ndimage.gaussian_filter(out.field.values, (1.0, 1.0, 0.0), mode="nearest")
            if np.allclose(values, out.field.values):
                return Transform(self.matrix)
            out = Transform(self.matrix, Field(out.field.origin_um, out.field.step_um, values))
        return out

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return JSON values and arrays that `restore` takes."""
        values: dict[str, Any] = {"matrix": self.matrix.tolist()}
        if self.field is None:
            return values, {}
        values |= {"origin_um": list(self.field.origin_um), "step_um": self.field.step_um}
        return values, {"field": self.field.values}

    @classmethod
    def restore(cls, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Make the transform that `state` described.

        Raises
        ------
        InputError
            If the values are not those of a transform.
        """
        try:
            matrix = np.asarray(values["matrix"], np.float64)
            if matrix.shape != (3, 3):
                raise ValueError(f"matrix has the shape {matrix.shape}")
            if "step_um" not in values:
                return cls(matrix)
            x, y = values["origin_um"]
            grid = np.asarray(arrays["field"], np.float64)
            return cls(matrix, Field((float(x), float(y)), float(values["step_um"]), grid))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"saved transform is damaged ({error}); register again") from error


def turned_against(one: Transform, other: Transform) -> float:
    """Angle between the orientations of two maps, degrees; 180 where one of them mirrors.

    Examples
    --------
    >>> quarter = Transform.of([[0.0, -1.0], [1.0, 0.0]], (0.0, 0.0))
    >>> turned_against(quarter, Transform.identity())
    90.0
    """
    between = other.linear.T @ one.linear
    if np.linalg.det(between) < 0:
        return 180.0
    angle = np.arctan2(between[1, 0] - between[0, 1], between[0, 0] + between[1, 1])
    return abs(float(np.degrees(angle)))
