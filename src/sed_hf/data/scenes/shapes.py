"""Shapes as signed distances: negative inside, positive outside, in units of the shape's radius.

Each shape lies about the origin and, but for a few percent, within the unit disc. It is put together from discs and
half-planes, minimum being union and maximum intersection. Close to an edge the result is the distance to it, which is
what anti-aliasing needs; far from edges it may be less.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.floating]  # (height, width)
SignedDistance: TypeAlias = Callable[[Plane, Plane], Plane]  # of coordinates x and y
Point: TypeAlias = tuple[float, float]


def _disc(x: Plane, y: Plane, radius: float) -> Plane:
    return np.hypot(x, y) - radius


def _box(x: Plane, y: Plane, half_width: float, half_height: float) -> Plane:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _right_of_line(x: Plane, y: Plane, start: Point, end: Point) -> Plane:
    """The half-plane outside the edge from `start` to `end` of a polygon that runs counter-clockwise."""
    delta_x, delta_y = end[0] - start[0], end[1] - start[1]
    length = math.hypot(delta_x, delta_y)
    return (x - start[0]) * (delta_y / length) - (y - start[1]) * (delta_x / length)


def circle(x: Plane, y: Plane) -> Plane:
    """Somewhat smaller than the unit disc."""
    return _disc(x, y, radius=0.88)


def square(x: Plane, y: Plane) -> Plane:
    """With sides along the axes."""
    return _box(x, y, half_width=0.72, half_height=0.72)


def triangle(x: Plane, y: Plane) -> Plane:
    """Equilateral."""
    corners = [(math.cos(angle), math.sin(angle)) for angle in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    edges = zip(corners, corners[1:] + corners[:1], strict=True)
    return np.maximum.reduce([_right_of_line(x, y, start, end) for start, end in edges])


def star(x: Plane, y: Plane) -> Plane:
    """Five points. All ten edges are rotations and mirror images of one, so the plane is folded onto it."""
    sector = 2 * math.pi / 5
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    folded_angle = np.abs(angle - sector * np.round(angle / sector))
    notch = (0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2))
    return _right_of_line(radius * np.cos(folded_angle), radius * np.sin(folded_angle), (1.0, 0.0), notch)


def cross(x: Plane, y: Plane) -> Plane:
    """Two bars of equal length."""
    return np.minimum(
        _box(x, y, half_width=0.95, half_height=0.28),
        _box(x, y, half_width=0.28, half_height=0.95),
    )


def ring(x: Plane, y: Plane) -> Plane:
    """With a hole of half its width."""
    return np.abs(_disc(x, y, radius=0.74)) - 0.21


def heart(x: Plane, y: Plane) -> Plane:
    """A kite on its tip, with half discs on its two upper sides, which are as long as the discs are wide."""
    radius, lobe_y, half_tip_angle = 0.5, 0.3, math.radians(38)
    cos, sin = math.cos(half_tip_angle), math.sin(half_tip_angle)
    x, y = np.abs(x) - radius * cos, y - lobe_y  # from the centre of the lobe
    outside_lower_side = cos * x - sin * y - radius
    outside_upper_side = sin * x + cos * y
    return np.minimum(_disc(x, y, radius), np.maximum(outside_lower_side, outside_upper_side))


def crescent(x: Plane, y: Plane) -> Plane:
    """A disc without another, which covers its right."""
    return np.maximum(_disc(x, y, radius=0.97), -_disc(x - 0.45, y, radius=0.78))


def diamond(x: Plane, y: Plane) -> Plane:
    """Twice as long as wide, since a square on its tip is still a square."""
    return _right_of_line(np.abs(x), np.abs(y), (0.5, 0.0), (0.0, 1.0))


def arrow(x: Plane, y: Plane) -> Plane:
    """Points along x."""
    shaft = _box(x + 0.45, y, half_width=0.5, half_height=0.17)
    head = np.maximum(_right_of_line(x, np.abs(y), (1.0, 0.0), (0.0, 0.7)), -x)
    return np.minimum(shaft, head)


def bar(x: Plane, y: Plane) -> Plane:
    """Five times as long as wide."""
    return _box(x, y, half_width=0.98, half_height=0.2)


def semicircle(x: Plane, y: Plane) -> Plane:
    """The upper half of a disc."""
    y = y + 0.42
    return np.maximum(_disc(x, y, radius=0.96), -y)


SIGNED_DISTANCES: dict[str, SignedDistance] = {
    shape.__name__: shape
    for shape in (circle, square, triangle, star, cross, ring, heart, crescent, diamond, arrow, bar, semicircle)
}
