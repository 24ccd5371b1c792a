"""Background textures: functions of a random generator and a size that give a (size, size, 3) float32 image in [0, 1].

Noise is cut from large tiles of fixed seeds, computed once: a texture costs about a millisecond.
"""

from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.float32]  # (height, width, 3), RGB in [0, 1]
Plane: TypeAlias = NDArray[np.float32]  # (height, width)
Color: TypeAlias = tuple[float, float, float]

TILE_SIZE = 512
PEBBLE_SIZE = 8


@cache
def _noise_tile(smoothness: float, aspect: float) -> Plane:
    """Periodic noise, mean 0 and deviation 1; arguments as of `_noise`."""
    rng = np.random.default_rng([round(100 * smoothness), round(100 * aspect)])
    frequency = np.fft.fftfreq(TILE_SIZE)
    radius = np.hypot(frequency[None, :] * aspect, frequency[:, None])
    radius[0, 0] = np.inf  # no constant part
    spectrum = np.fft.fft2(rng.standard_normal((TILE_SIZE, TILE_SIZE))) * radius**-smoothness
    noise = np.fft.ifft2(spectrum).real
    return (noise / noise.std()).astype(np.float32)


@cache
def _pebble_tile() -> tuple[Plane, Plane]:
    """Periodic Voronoi cells: the random grey level of a pixel's cell, and its distance to the border."""
    rng = np.random.default_rng(PEBBLE_SIZE)
    cells = TILE_SIZE // PEBBLE_SIZE
    centres = rng.uniform(0, PEBBLE_SIZE, (2, cells, cells))
    greys = rng.uniform(0, 1, (cells, cells))
    y, x = np.mgrid[:TILE_SIZE, :TILE_SIZE]
    distances, candidates = [], []
    for row_step in (-1, 0, 1):
        for column_step in (-1, 0, 1):
            row, column = y // PEBBLE_SIZE + row_step, x // PEBBLE_SIZE + column_step
            cell = row % cells, column % cells
            offset_y = y - (row * PEBBLE_SIZE + centres[0][cell])
            offset_x = x - (column * PEBBLE_SIZE + centres[1][cell])
            distances.append(np.hypot(offset_y, offset_x))
            candidates.append(greys[cell])
    nearest = np.argsort(np.stack(distances), axis=0)
    first, second = np.take_along_axis(np.stack(distances), nearest[:2], axis=0)
    grey = np.take_along_axis(np.stack(candidates), nearest[:1], axis=0)[0]
    return grey.astype(np.float32), ((second - first) / 2).astype(np.float32)


def _window(rng: Generator, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of a random (size, size) window of a tile, which repeats beyond its borders."""
    top, left = rng.integers(TILE_SIZE, size=2)
    steps = np.arange(size)
    return np.ix_((top + steps) % TILE_SIZE, (left + steps) % TILE_SIZE)


def _noise(rng: Generator, size: int, smoothness: float, aspect: float = 1.0) -> Plane:
    """A random piece of noise: smoothness 0 is white, 2 gives clouds; features are `aspect` times wider than high."""
    return _noise_tile(smoothness, aspect)[_window(rng, size)]


def _mix(weight: Plane, low: Color, high: Color) -> Pixels:
    """Colours from `low` where the weight is 0 to `high` where it is 1."""
    weight = np.clip(weight, 0, 1)[..., None]
    start = np.asarray(low, dtype=np.float32)
    return start + weight * (np.asarray(high, dtype=np.float32) - start)


def _grass(rng: Generator, size: int) -> Pixels:
    blades = _noise(rng, size, 0.6, aspect=0.2)
    patches = _noise(rng, size, 2.0)
    return _mix(0.45 + 0.25 * blades + 0.08 * patches, (0.10, 0.22, 0.05), (0.50, 0.60, 0.22))


def _sky(rng: Generator, size: int) -> Pixels:
    clouds = _noise(rng, size, 1.9, aspect=2.0)
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    blue = _mix(np.broadcast_to(height, (size, size)), (0.30, 0.54, 0.87), (0.58, 0.79, 0.97))
    cover = rng.uniform(-1.0, 0.2)
    return blue + np.clip(0.4 * (clouds + cover), 0, 0.8)[..., None] * (np.float32(0.97) - blue)


def _sand(rng: Generator, size: int) -> Pixels:
    grains = _noise(rng, size, 0.1)
    dunes = _noise(rng, size, 2.0, aspect=2.5)
    return _mix(0.5 + 0.15 * grains + 0.17 * dunes, (0.66, 0.54, 0.36), (0.93, 0.84, 0.66))


def _water(rng: Generator, size: int) -> Pixels:
    waves = _noise(rng, size, 1.2, aspect=5.0)
    body = _mix(0.4 + 0.25 * waves, (0.02, 0.22, 0.30), (0.25, 0.58, 0.62))
    return body + np.clip(waves - 1.5, 0, 1)[..., None] * (np.float32(0.95) - body)  # with glints


def _brick(rng: Generator, size: int) -> Pixels:
    height = int(rng.integers(9, 14))
    width = int(2.3 * height)
    top, left = rng.integers(1000, size=2)
    y, x = np.ogrid[top : top + size, left : left + size]
    row = y // height
    x = x + row % 2 * (width // 2)
    shades = rng.uniform(0.2, 0.8, (61, 61)).astype(np.float32)[row % 61, x // width % 61]  # repeats far apart
    bricks = _mix(shades + 0.12 * _noise(rng, size, 0.4), (0.42, 0.18, 0.13), (0.72, 0.38, 0.28))
    mortar = _mix(0.5 + 0.3 * _noise(rng, size, 0.0), (0.67, 0.64, 0.59), (0.81, 0.78, 0.73))
    is_mortar = (y % height < 2) | (x % width < 2)
    return np.where(is_mortar[..., None], mortar, bricks)


def _wood(rng: Generator, size: int) -> Pixels:
    plank_height = int(rng.integers(18, 30))
    row = (np.arange(size) + int(rng.integers(plank_height))) // plank_height
    grain_rows, grain_columns = _window(rng, size)
    # Each plank is cut from another place, so that the grain does not run on across the seams.
    shifts = rng.integers(TILE_SIZE, size=row[-1] + 1)[row][:, None]
    grain = _noise_tile(1.0, 20.0)[grain_rows, (grain_columns + shifts) % TILE_SIZE]
    shade = rng.uniform(-0.15, 0.15, row[-1] + 1).astype(np.float32)[row][:, None]
    planks = _mix(0.5 + shade + 0.2 * grain, (0.36, 0.22, 0.11), (0.74, 0.53, 0.32))
    planks[1:][np.diff(row) > 0] *= 0.45
    return planks


def _snow(rng: Generator, size: int) -> Pixels:
    height = _noise(rng, size + 1, 1.7, aspect=1.5)
    slope = 2 * height[1:, 1:] - height[:-1, 1:] - height[1:, :-1]  # lit from the upper left
    sparkle = np.maximum(_noise(rng, size, 0.0) - 2.2, 0)
    return _mix(0.72 + 1.0 * slope + sparkle, (0.62, 0.70, 0.84), (0.97, 0.98, 1.0))


def _gravel(rng: Generator, size: int) -> Pixels:
    greys, border_distances = _pebble_tile()
    window = _window(rng, size)
    pebbles = _mix(greys[window], (0.36, 0.35, 0.34), (0.72, 0.70, 0.67))
    return pebbles * np.clip(0.35 + 0.3 * border_distances[window], 0, 1)[..., None]


TEXTURES = {
    "grass": _grass,
    "sky": _sky,
    "sand": _sand,
    "water": _water,
    "brick": _brick,
    "wood": _wood,
    "snow": _snow,
    "gravel": _gravel,
}
