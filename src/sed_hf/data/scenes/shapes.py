"""The shapes of objects as signed distances, from discs and half-planes: minimum is union, maximum intersection."""

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.floating]  # (height, width)
Point: TypeAlias = tuple[float, float]


def signed_distance(shape: str, x: Plane, y: Plane) -> Plane:
    """Distance to the edge of a shape about the origin, of radius about 1; negative inside, exact close to the edge."""
    match shape:
        case "circle":
            return _disc(x, y, 0.88)
        case "square":
            return _box(x, y, 0.72, 0.72)
        case "triangle":
            corners = [(math.cos(angle), math.sin(angle)) for angle in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
            edges = zip(corners, corners[1:] + corners[:1], strict=True)
            return np.maximum.reduce([_right_of_line(x, y, start, end) for start, end in edges])
        case "star":  # all ten edges are rotations and mirror images of one, so the plane is folded onto it
            sector = 2 * math.pi / 5
            radius, angle = np.hypot(x, y), np.arctan2(y, x)
            angle = np.abs(angle - sector * np.round(angle / sector))
            notch = (0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2))
            return _right_of_line(radius * np.cos(angle), radius * np.sin(angle), (1.0, 0.0), notch)
        case "cross":
            return np.minimum(_box(x, y, 0.95, 0.28), _box(x, y, 0.28, 0.95))
        case "ring":
            return np.abs(_disc(x, y, 0.74)) - 0.21
        case "heart":  # a kite on its tip, with half discs on its two upper sides
            cos, sin = math.cos(math.radians(38)), math.sin(math.radians(38))
            x, y = np.abs(x) - 0.5 * cos, y - 0.3  # from the centre of the half disc
            return np.minimum(_disc(x, y, 0.5), np.maximum(cos * x - sin * y - 0.5, sin * x + cos * y))
        case "crescent":
            return np.maximum(_disc(x, y, 0.97), -_disc(x - 0.45, y, 0.78))
        case "diamond":
            return _right_of_line(np.abs(x), np.abs(y), (0.5, 0.0), (0.0, 1.0))
        case "arrow":
            head = np.maximum(_right_of_line(x, np.abs(y), (1.0, 0.0), (0.0, 0.7)), -x)
            return np.minimum(_box(x + 0.45, y, 0.5, 0.17), head)
        case "bar":
            return _box(x, y, 0.98, 0.2)
        case "semicircle":
            return np.maximum(_disc(x, y + 0.42, 0.96), -(y + 0.42))
    raise ValueError(f"unknown shape {shape!r}")


def _disc(x: Plane, y: Plane, radius: float) -> Plane:
    return np.hypot(x, y) - radius


def _box(x: Plane, y: Plane, half_width: float, half_height: float) -> Plane:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _right_of_line(x: Plane, y: Plane, start: Point, end: Point) -> Plane:
    """The half-plane outside the edge from `start` to `end` of a polygon that runs counter-clockwise."""
    delta_x, delta_y = end[0] - start[0], end[1] - start[1]
    length = math.hypot(delta_x, delta_y)
    return (x - start[0]) * (delta_y / length) - (y - start[1]) * (delta_x / length)
