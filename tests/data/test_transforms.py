"""Training augmentation against section 8 of the specification, on 8-bit levels."""

import colorsys
import math
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.random import Generator
from PIL import Image

from sed_hf.data.transforms import (
    TrainingTransform,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    jitter_colors,
    shift_hue,
)


def generator(seed: int = 0) -> Generator:
    return np.random.default_rng(seed)


def transform(**settings: Any) -> TrainingTransform:
    defaults = {"shortest_edge": None, "longest_edge": 400, "crop_size": 64, "color_jitter": False}
    return TrainingTransform(**(defaults | {"horizontal_flip": False, "ignore_index": 255} | settings))


def numbered_pair(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """An image whose levels equal its labels."""
    label = np.arange(height * width, dtype=np.int32).reshape(height, width) % 100
    return Image.fromarray(np.stack([label] * 3, axis=-1).astype(np.uint8)), label


def image_of_mean_126() -> np.ndarray:
    """Levels as wide apart as those of a photograph: with a standard deviation of 58."""
    levels = np.clip(generator().normal(125.5, 60, (64, 64, 3)), 0, 255).round().astype(np.uint8)
    assert levels.mean() == pytest.approx(126, abs=0.1)
    return levels


class TestGeometry:
    @pytest.mark.parametrize("flip", [False, True])
    def test_image_and_label_are_cropped_and_flipped_together(self, flip: bool) -> None:
        image, label = numbered_pair(80, 100)
        rng = generator()
        crops = [transform(horizontal_flip=flip)(image, label, rng) for _ in range(8)]
        for pixels, labels in crops:
            assert pixels.shape == (64, 64, 3)
            np.testing.assert_array_equal(pixels[..., 0], labels)
        directions = {bool(labels[0, 1] == (labels[0, 0] + 1) % 100) for _, labels in crops}
        assert directions == ({True, False} if flip else {True})

    @pytest.mark.parametrize(("size", "expected"), [((50, 75), (64, 96)), ((10, 100), (40, 400))])
    def test_shortest_side_is_resized_up_to_the_cap(self, size: tuple[int, int], expected: tuple[int, int]) -> None:
        image, label = numbered_pair(*size)
        _, labels = transform(shortest_edge=64, crop_size=416)(image, label, generator())
        occupied = labels != 255
        assert (occupied.any(1).sum(), occupied.any(0).sum()) == expected
        assert set(np.unique(labels)) <= {*range(100), 255}

    def test_padding_is_128_at_the_right_and_the_bottom_after_any_jitter_and_flip(self) -> None:
        image = Image.fromarray(generator().integers(130, 256, (200, 800, 3), dtype=np.uint8))
        label = np.zeros((200, 800), np.int32)
        augment = transform(shortest_edge=24, crop_size=64, color_jitter=True, horizontal_flip=True)
        rng = generator()
        for _ in range(50):
            pixels, labels = augment(image, label, rng)
            assert (pixels[24:] == 128).all()
            assert (labels[24:] == 255).all()
            assert (labels[:24] == 0).all()
        narrow, labels = augment(image.transpose(Image.Transpose.ROTATE_90), label.T, rng)
        assert (narrow[:, 24:] == 128).all()
        assert (labels[:, 24:] == 255).all()

    def test_a_seed_gives_the_same_augmentation_again(self) -> None:
        image, label = numbered_pair(80, 100)
        augment = transform(color_jitter=True, horizontal_flip=True)
        first, again, other = (augment(image, label, generator(seed))[0] for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


class TestColorSteps:
    """Each step on 1,000 random pixels."""

    @pytest.fixture
    def pixels(self) -> np.ndarray:
        return generator().integers(0, 256, (25, 40, 3), dtype=np.uint8)

    @staticmethod
    def truncated(level: np.float32) -> int:
        return int(min(max(level, 0), 255))

    @pytest.mark.parametrize("shift", [-32.0, -0.25, 17.6])
    def test_brightness_adds_a_number(self, pixels: np.ndarray, shift: float) -> None:
        expected = [self.truncated(np.float32(level) + np.float32(shift)) for level in pixels.ravel()]
        assert adjust_brightness(pixels, shift).ravel().tolist() == expected

    @pytest.mark.parametrize("factor", [0.5, 0.77, 1.5])
    def test_contrast_multiplies_about_0(self, pixels: np.ndarray, factor: float) -> None:
        expected = [self.truncated(np.float32(level) * np.float32(factor)) for level in pixels.ravel()]
        assert adjust_contrast(pixels, factor).ravel().tolist() == expected

    @pytest.mark.parametrize("factor", [0.5, 0.77, 1.5])
    def test_saturation_multiplies_s_of_hsv(self, pixels: np.ndarray, factor: float) -> None:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        levels = hsv[..., 1]
        levels[...] = [[self.truncated(np.float32(s) * np.float32(factor)) for s in row] for row in levels]
        np.testing.assert_array_equal(adjust_saturation(pixels, factor), cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))

    @pytest.mark.parametrize("steps", [-18, -1, 18])
    def test_hue_is_shifted_around_180_steps(self, pixels: np.ndarray, steps: int) -> None:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = [[(int(h) + steps) % 180 for h in row] for row in hsv[..., 0]]
        np.testing.assert_array_equal(shift_hue(pixels, steps), cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))

    def test_hue_turns_red_towards_green_by_two_degrees_a_step(self) -> None:
        shifted = shift_hue(np.array([[[200, 0, 0]]], np.uint8), 15)
        assert math.isclose(colorsys.rgb_to_hsv(*shifted[0, 0] / 255)[0], 30 / 360, abs_tol=0.005)

    @pytest.mark.parametrize(("factor", "mean"), [(0.5, 63), (1.5, 177)])  # 189 but for levels beyond 255
    def test_contrast_moves_the_mean(self, factor: float, mean: float) -> None:
        assert adjust_contrast(image_of_mean_126(), factor).mean() == pytest.approx(mean, abs=1)


class TestJitter:
    def test_mean_level_varies_by_28_8(self) -> None:
        image, rng = image_of_mean_126(), generator()
        means = [jitter_colors(image, rng).mean() for _ in range(400)]
        assert np.std(means) == pytest.approx(28.8, abs=2)

    def test_each_step_is_taken_half_of_the_time(self) -> None:
        rng = generator()
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        unchanged = sum(np.array_equal(jitter_colors(image, rng), image) for _ in range(1600))
        assert unchanged == pytest.approx(100, abs=30)  # 1 in 16

    def test_leaves_labels_and_its_input_as_they_are(self) -> None:
        image, label = numbered_pair(64, 64)
        before = np.array(image)
        _, labels = transform(color_jitter=True)(image, label, generator(3))
        np.testing.assert_array_equal(labels, label)
        np.testing.assert_array_equal(np.array(image), before)
