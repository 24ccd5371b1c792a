"""Class colours, statistics, overlays and legends of images."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sed_hf.data import load_vocabulary
from sed_hf.visualization import class_colors, class_statistics, draw_overlay, draw_regions

NAMES = ["sky", "dog, puppy", "grass"]
MANY_NAMES = load_vocabulary("ade20k_847")


def stripes(width: int, height: int, num_classes: int) -> np.ndarray:
    return np.broadcast_to(np.arange(width) * num_classes // width, (height, width))


def overlay_array(labels: np.ndarray, names: list[str] = NAMES, **kwargs: int) -> np.ndarray:
    image = Image.new("RGB", labels.shape[::-1], (200, 50, 50))
    return np.asarray(draw_overlay(image, labels, names, **kwargs))


def colors_in(image: np.ndarray, names: list[str]) -> list[bool]:
    """Whether the colour of each name is in an image."""
    found = set(map(tuple, image.reshape(-1, 3).tolist()))
    return [tuple(color) in found for color in class_colors(names).tolist()]


@pytest.mark.parametrize(
    ("name", "color"),
    [
        ("red triangle", (255, 0, 0)),
        ("a Blue car", (0, 0, 255)),
        ("white-haired dog", (255, 255, 255)),
        ("dark green bush, red bush", (0, 100, 0)),
    ],
)
def test_color_word_gives_its_color(name: str, color: tuple[int, int, int]) -> None:
    assert np.abs(class_colors(["sky", name])[1].astype(int) - color).max() <= 17


def test_names_with_one_color_word_have_shades_of_it() -> None:
    colors = class_colors([f"yellow {shape}" for shape in ("circle", "cross", "ring", "heart")])
    assert len(np.unique(colors, axis=0)) == 4
    assert (colors[:, :2].min(axis=1) > 180).all()
    assert (colors[:, 2] < 60).all()


@pytest.mark.parametrize(("num_classes", "min_distance"), [(12, 60), (60, 30), (150, 20), (847, 10)])
def test_colors_of_a_vocabulary_are_distinct(num_classes: int, min_distance: float) -> None:
    colors = class_colors(MANY_NAMES[:num_classes]).astype(float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    assert distances[~np.eye(num_classes, dtype=bool)].min() >= min_distance


def test_name_keeps_its_color_at_another_position_and_when_names_are_added() -> None:
    colors = class_colors(["sky", "dog, puppy", "tree", "house"])
    assert np.array_equal(class_colors(["sky", "dog", "tree"]), colors[:3])
    assert np.array_equal(class_colors(["dog", "sky"]), colors[[1, 0]])


def test_colors_are_the_same_in_another_process() -> None:
    program = f"from sed_hf.visualization import class_colors; print(class_colors({NAMES!r}).tolist())"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(class_colors(NAMES).tolist())


def test_statistics_list_the_classes_that_occur_the_largest_first() -> None:
    labels, probability = np.array([[2, 2, 0, 2]]), np.array([[0.5, 0.75, 1.0, 0.25]])
    entries = class_statistics(labels, NAMES, probability=probability)
    assert [(entry.index, entry.name, entry.share, entry.mean_probability) for entry in entries] == [
        (2, "grass", 0.75, 0.5),
        (0, "sky", 0.25, 1.0),
    ]


def test_ignored_pixels_count_in_the_image_but_in_no_class() -> None:
    [entry] = class_statistics(np.array([[1, 255, 255, 255]]), NAMES, ignore_index=255)
    assert (entry.name, entry.share) == ("dog, puppy", 0.25)


def test_classes_are_blended_with_the_grey_image_and_ignored_pixels_keep_their_color() -> None:
    overlay = overlay_array(np.where(stripes(600, 500, 2), 255, 1), ignore_index=255)
    grey = 0.299 * 200 + 0.587 * 50 + 0.114 * 50
    assert overlay[5, 5] == pytest.approx((class_colors(NAMES)[1] + grey) / 2, abs=1)
    assert (overlay[:500, 310:] == (200, 50, 50)).all()
    assert (overlay[5, 300] == 255).all()  # a line between them


def test_number_stands_in_the_region_of_its_class_whatever_else_is_shown() -> None:
    image, labels = Image.new("RGB", (640, 480)), stripes(640, 480, 2)
    plain, first, both = (np.asarray(draw_regions(image, labels, NAMES, numbered)) for numbered in ([], [0], [0, 1]))
    assert np.array_equal(both[:, 320:] != first[:, 320:], both[:, 320:] != plain[:, 320:])
    assert (both[:, 320:] != plain[:, 320:]).any()
    assert (first[:, :320] != plain[:, :320]).any()
    hidden = np.asarray(draw_regions(image, np.where(labels, 1, 255), NAMES, [0, 1], ignore_index=255))
    assert np.array_equal(both[:, 330:], hidden[:, 330:])


def test_region_that_is_too_small_for_its_number_has_none() -> None:
    labels = np.zeros((480, 640), dtype=int)
    labels[100:106, 100:106] = 1
    image = Image.new("RGB", (640, 480))
    assert np.array_equal(draw_regions(image, labels, NAMES, [0, 1]), draw_regions(image, labels, NAMES, [0]))


@pytest.mark.parametrize("size", [(600, 500), (500, 600)])
def test_legend_stands_outside_the_image_and_shows_the_classes_that_occur(size: tuple[int, int]) -> None:
    width, height = size
    labels = np.ones((height, width), dtype=int)
    overlay = overlay_array(labels)
    regions = draw_regions(Image.new("RGB", size, (200, 50, 50)), labels, NAMES, numbered=[1])
    assert np.array_equal(overlay[:height, :width], regions)
    legend = overlay[height:] if width > height else overlay[:, width:]
    assert colors_in(legend, NAMES) == [False, True, False]


@pytest.mark.parametrize("size", [(900, 600), (600, 900)])
def test_legend_holds_60_classes(size: tuple[int, int]) -> None:
    overlay = overlay_array(stripes(*size, 60), MANY_NAMES[:60])
    assert all(colors_in(overlay, MANY_NAMES[:60]))
    assert overlay.size < 3 * 3 * size[0] * size[1]


def test_legend_of_very_many_classes_is_limited() -> None:
    names = [f"class {index}" for index in range(900)]
    assert len({overlay_array(stripes(900, 60, number), names).shape for number in (200, 400, 900)}) == 1


@pytest.mark.parametrize("name", ["", "杯子", "😀", "line\nbreak", "lone surrogate \ud800"])
def test_any_text_can_be_a_name(name: str) -> None:
    assert colors_in(overlay_array(np.zeros((8, 8), dtype=int), [name]), [name]) == [True]


def test_small_image_is_enlarged_by_a_whole_factor() -> None:
    assert overlay_array(stripes(64, 48, 2)).shape[1] == 8 * 64


@pytest.mark.parametrize("size", [(20, 70_400), (70_400, 20), (1, 200_000), (1, 1), (3000, 2)])
def test_overlay_of_an_image_of_any_shape_fits_into_a_jpeg_file(size: tuple[int, int]) -> None:
    overlay = overlay_array(np.zeros(size[::-1], dtype=np.uint8))
    assert max(overlay.shape) <= 65_500
    assert colors_in(overlay, NAMES)[0]


def test_a_label_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 4\): expected the image's \(4, 5\)"):
        draw_regions(Image.new("RGB", (5, 4)), np.zeros((5, 4), dtype=np.int64), NAMES)
