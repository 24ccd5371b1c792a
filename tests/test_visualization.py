import numpy as np
import pytest
from PIL import Image

from sed_hf.visualization import class_colors, class_palette, class_statistics, draw_overlay, draw_regions

NAMES = ["sky", "dog, puppy", "grass"]


def color_distances(colors: np.ndarray) -> np.ndarray:
    """Distance of each pair of RGB colours, in steps of 1/255."""
    return np.linalg.norm(colors[:, None].astype(float) - colors[None], axis=-1)


def stripes(height: int, width: int, num_classes: int) -> np.ndarray:
    return np.broadcast_to(np.arange(width) * num_classes // width, (height, width))


# palette


@pytest.mark.parametrize("num_classes", [1, 2, 150, 847, 4000])
def test_palette_has_one_distinct_color_for_each_class(num_classes: int) -> None:
    palette = class_palette(num_classes)
    assert palette.shape == (num_classes, 3)
    assert palette.dtype == np.uint8
    assert len(np.unique(palette, axis=0)) == num_classes


def test_palette_keeps_its_colors_when_the_vocabulary_grows() -> None:
    assert np.array_equal(class_palette(847)[:20], class_palette(20))


def test_palette_gives_adjacent_indices_clearly_different_colors() -> None:
    palette = class_palette(2000).astype(float)
    assert np.linalg.norm(palette[1:] - palette[:-1], axis=1).min() > 50


def test_palette_of_few_classes_is_spread_wide() -> None:
    distances = color_distances(class_palette(12))
    assert distances[~np.eye(12, dtype=bool)].min() > 80


def test_palette_repeats_beyond_its_size() -> None:
    assert np.array_equal(class_palette(9000)[8192:], class_palette(9000 - 8192))


def test_palette_refuses_a_negative_number_of_classes() -> None:
    with pytest.raises(ValueError, match="num_classes=-1"):
        class_palette(-1)


def test_class_keeps_its_color_from_picture_to_picture() -> None:
    palette = class_palette(150)
    assert np.array_equal(class_colors([7, 3], 150), palette[[7, 3]])
    assert np.array_equal(class_colors([3, 90], 150)[0], palette[3])


def test_classes_that_meet_in_a_picture_are_told_apart_whatever_the_size_of_the_vocabulary() -> None:
    palette = class_palette(847)
    distances = color_distances(palette)
    np.fill_diagonal(distances, np.inf)
    first, second = np.unravel_index(np.argmin(distances), distances.shape)

    colors = class_colors([int(first), int(second)], 847)

    assert np.array_equal(colors[0], palette[first])
    assert color_distances(colors)[0, 1] > 100


# statistics


def test_statistics_list_the_classes_that_occur_the_largest_first() -> None:
    segmentation = np.array([[2, 2, 0, 2]])
    assert [(entry.index, entry.name, entry.share) for entry in class_statistics(segmentation, NAMES)] == [
        (2, "grass", 0.75),
        (0, "sky", 0.25),
    ]


def test_statistics_average_the_probability_of_each_class() -> None:
    statistics = class_statistics([[2, 2, 0]], NAMES, probability=[[0.5, 0.75, 1.0]])
    assert [entry.mean_probability for entry in statistics] == [0.625, 1.0]


def test_statistics_count_ignored_pixels_in_the_picture_but_in_no_class() -> None:
    statistics = class_statistics([[1, 255, 255, 255]], NAMES, ignore_index=255)
    assert [(entry.name, entry.share) for entry in statistics] == [("dog, puppy", 0.25)]


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_label_that_is_no_class_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label}: expected indices of 3 classes"):
        class_statistics([[0, label]], NAMES)


@pytest.mark.parametrize("segmentation", [[0, 1], [[0.5]]])
def test_segmentation_that_is_no_integer_map_is_refused(segmentation: list) -> None:
    with pytest.raises(ValueError, match=r"expected integers \(height, width\)"):
        class_statistics(segmentation, NAMES)


def test_probabilities_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probability has shape \(1, 1\): expected the segmentation's \(1, 2\)"):
        class_statistics([[0, 1]], NAMES, probability=[[1.0]])


# overlay


def test_overlay_blends_the_class_color_on_the_photo() -> None:
    photo = Image.new("RGB", (600, 500), (100, 100, 100))
    overlay = draw_overlay(photo, np.zeros((500, 600), dtype=int), NAMES, alpha=0.25)
    expected = 0.75 * 100 + 0.25 * class_palette(3)[0]
    assert overlay.getpixel((5, 5)) == pytest.approx(tuple(expected), abs=1)


def test_overlay_does_not_mix_the_photos_colors_with_those_of_the_classes() -> None:
    overlay = draw_overlay(Image.new("RGB", (600, 500), (255, 0, 0)), np.zeros((500, 600), dtype=int), NAMES, alpha=0)
    assert len(set(overlay.getpixel((5, 5)))) == 1  # type: ignore[arg-type]


def test_overlay_leaves_ignored_pixels_as_they_are() -> None:
    photo = Image.new("RGB", (600, 500), (90, 120, 30))
    overlay = draw_overlay(photo, np.full((500, 600), 255), NAMES, ignore_index=255)
    assert np.array_equal(np.asarray(overlay)[:500, :600], np.asarray(photo))


def test_overlay_draws_a_line_between_regions() -> None:
    overlay = draw_overlay(Image.new("RGB", (600, 500)), stripes(500, 600, 2), NAMES)
    assert overlay.getpixel((300, 5)) == (255, 255, 255)


def test_legend_stands_below_a_landscape_picture() -> None:
    overlay = draw_overlay(Image.new("RGB", (600, 500)), stripes(500, 600, 3), NAMES)
    assert overlay.width == 600
    assert overlay.height > 500


def test_legend_stands_beside_a_portrait_picture() -> None:
    overlay = draw_overlay(Image.new("RGB", (500, 600)), stripes(600, 500, 3), NAMES)
    assert overlay.width > 500
    assert overlay.height == 600


def test_legend_shows_the_classes_that_occur_and_no_others() -> None:
    overlay = draw_overlay(Image.new("RGB", (500, 600)), np.ones((600, 500), dtype=int), NAMES)
    legend = np.asarray(overlay)[:, 500:].reshape(-1, 3)
    in_legend = [(legend == color).all(axis=1).any() for color in class_palette(3)]
    assert in_legend == [False, True, False]


def test_legend_of_many_classes_wraps_into_columns() -> None:
    names = [f"class number {index}" for index in range(200)]
    overlay = draw_overlay(Image.new("RGB", (500, 600)), stripes(600, 500, 200), names)
    assert overlay.height == 600
    assert overlay.width < 3000


def test_small_picture_is_enlarged_by_a_whole_factor() -> None:
    overlay = draw_overlay(Image.new("RGB", (64, 48)), stripes(48, 64, 2), NAMES)
    assert overlay.width == 8 * 64


def test_legend_grows_with_the_picture() -> None:
    small = draw_overlay(Image.new("L", (1200, 900)), stripes(900, 1200, 3), NAMES).height - 900
    large = draw_overlay(Image.new("L", (2400, 1800)), stripes(1800, 2400, 3), NAMES).height - 1800
    assert large == pytest.approx(2 * small, rel=0.1)


def test_long_name_does_not_widen_the_legend_without_bound() -> None:
    long, longer = (
        draw_overlay(Image.new("L", (10, 10)), np.zeros((10, 10), dtype=int), ["x" * length]).width
        for length in (50, 500)
    )
    assert long == longer


@pytest.mark.parametrize("name", ["", "杯子", "кошка", "😀", "שלום", "line\nbreak", "lone surrogate \ud800"])
def test_any_text_can_be_a_name(name: str) -> None:
    draw_overlay(Image.new("RGB", (8, 8)), np.zeros((8, 8), dtype=int), [name])


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_picture_of_any_shape_has_a_legend(size: tuple[int, int]) -> None:
    overlay = draw_overlay(Image.new("RGB", size), np.zeros(size[::-1], dtype=int), NAMES)
    assert overlay.width * overlay.height > size[0] * size[1]


def test_regions_are_the_overlay_without_its_legend() -> None:
    photo, labels = Image.new("RGB", (640, 480), (90, 120, 60)), stripes(480, 640, 3)
    regions = draw_regions(photo, labels, [0, 1, 2], 3)
    assert regions.size == photo.size
    assert np.array_equal(regions, draw_overlay(photo, labels, NAMES).crop((0, 0, *photo.size)))


def test_numbers_and_colors_do_not_depend_on_the_listed_classes_that_are_absent() -> None:
    photo, labels = Image.new("RGB", (640, 480), (90, 120, 60)), stripes(480, 640, 2)
    complete = np.asarray(draw_regions(photo, labels, [0, 1], 2))
    only_second = np.asarray(draw_regions(photo, np.where(labels == 1, 1, 255), [0, 1], 2, ignore_index=255))
    assert np.array_equal(complete[:, 330:], only_second[:, 330:])


def test_large_numbers_take_more_of_the_picture() -> None:
    photo, labels = Image.new("RGB", (640, 480), (90, 120, 60)), stripes(480, 640, 1)
    normal, large = (np.asarray(draw_regions(photo, labels, [0], 1, font_scale=scale)) for scale in (1, 3))
    background = normal[0, 0]
    assert (large != background).any(axis=-1).sum() > 3 * (normal != background).any(axis=-1).sum()


def test_overlay_is_the_same_every_time() -> None:
    overlays = [draw_overlay(Image.new("RGB", (90, 60)), stripes(60, 90, 3), NAMES) for _ in range(2)]
    assert overlays[0].tobytes() == overlays[1].tobytes()


def test_segmentation_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 4\): expected the picture's \(4, 5\)"):
        draw_overlay(Image.new("RGB", (5, 4)), np.zeros((5, 4), dtype=int), NAMES)


def test_opacity_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        draw_overlay(Image.new("RGB", (5, 4)), np.zeros((4, 5), dtype=int), NAMES, alpha=1.5)
