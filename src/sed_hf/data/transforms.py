"""Training augmentation of an image and its label map, on 8-bit levels."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from ..image_processing_sed import shortest_edge_size

cv2.setNumThreads(0)  # a data loader's processes, forked from one with threads of OpenCV, would wait for those

PADDING_LEVEL = 128

Levels = NDArray[Any]  # of uint8
Labels = NDArray[Any]  # of integers


@dataclass(frozen=True)
class TrainingTransform:
    """Augmentation as SED trains: resize, random crop, colour jitter, horizontal flip, padding, in this order."""

    shortest_edge: int | None  # to which the shortest side is resized; `None` does not resize
    longest_edge: int  # at most, after that resize
    crop_size: int  # side of the random crop, to which smaller images are padded at the right and the bottom
    color_jitter: bool
    horizontal_flip: bool
    ignore_index: int  # label of padded pixels

    def __call__(self, image: Image.Image, label: Labels, rng: Generator) -> tuple[Levels, Labels]:
        """Augmented pixels (S, S, 3) and labels (S, S) of an RGB image and its label map (H, W)."""
        if self.shortest_edge is not None:
            height, width = shortest_edge_size(label.shape, self.shortest_edge, self.longest_edge)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            label = resize_nearest(label, (width, height))
        height, width = label.shape
        top = int(rng.integers(max(0, height - self.crop_size) + 1))
        left = int(rng.integers(max(0, width - self.crop_size) + 1))
        crop = np.s_[top : top + self.crop_size, left : left + self.crop_size]
        pixels, label = np.asarray(image)[crop], label[crop]
        if self.color_jitter:
            pixels = jitter_colors(pixels, rng)
        if self.horizontal_flip and rng.random() < 0.5:
            pixels, label = pixels[:, ::-1], label[:, ::-1]
        bottom, right = self.crop_size - label.shape[0], self.crop_size - label.shape[1]
        pixels = np.pad(pixels, ((0, bottom), (0, right), (0, 0)), constant_values=PADDING_LEVEL)
        return pixels, np.pad(label, ((0, bottom), (0, right)), constant_values=self.ignore_index)


def jitter_colors(pixels: Levels, rng: Generator) -> Levels:
    """Pixels (H, W, 3) after four steps, each taken with probability 1/2; each truncates levels to 8 bits.

    Brightness comes first; then with probability 1/2 contrast, saturation and hue, else saturation, hue and contrast.
    """
    levels = np.arange(256, dtype=np.float32)
    brightness = (None, levels + rng.uniform(-32, 32))
    contrast = (None, levels * rng.uniform(0.5, 1.5))
    saturation = (1, levels * rng.uniform(0.5, 1.5))
    hue = (0, (levels + int(rng.integers(-18, 18, endpoint=True))) % 180)
    others = (contrast, saturation, hue) if rng.random() < 0.5 else (saturation, hue, contrast)
    for channel, new_levels in (brightness, *others):
        if rng.random() < 0.5:
            pixels = _replace_levels(pixels, channel, np.clip(new_levels, 0, 255).astype(np.uint8))
    return pixels


def _replace_levels(pixels: Levels, hsv_channel: int | None, new_levels: Levels) -> Levels:
    """Pixels with other levels of one channel of HSV, or of all of RGB."""
    if hsv_channel is None:
        return cv2.LUT(pixels, new_levels)
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[..., hsv_channel] = cv2.LUT(hsv[..., hsv_channel], new_levels)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def resize_nearest(label: Labels, size: tuple[int, int]) -> Labels:
    """Labels (H, W) resized to a `size` of (width, height), each from the pixel at the floor of its source position."""
    return cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
