"""Draws a scene: bands of background, objects on them from back to front, light and camera noise."""

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .colors import sample_color
from .shapes import SIGNED_DISTANCES, Plane, Point
from .textures import TEXTURES
from .vocabulary import BACKGROUND_IDS, COMPOSITION_IDS, Composition, Split, split_compositions

Pixels: TypeAlias = NDArray[np.float32]  # (height, width, 3), RGB in [0, 1]
Labels: TypeAlias = NDArray[np.int64]  # (height, width)

MIN_OBJECTS, MAX_OBJECTS = 6, 12
MIN_RADIUS, MAX_RADIUS = 0.06, 0.16  # of the image's size
MIN_CLEARANCE = 0.65  # between the centres of two objects, of the sum of their radii
SHADOW_LENGTH = 0.15  # of the object's radius
BACKGROUND_COUNT_PROBABILITIES = (0.25, 0.5, 0.25)  # of one, two and three backgrounds


class SceneObject(NamedTuple):
    """An object in its place; lengths in pixels."""

    composition: Composition
    center_x: float
    center_y: float
    radius: float
    rotation: float  # in radians

    def edge_distance(self, x: Plane, y: Plane) -> Plane:
        """Distance to the edge, negative inside, of points given from the object's centre."""
        cos, sin = math.cos(self.rotation) / self.radius, math.sin(self.rotation) / self.radius
        return self.radius * SIGNED_DISTANCES[self.composition.shape](cos * x + sin * y, cos * y - sin * x)


def render_scene(seed: int, index: int, split: Split = "test", size: int = 192) -> tuple[NDArray[np.uint8], Labels]:
    """Draw scene `index` of the endless sequence that `seed` and `split` determine.

    Splits share no scene, and scenes of "train" show no composition of `UNSEEN_COMPOSITIONS`.

    Args:
        seed: At least 0.
        index: At least 0.
        split: "train" or "test".
        size: Height and width in pixels. Objects grow with it, the details of textures do not.

    Returns:
        The image, (size, size, 3) uint8 RGB, and the class id of each pixel, (size, size) int64, as numbered by
        `scene_vocabulary`.

    Raises:
        ValueError: If seed or index is negative or the split unknown.
    """
    compositions = split_compositions(split)
    rng = np.random.default_rng([("train", "test").index(split), seed, index])
    image, labels = _draw_backgrounds(rng, size)
    light_direction = rng.uniform(0, 2 * math.pi)
    light = (math.cos(light_direction), math.sin(light_direction))
    for scene_object in _place_objects(rng, compositions, size):
        _draw_object(rng, image, labels, scene_object, light)
    return _photograph(rng, image), labels


def _draw_backgrounds(rng: Generator, size: int) -> tuple[Pixels, Labels]:
    """One to three textures above each other, parted by slanted, wavy lines, with sky on top if there is any."""
    count = 1 + rng.choice(len(BACKGROUND_COUNT_PROBABILITIES), p=BACKGROUND_COUNT_PROBABILITIES)
    names = sorted(rng.choice(list(TEXTURES), size=count, replace=False), key=lambda name: name != "sky")
    image = TEXTURES[names[0]](rng, size)
    labels = np.full((size, size), BACKGROUND_IDS[names[0]], dtype=np.int64)
    rows = np.arange(size, dtype=np.float32)[:, None]
    for band, name in enumerate(names[1:], start=1):
        depth = rows - _band_border(rng, (band + rng.uniform(-0.2, 0.2)) / count, size)
        image += np.clip(depth + 0.5, 0, 1)[..., None] * (TEXTURES[name](rng, size) - image)
        labels[depth > 0] = BACKGROUND_IDS[name]
    return image, labels


def _band_border(rng: Generator, height: float, size: int) -> NDArray[np.float32]:
    """The row at which a band begins in each column, (size,), about `height` of the image from the top."""
    x = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope, amplitude = rng.uniform(-0.2, 0.2), rng.uniform(0, 0.025)
    waves, phase = rng.uniform(1, 4), rng.uniform(0, 2 * math.pi)
    return size * (height + slope * x + amplitude * np.sin(2 * math.pi * waves * x + phase))


def _place_objects(rng: Generator, compositions: tuple[Composition, ...], size: int) -> list[SceneObject]:
    """Objects from back to front that overlap, but leave enough of each other to be recognised."""
    objects: list[SceneObject] = []
    for _ in range(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)):
        radius = size * rng.uniform(MIN_RADIUS, MAX_RADIUS)
        center_x, center_y = _free_place(rng, objects, radius, size)
        composition = compositions[rng.integers(len(compositions))]
        objects.append(SceneObject(composition, center_x, center_y, radius, rng.uniform(0, 2 * math.pi)))
    return objects


def _free_place(rng: Generator, objects: list[SceneObject], radius: float, size: int) -> tuple[float, float]:
    """Of a dozen random centres the first that is far enough from other objects, or else the one that is farthest."""
    # Half an object may lie beyond the image's border, never its centre.
    centers = rng.uniform(0.5 * radius, size - 0.5 * radius, (12, 2))
    if not objects:
        return float(centers[0, 0]), float(centers[0, 1])
    others = np.array([(other.center_x, other.center_y) for other in objects])
    radii = np.array([other.radius for other in objects])
    distances = np.linalg.norm(centers[:, None] - others[None], axis=-1)
    clearance = np.minimum((distances / (radius + radii)).min(axis=1), MIN_CLEARANCE)
    center_x, center_y = centers[clearance.argmax()]
    return float(center_x), float(center_y)


def _draw_object(rng: Generator, image: Pixels, labels: Labels, scene_object: SceneObject, light: Point) -> None:
    """Draw an object and its shadow into `image` and `labels`."""
    radius = scene_object.radius
    reach = (1 + SHADOW_LENGTH) * radius + 2
    rows, columns = (_span(c, reach, len(labels)) for c in (scene_object.center_y, scene_object.center_x))
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - scene_object.center_y
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] - scene_object.center_x
    edge_distance = scene_object.edge_distance(x, y)

    patch = image[rows, columns]
    patch *= 1 - _shadow(scene_object, x, y, light)[..., None]
    shading = _shading(rng, x / radius, y / radius, edge_distance / radius, light)
    surface = sample_color(rng, scene_object.composition.color) * shading[..., None]
    patch += _coverage(edge_distance)[..., None] * (surface - patch)
    labels[rows, columns][edge_distance < 0] = COMPOSITION_IDS[scene_object.composition]


def _shadow(scene_object: SceneObject, x: Plane, y: Plane, light: Point) -> Plane:
    """How much light the object keeps from what lies under it, with a soft edge three pixels wide."""
    length = SHADOW_LENGTH * scene_object.radius
    return 0.4 * _coverage(scene_object.edge_distance(x + length * light[0], y + length * light[1]) / 3)


def _shading(rng: Generator, x: Plane, y: Plane, edge_distance: Plane, light: Point) -> Plane:
    """Brightness of a surface about 1, for coordinates in radii: more towards the light, less along the rim."""
    rim = np.clip(1 + edge_distance / 0.12, 0, 1)
    return 1 + rng.uniform(0.05, 0.18) * (x * light[0] + y * light[1]) - 0.25 * rim


def _coverage(edge_distance: Plane) -> Plane:
    """The part of each pixel that lies inside an edge, which anti-aliases it."""
    return np.clip(0.5 - edge_distance, 0, 1)


def _span(center: float, reach: float, size: int) -> slice:
    return slice(max(0, math.floor(center - reach)), min(size, math.ceil(center + reach) + 1))


def _photograph(rng: Generator, image: Pixels) -> NDArray[np.uint8]:
    """Uneven light, exposure, grain, and eight bits a channel."""
    size = len(image)
    across = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    tilt_x, tilt_y = rng.uniform(-0.15, 0.15, 2)
    light = rng.uniform(0.88, 1.08) + tilt_x * across[None, :] + tilt_y * across[:, None]
    image *= light[..., None]
    image += rng.uniform(0.005, 0.03) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
