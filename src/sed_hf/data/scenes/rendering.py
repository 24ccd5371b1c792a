"""Draws scenes: bands of background, objects on them from back to front, light and camera noise."""

import colorsys
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from .shapes import Plane, Point, signed_distance
from .textures import TEXTURES, Pixels
from .vocabulary import BACKGROUNDS, COMPOSITIONS, SEEN_COMPOSITIONS, Composition, Split, scene_vocabulary, seen_classes

Labels: TypeAlias = NDArray[np.int64]  # (height, width)

MIN_OBJECTS, MAX_OBJECTS = 6, 12
MIN_RADIUS, MAX_RADIUS = 0.06, 0.16  # of the image's size
MIN_CLEARANCE = 0.65  # between the centres of two objects, of the sum of their radii
SHADOW_LENGTH = 0.15  # of the object's radius
COLOR_RANGES = {  # hue in degrees, saturation and value
    "red": ((-6, 4), (0.85, 1.0), (0.75, 0.95)),
    "orange": ((23, 31), (0.88, 1.0), (0.92, 1.0)),
    "yellow": ((52, 58), (0.8, 1.0), (0.92, 1.0)),
    "green": ((120, 140), (0.75, 1.0), (0.55, 0.75)),
    "blue": ((222, 236), (0.8, 1.0), (0.7, 0.95)),
    "purple": ((278, 292), (0.6, 0.85), (0.5, 0.7)),
    "white": ((0, 360), (0.0, 0.04), (0.95, 1.0)),
    "black": ((0, 360), (0.0, 0.2), (0.04, 0.12)),
}


@dataclass
class SceneDataset(Dataset[dict[str, Any]]):
    """Scenes drawn on demand, the same in every process and at every access.

    An item is a dict of `image`, an RGB image; `label`, a (size, size) int64 array of class ids, without ignored
    pixels; and `file_name`, which names the scene in messages.
    """

    split: Split  # "train" shows and names 72 compositions only; "test" shows all 96
    length: int
    seed: int = 0
    size: int = 192  # height and width in pixels

    @property
    def class_names(self) -> list[str]:
        """The names for the ids of labels: `seen_classes()` in training, `scene_vocabulary()` in test."""
        return seen_classes() if self.split == "train" else scene_vocabulary()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} is outside the set of {self.length} scenes")
        image, label = render_scene(self.seed, index, self.split, self.size)
        file_name = f"scene-{self.split}-seed{self.seed}-{index:06d}"
        return {"image": Image.fromarray(image), "label": label, "file_name": file_name}


@dataclass
class _SceneObject:
    composition: Composition
    center: NDArray[np.floating]  # x and y, in pixels as the radius
    radius: float
    rotation: float

    def edge_distance(self, x: Plane, y: Plane) -> Plane:
        """Distance to the edge, negative inside, of points given from the object's centre."""
        cos, sin = math.cos(self.rotation) / self.radius, math.sin(self.rotation) / self.radius
        return self.radius * signed_distance(self.composition[1], cos * x + sin * y, cos * y - sin * x)


def render_scene(seed: int, index: int, split: Split = "test", size: int = 192) -> tuple[NDArray[np.uint8], Labels]:
    """Draw scene `index` of the endless sequence that `seed` and `split` determine.

    Objects grow with the size, the details of textures do not. Splits share no scene.

    Returns:
        The image, (size, size, 3) uint8 RGB, and the class id of each pixel, (size, size) int64, as numbered by
        `scene_vocabulary`.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    rng = np.random.default_rng([int(split == "test"), seed, index])
    image, labels = _draw_backgrounds(rng, size)
    light_direction = rng.uniform(0, 2 * math.pi)
    light = (math.cos(light_direction), math.sin(light_direction))
    for scene_object in _place_objects(rng, SEEN_COMPOSITIONS if split == "train" else COMPOSITIONS, size):
        _draw_object(rng, image, labels, scene_object, light)
    return _photograph(rng, image), labels


def _draw_backgrounds(rng: Generator, size: int) -> tuple[Pixels, Labels]:
    """One to three textures above each other, parted by slanted, wavy lines, with sky on top if there is any."""
    count = 1 + rng.choice(3, p=(0.25, 0.5, 0.25))
    names = sorted(rng.choice(list(TEXTURES), size=count, replace=False), key=lambda name: name != "sky")
    ids = [list(BACKGROUNDS).index(name) for name in names]
    image = TEXTURES[names[0]](rng, size)
    labels = np.full((size, size), ids[0], dtype=np.int64)
    rows = np.arange(size, dtype=np.float32)[:, None]
    for band in range(1, count):
        depth = rows - _band_border(rng, (band + rng.uniform(-0.2, 0.2)) / count, size)
        image += np.clip(depth + 0.5, 0, 1)[..., None] * (TEXTURES[names[band]](rng, size) - image)
        labels[depth > 0] = ids[band]
    return image, labels


def _band_border(rng: Generator, height: float, size: int) -> NDArray[np.float32]:
    """The row at which a band begins in each column, (size,), about `height` of the image from the top."""
    x = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope, amplitude = rng.uniform(-0.2, 0.2), rng.uniform(0, 0.025)
    waves, phase = rng.uniform(1, 4), rng.uniform(0, 2 * math.pi)
    return size * (height + slope * x + amplitude * np.sin(2 * math.pi * waves * x + phase))


def _place_objects(rng: Generator, compositions: list[Composition], size: int) -> list[_SceneObject]:
    """Objects from back to front that overlap, but leave enough of each other to be recognised."""
    objects: list[_SceneObject] = []
    for _ in range(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)):
        radius = size * rng.uniform(MIN_RADIUS, MAX_RADIUS)
        # Half an object may lie beyond the image's border, never its centre.
        centers = rng.uniform(0.5 * radius, size - 0.5 * radius, (12, 2))
        # The first centre that is far enough from other objects, or else the one that is farthest.
        clearance = np.full(12, MIN_CLEARANCE)
        for other in objects:
            distance = np.linalg.norm(centers - other.center, axis=-1)
            clearance = np.minimum(clearance, distance / (radius + other.radius))
        composition = compositions[rng.integers(len(compositions))]
        rotation = rng.uniform(0, 2 * math.pi)
        objects.append(_SceneObject(composition, centers[clearance.argmax()], radius, rotation))
    return objects


def _draw_object(rng: Generator, image: Pixels, labels: Labels, scene_object: _SceneObject, light: Point) -> None:
    """Draw an object and its shadow into `image` and `labels`."""
    radius, (center_x, center_y) = scene_object.radius, scene_object.center.tolist()
    reach = (1 + SHADOW_LENGTH) * radius + 2
    rows, columns = (
        slice(max(0, math.floor(center - reach)), min(len(labels), math.ceil(center + reach) + 1))
        for center in (center_y, center_x)
    )
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - center_y
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] - center_x
    edge_distance = scene_object.edge_distance(x, y)
    patch = image[rows, columns]

    length = SHADOW_LENGTH * radius
    shadow = _coverage(scene_object.edge_distance(x + length * light[0], y + length * light[1]) / 3)
    patch *= 1 - (0.4 * shadow)[..., None]

    # Brighter towards the light, darker along the rim.
    rim = np.clip(1 + edge_distance / radius / 0.12, 0, 1)
    shading = 1 + rng.uniform(0.05, 0.18) * (x / radius * light[0] + y / radius * light[1]) - 0.25 * rim
    surface = _sample_color(rng, scene_object.composition[0]) * shading[..., None]
    patch += _coverage(edge_distance)[..., None] * (surface - patch)
    labels[rows, columns][edge_distance < 0] = len(BACKGROUNDS) + COMPOSITIONS.index(scene_object.composition)


def _sample_color(rng: Generator, name: str) -> NDArray[np.float32]:
    hue, saturation, value = (rng.uniform(low, high) for low, high in COLOR_RANGES[name])
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value), dtype=np.float32)


def _coverage(edge_distance: Plane) -> Plane:
    """The part of each pixel that lies inside an edge, which anti-aliases it."""
    return np.clip(0.5 - edge_distance, 0, 1)


def _photograph(rng: Generator, image: Pixels) -> NDArray[np.uint8]:
    """Uneven light, exposure, grain, and eight bits a channel."""
    across = np.linspace(-0.5, 0.5, len(image), dtype=np.float32)
    tilt_x, tilt_y = rng.uniform(-0.15, 0.15, 2)
    light = rng.uniform(0.88, 1.08) + tilt_x * across[None, :] + tilt_y * across[:, None]
    image *= light[..., None]
    image += rng.uniform(0.005, 0.03) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
