"""Training augmentation against section 8 of the specification, on 8-bit levels."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from sed_hf.data.transforms import TrainingTransform, jitter_colors


def transform(**settings: Any) -> TrainingTransform:
    defaults = {"shortest_edge": None, "longest_edge": 400, "crop_size": 64, "color_jitter": False}
    return TrainingTransform(**(defaults | {"horizontal_flip": False, "ignore_index": 255} | settings))


def numbered_pair(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """An image whose levels equal its labels."""
    label = np.arange(height * width, dtype=np.int32).reshape(height, width) % 100
    return Image.fromarray(np.stack([label] * 3, axis=-1).astype(np.uint8)), label


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class TestGeometry:
    @pytest.mark.parametrize("flip", [False, True])
    def test_image_and_label_are_cropped_and_flipped_together(self, flip: bool, rng: np.random.Generator) -> None:
        crops = [transform(horizontal_flip=flip)(*numbered_pair(80, 100), rng) for _ in range(8)]
        for pixels, labels in crops:
            assert pixels.shape == (64, 64, 3)
            np.testing.assert_array_equal(pixels[..., 0], labels)
        directions = {bool(labels[0, 1] == (labels[0, 0] + 1) % 100) for _, labels in crops}
        assert directions == ({True, False} if flip else {True})

    @pytest.mark.parametrize(("size", "expected"), [((50, 75), (64, 96)), ((10, 100), (40, 400))])
    def test_shortest_side_is_resized_up_to_the_cap(self, size: Any, expected: Any, rng: np.random.Generator) -> None:
        _, labels = transform(shortest_edge=64, crop_size=416)(*numbered_pair(*size), rng)
        occupied = labels != 255
        assert (occupied.any(1).sum(), occupied.any(0).sum()) == expected
        assert set(np.unique(labels)) <= {*range(100), 255}

    def test_padding_is_128_at_the_right_and_the_bottom_after_jitter_and_flip(self, rng: np.random.Generator) -> None:
        image = Image.fromarray(rng.integers(130, 256, (200, 800, 3), dtype=np.uint8))
        label = np.zeros((200, 800), np.int32)
        augment = transform(shortest_edge=24, color_jitter=True, horizontal_flip=True)
        for _ in range(50):
            pixels, labels = augment(image, label, rng)
            assert (pixels[24:] == 128).all()
            assert (labels[:24] == 0).all()
            assert (labels[24:] == 255).all()
        pixels, _ = augment(image.transpose(Image.Transpose.ROTATE_90), label.T, rng)
        assert (pixels[:, 24:] == 128).all()


def plain_step(pixels: np.ndarray, channel: int | None, formula: Callable[[np.float32], float]) -> np.ndarray:
    """A formula for each level of an image, or of a channel of HSV, truncated to 8 bits."""
    space = pixels.copy() if channel is None else cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    levels = space if channel is None else space[..., channel]
    for index in np.ndindex(levels.shape):
        levels[index] = int(min(max(formula(np.float32(levels[index])), 0), 255))
    return space if channel is None else cv2.cvtColor(space, cv2.COLOR_HSV2RGB)


def plain_jitter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shift, contrast, saturation = (np.float32(rng.uniform(*bounds)) for bounds in ((-32, 32), (0.5, 1.5), (0.5, 1.5)))
    hue = rng.integers(-18, 18, endpoint=True)
    steps: list[tuple[int | None, Callable]] = [
        (None, lambda level: level * contrast),
        (1, lambda level: level * saturation),
        (0, lambda level: (level + hue) % 180),
    ]
    if rng.random() >= 0.5:
        steps = steps[1:] + steps[:1]
    for channel, formula in [(None, lambda level: level + shift), *steps]:
        if rng.random() < 0.5:
            pixels = plain_step(pixels, channel, formula)
    return pixels


def test_jitter_equals_the_formulas_of_its_steps_in_both_orders(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (25, 40, 3), dtype=np.uint8)
    for seed in range(16):
        actual, expected = (jitter(pixels, np.random.default_rng(seed)) for jitter in (jitter_colors, plain_jitter))
        np.testing.assert_array_equal(actual, expected)
