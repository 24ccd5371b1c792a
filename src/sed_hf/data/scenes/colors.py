"""The colours of objects: each name stands for a small range of hue, saturation and brightness."""

import colorsys
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


class ColorRange(NamedTuple):
    """Bounds that keep a colour away from its neighbours: hue in degrees, saturation and value in [0, 1]."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


COLOR_RANGES: dict[str, ColorRange] = {
    "red": ColorRange((-6, 4), (0.85, 1.0), (0.75, 0.95)),
    "orange": ColorRange((23, 31), (0.88, 1.0), (0.92, 1.0)),
    "yellow": ColorRange((52, 58), (0.8, 1.0), (0.92, 1.0)),
    "green": ColorRange((120, 140), (0.75, 1.0), (0.55, 0.75)),
    "blue": ColorRange((222, 236), (0.8, 1.0), (0.7, 0.95)),
    "purple": ColorRange((278, 292), (0.6, 0.85), (0.5, 0.7)),
    "white": ColorRange((0, 360), (0.0, 0.04), (0.95, 1.0)),
    "black": ColorRange((0, 360), (0.0, 0.2), (0.04, 0.12)),
}


def sample_color(rng: Generator, name: str) -> NDArray[np.float32]:
    """A random shade of a named colour: (3,) RGB in [0, 1]."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in COLOR_RANGES[name])
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value), dtype=np.float32)
