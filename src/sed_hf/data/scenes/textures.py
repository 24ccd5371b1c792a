"""Background textures: images of grass, sky, sand, water, brick, wood, snow and gravel.

A texture is a function of a random generator and a size that gives a (size, size, 3) float32 image in [0, 1]. Its
details are as many pixels wide at any size. Noise is cut from large tiles that are computed once, so that a texture
costs about a millisecond; the tiles come from fixed seeds, so that an image depends on its own generator only.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.float32]  # (height, width, 3), RGB in [0, 1]
Plane: TypeAlias = NDArray[np.float32]  # (height, width)
Texture: TypeAlias = Callable[[Generator, int], Pixels]
Color: TypeAlias = tuple[float, float, float]

_TILE_SIZE = 512


@cache
def _noise_tile(smoothness: float, aspect: float) -> Plane:
    """Periodic noise, (512, 512), mean 0 and deviation 1; arguments as of `_noise`."""
    rng = np.random.default_rng([round(100 * smoothness), round(100 * aspect)])
    frequency = np.fft.fftfreq(_TILE_SIZE)
    radius = np.hypot(frequency[None, :] * aspect, frequency[:, None])
    radius[0, 0] = np.inf  # no constant part
    spectrum = np.fft.fft2(rng.standard_normal((_TILE_SIZE, _TILE_SIZE))) * radius**-smoothness
    noise = np.fft.ifft2(spectrum).real
    return (noise / noise.std()).astype(np.float32)


@cache
def _pebble_tile(pebble_size: int = 8) -> tuple[Plane, Plane]:
    """Periodic Voronoi cells: the random grey level of a pixel's cell and its distance to the border, (512, 512)."""
    rng = np.random.default_rng(pebble_size)
    cells = _TILE_SIZE // pebble_size
    centres = rng.uniform(0, pebble_size, (2, cells, cells))
    greys = rng.uniform(0, 1, (cells, cells))
    y, x = np.mgrid[:_TILE_SIZE, :_TILE_SIZE]
    row, column = y // pebble_size, x // pebble_size
    distances, candidates = [], []
    for row_step in (-1, 0, 1):
        for column_step in (-1, 0, 1):
            neighbour = (row + row_step) % cells, (column + column_step) % cells
            centre_y = (row + row_step) * pebble_size + centres[0][neighbour]
            centre_x = (column + column_step) * pebble_size + centres[1][neighbour]
            distances.append(np.hypot(y - centre_y, x - centre_x))
            candidates.append(greys[neighbour])
    nearest = np.argsort(np.stack(distances), axis=0)
    first, second = np.take_along_axis(np.stack(distances), nearest[:2], axis=0)
    grey = np.take_along_axis(np.stack(candidates), nearest[:1], axis=0)[0]
    return grey.astype(np.float32), ((second - first) / 2).astype(np.float32)


def _window(rng: Generator, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of a random (size, size) window of a tile, which repeats beyond its borders."""
    top, left = rng.integers(_TILE_SIZE, size=2)
    steps = np.arange(size)
    return np.ix_((top + steps) % _TILE_SIZE, (left + steps) % _TILE_SIZE)


def _noise(rng: Generator, size: int, smoothness: float, aspect: float = 1.0) -> Plane:
    """A random piece of noise, (size, size), mean about 0 and deviation about 1.

    Args:
        rng: Chooses the piece.
        size: Height and width in pixels.
        smoothness: The exponent by which amplitudes fall with frequency: 0 is white noise, 2 gives clouds.
        aspect: How many times wider than high its features are.
    """
    return _noise_tile(smoothness, aspect)[_window(rng, size)]


def _mix(weight: Plane, low: Color, high: Color) -> Pixels:
    """Colours from `low` where the weight is 0 to `high` where it is 1."""
    weight = np.clip(weight, 0, 1)[..., None]
    start = np.asarray(low, dtype=np.float32)
    return start + weight * (np.asarray(high, dtype=np.float32) - start)


def grass(rng: Generator, size: int) -> Pixels:
    """Blades, which are higher than wide, in lighter and darker patches."""
    blades = _noise(rng, size, smoothness=0.6, aspect=0.2)
    patches = _noise(rng, size, smoothness=2.0)
    return _mix(0.45 + 0.25 * blades + 0.08 * patches, (0.10, 0.22, 0.05), (0.50, 0.60, 0.22))


def sky(rng: Generator, size: int) -> Pixels:
    """Blue, paler towards the bottom, with clouds."""
    clouds = _noise(rng, size, smoothness=1.9, aspect=2.0)
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    blue = _mix(np.broadcast_to(height, (size, size)), (0.30, 0.54, 0.87), (0.58, 0.79, 0.97))
    cover = rng.uniform(-1.0, 0.2)
    return blue + np.clip(0.4 * (clouds + cover), 0, 0.8)[..., None] * (np.float32(0.97) - blue)


def sand(rng: Generator, size: int) -> Pixels:
    """Grains on dunes."""
    grains = _noise(rng, size, smoothness=0.1)
    dunes = _noise(rng, size, smoothness=2.0, aspect=2.5)
    return _mix(0.5 + 0.15 * grains + 0.17 * dunes, (0.66, 0.54, 0.36), (0.93, 0.84, 0.66))


def water(rng: Generator, size: int) -> Pixels:
    """Waves with glints."""
    waves = _noise(rng, size, smoothness=1.2, aspect=5.0)
    body = _mix(0.4 + 0.25 * waves, (0.02, 0.22, 0.30), (0.25, 0.58, 0.62))
    glints = np.clip(waves - 1.5, 0, 1)
    return body + glints[..., None] * (np.float32(0.95) - body)


def brick(rng: Generator, size: int) -> Pixels:
    """Rows of bricks, every other shifted by half of one, in mortar."""
    height = int(rng.integers(9, 14))
    width = int(2.3 * height)
    top, left = rng.integers(1000, size=2)
    y, x = np.ogrid[top : top + size, left : left + size]
    row = y // height
    x = x + row % 2 * (width // 2)
    shades = rng.uniform(0.2, 0.8, (61, 61)).astype(np.float32)[row % 61, x // width % 61]  # repeats far apart
    bricks = _mix(shades + 0.12 * _noise(rng, size, smoothness=0.4), (0.42, 0.18, 0.13), (0.72, 0.38, 0.28))
    mortar = _mix(0.5 + 0.3 * _noise(rng, size, smoothness=0.0), (0.67, 0.64, 0.59), (0.81, 0.78, 0.73))
    is_mortar = (y % height < 2) | (x % width < 2)
    return np.where(is_mortar[..., None], mortar, bricks)


def wood(rng: Generator, size: int) -> Pixels:
    """Planks with grain along x."""
    plank_height = int(rng.integers(18, 30))
    row = (np.arange(size) + int(rng.integers(plank_height))) // plank_height
    grain_rows, grain_columns = _window(rng, size)
    # Each plank is cut from another place, so that the grain does not run on across the seams.
    shifts = rng.integers(_TILE_SIZE, size=row[-1] + 1)[row][:, None]
    grain = _noise_tile(smoothness=1.0, aspect=20.0)[grain_rows, (grain_columns + shifts) % _TILE_SIZE]
    shade = rng.uniform(-0.15, 0.15, row[-1] + 1).astype(np.float32)[row][:, None]
    planks = _mix(0.5 + shade + 0.2 * grain, (0.36, 0.22, 0.11), (0.74, 0.53, 0.32))
    planks[1:][np.diff(row) > 0] *= 0.45
    return planks


def snow(rng: Generator, size: int) -> Pixels:
    """A field of lumps, lit from the upper left."""
    height = _noise(rng, size + 1, smoothness=1.7, aspect=1.5)
    slope = 2 * height[1:, 1:] - height[:-1, 1:] - height[1:, :-1]
    sparkle = np.maximum(_noise(rng, size, smoothness=0.0) - 2.2, 0)
    return _mix(0.72 + 1.0 * slope + sparkle, (0.62, 0.70, 0.84), (0.97, 0.98, 1.0))


def gravel(rng: Generator, size: int) -> Pixels:
    """Pebbles with dark borders."""
    greys, border_distances = _pebble_tile()
    window = _window(rng, size)
    pebbles = _mix(greys[window], (0.36, 0.35, 0.34), (0.72, 0.70, 0.67))
    return pebbles * np.clip(0.35 + 0.3 * border_distances[window], 0, 1)[..., None]


TEXTURES: dict[str, Texture] = {
    texture.__name__: texture for texture in (grass, sky, sand, water, brick, wood, snow, gravel)
}
