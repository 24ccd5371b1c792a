"""Class colours, statistics, overlays and legends of images."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sed_hf.data import load_vocabulary
from sed_hf.visualization import class_colors, class_statistics, draw_overlay, draw_regions

NAMES = ["sky", "dog, puppy", "grass"]


def pairwise_distances(colors: np.ndarray) -> np.ndarray:
    """Distances of all pairs of RGB colours, in steps of 1/255."""
    distances = np.linalg.norm(colors[:, None].astype(float) - colors[None], axis=-1)
    return distances[~np.eye(len(colors), dtype=bool)]


def stripes(height: int, width: int, num_classes: int) -> np.ndarray:
    return np.broadcast_to(np.arange(width) * num_classes // width, (height, width))


def overlay_array(size: tuple[int, int], labels: np.ndarray, names: list[str] = NAMES, **kwargs: int) -> np.ndarray:
    return np.asarray(draw_overlay(Image.new("RGB", size, (100, 100, 100)), labels, names, **kwargs))


# Colours


@pytest.mark.parametrize(
    ("name", "color"),
    [
        ("red triangle", (255, 0, 0)),
        ("a Blue car", (0, 0, 255)),
        ("white-haired dog", (255, 255, 255)),
        ("dark green bush, red bush", (0, 100, 0)),
        ("yellow, red", (255, 255, 0)),
    ],
)
def test_color_word_gives_its_color(name: str, color: tuple[int, int, int]) -> None:
    assert np.abs(class_colors(["sky", name])[1].astype(int) - color).max() <= 17


def test_names_with_one_color_word_have_shades_of_it() -> None:
    colors = class_colors([f"yellow {shape}" for shape in ("circle", "cross", "ring", "heart")])
    assert len(np.unique(colors, axis=0)) == 4
    assert (colors[:, :2].min(axis=1) > 180).all()
    assert (colors[:, 2] < 60).all()


def test_color_word_is_a_whole_word() -> None:
    assert not np.array_equal(class_colors(["greenhouse"]), class_colors(["green house"]))


@pytest.mark.parametrize(("num_classes", "min_distance"), [(12, 60), (60, 30), (150, 20), (847, 10)])
def test_colors_of_a_vocabulary_are_distinct(num_classes: int, min_distance: float) -> None:
    colors = class_colors(load_vocabulary("ade20k_847")[:num_classes])
    assert colors.shape == (num_classes, 3)
    assert colors.dtype == np.uint8
    assert pairwise_distances(colors).min() >= min_distance


def test_name_keeps_its_color_when_names_are_added() -> None:
    assert np.array_equal(
        class_colors(["sky", "dog", "tree", "house"])[:3], class_colors(["sky", "dog, puppy", "tree"])
    )


def test_color_of_a_name_does_not_depend_on_its_position() -> None:
    assert np.array_equal(class_colors(["sky", "tree"]), class_colors(["tree", "sky"])[::-1])


def test_colors_are_the_same_in_another_process() -> None:
    program = f"from sed_hf.visualization import class_colors; print(class_colors({NAMES!r}).tolist())"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(class_colors(NAMES).tolist())


def test_there_are_colors_for_more_classes_than_can_be_told_apart() -> None:
    assert class_colors([f"class {index}" for index in range(4000)]).shape == (4000, 3)


# Statistics


def test_statistics_list_the_classes_that_occur_the_largest_first() -> None:
    entries = class_statistics([[2, 2, 0, 2]], NAMES, probability=[[0.5, 0.75, 1.0, 0.25]])
    assert [(entry.index, entry.name, entry.share, entry.mean_probability) for entry in entries] == [
        (2, "grass", 0.75, 0.5),
        (0, "sky", 0.25, 1.0),
    ]


def test_ignored_pixels_count_in_the_image_but_in_no_class() -> None:
    [entry] = class_statistics([[1, 255, 255, 255]], NAMES, ignore_index=255)
    assert (entry.name, entry.share, entry.mean_probability) == ("dog, puppy", 0.25, None)


# Regions


def test_class_color_is_blended_with_the_grey_image() -> None:
    image = Image.new("RGB", (600, 500), (255, 0, 0))
    pixel = draw_overlay(image, np.zeros((500, 600), dtype=int), NAMES).getpixel((5, 5))
    grey = image.convert("L").getpixel((5, 5))
    assert pixel == pytest.approx(tuple((class_colors(NAMES)[0] + float(grey)) / 2), abs=1)  # type: ignore[arg-type]


def test_ignored_pixels_stay_as_they_are() -> None:
    overlay = overlay_array((600, 500), np.full((500, 600), 255), ignore_index=255)
    assert (overlay[:500] == 100).all()


def test_line_runs_between_regions() -> None:
    assert (overlay_array((600, 500), stripes(500, 600, 2))[5, 300] == 255).all()


def test_regions_are_the_overlay_without_its_legend() -> None:
    image, labels = Image.new("RGB", (640, 480), (90, 120, 60)), stripes(480, 640, 3)
    regions = draw_regions(image, labels, NAMES, numbered=[0, 1, 2])
    assert np.array_equal(regions, draw_overlay(image, labels, NAMES).crop((0, 0, 640, 480)))


def test_number_and_color_do_not_depend_on_the_other_classes_of_the_image() -> None:
    image, labels = Image.new("RGB", (640, 480)), stripes(480, 640, 2)
    both = np.asarray(draw_regions(image, labels, NAMES, [0, 1]))
    second = np.asarray(draw_regions(image, np.where(labels == 1, 1, 255), NAMES, [0, 1], ignore_index=255))
    assert np.array_equal(both[:, 330:], second[:, 330:])


def test_region_that_is_too_small_for_its_number_has_none() -> None:
    labels = np.zeros((480, 640), dtype=int)
    labels[100:106, 100:106] = 1
    image = Image.new("RGB", (640, 480))
    assert np.array_equal(draw_regions(image, labels, NAMES, [0, 1]), draw_regions(image, labels, NAMES, [0]))


def test_segmentation_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 4\): expected the image's \(4, 5\)"):
        draw_overlay(Image.new("RGB", (5, 4)), np.zeros((5, 4), dtype=int), NAMES)


# Legend and size


@pytest.mark.parametrize(("size", "is_below"), [((600, 500), True), ((500, 600), False)])
def test_legend_stands_below_a_landscape_image_and_beside_a_portrait_one(size: tuple[int, int], is_below: bool) -> None:
    height, width, _ = overlay_array(size, stripes(size[1], size[0], 3)).shape
    assert (width == size[0], height == size[1]) == (is_below, not is_below)


def test_legend_shows_the_classes_that_occur_and_no_others() -> None:
    legend = overlay_array((500, 600), np.ones((600, 500), dtype=int))[:, 500:].reshape(-1, 3)
    assert [(legend == color).all(axis=1).any() for color in class_colors(NAMES)] == [False, True, False]


@pytest.mark.parametrize("size", [(900, 600), (600, 900)])
def test_legend_holds_60_classes(size: tuple[int, int]) -> None:
    names = load_vocabulary("coco_stuff_171")[:60]
    overlay = overlay_array(size, stripes(size[1], size[0], 60), names)
    legend = overlay[size[1] :] if size[0] > size[1] else overlay[:, size[0] :]
    colors = {tuple(color) for color in legend.reshape(-1, 3).tolist()}
    assert all(tuple(color) in colors for color in class_colors(names).tolist())
    assert overlay.size < 3 * 3 * size[0] * size[1]


def test_legend_of_very_many_classes_ends_with_how_many_more_there_are() -> None:
    sizes = {
        overlay_array((900, 600), stripes(600, 900, number), [f"class {index}" for index in range(number)]).shape
        for number in (200, 400, 900)
    }
    assert len(sizes) == 1


def test_legend_grows_with_the_image() -> None:
    small, large = (
        overlay_array((width, height), stripes(height, width, 3)).shape[0] - height
        for width, height in ((1200, 900), (2400, 1800))
    )
    assert large == pytest.approx(2 * small, rel=0.1)


def test_long_name_does_not_widen_the_legend_without_bound() -> None:
    labels = np.zeros((10, 10), dtype=int)
    assert overlay_array((10, 10), labels, ["x" * 50]).shape == overlay_array((10, 10), labels, ["x" * 500]).shape


@pytest.mark.parametrize("name", ["", "杯子", "кошка", "😀", "שלום", "line\nbreak", "lone surrogate \ud800"])
def test_any_text_can_be_a_name(name: str) -> None:
    overlay = overlay_array((8, 8), np.zeros((8, 8), dtype=int), [name])
    assert (overlay == class_colors([name])[0]).all(axis=-1).any()


def test_small_image_is_enlarged_by_a_whole_factor() -> None:
    assert overlay_array((64, 48), stripes(48, 64, 2)).shape[1] == 8 * 64


@pytest.mark.parametrize("size", [(20, 70_400), (70_400, 20), (1, 200_000)])
def test_overlay_of_an_image_of_extreme_size_fits_into_a_jpeg_file(size: tuple[int, int]) -> None:
    height, width, _ = overlay_array(size, np.zeros(size[::-1], dtype=np.uint8)).shape
    assert max(height, width) == 65_500
    assert min(height, width) < 400


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_image_of_any_shape_has_a_legend(size: tuple[int, int]) -> None:
    overlay = overlay_array(size, np.zeros(size[::-1], dtype=int))
    assert (overlay == class_colors(NAMES)[0]).all(axis=-1).any()
