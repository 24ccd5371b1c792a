"""Class colours, statistics, overlays and legends of images."""

from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageFont

from sed_hf.data import load_vocabulary
from sed_hf.visualization import class_colors, class_statistics, draw_overlay, draw_regions, font_of

NAMES = ["sky", "dog, puppy", "grass"]
MANY_NAMES = load_vocabulary("ade20k_847")


def stripes(width: int, height: int, num_classes: int) -> np.ndarray:
    return np.broadcast_to(np.arange(width) * num_classes // width, (height, width))


def overlay_array(labels: np.ndarray, names: list[str] = NAMES, **kwargs: int) -> np.ndarray:
    image = Image.new("RGB", labels.shape[::-1], (200, 50, 50))
    return np.asarray(draw_overlay(image, labels, names, **kwargs))


def colors_in(image: np.ndarray, names: list[str]) -> list[bool]:
    """Whether the colour of each name is in an image."""
    numbers = np.array([65536, 256, 1])
    return np.isin(class_colors(names) @ numbers, image @ numbers).tolist()


class TestColors:
    def test_follow_a_colour_word_or_are_about_those_of_ade20k(self) -> None:
        names = ["dog", "sky", "grass", "red sky", "white-haired dog", "dark green bush, red bush"]
        expected = [(6, 230, 230), (4, 250, 7), (255, 0, 0), (255, 255, 255), (0, 100, 0)]
        assert np.abs(class_colors(names)[1:].astype(int) - expected).max() <= 17

    def test_of_one_word_are_shades_of_it(self) -> None:
        colors = class_colors([f"yellow {shape}" for shape in ("circle", "cross", "ring", "heart")])
        assert len(np.unique(colors, axis=0)) == 4
        assert (colors[:, :2].min(axis=1) > 180).all()
        assert (colors[:, 2] < 90).all()

    @pytest.mark.parametrize(
        ("vocabulary", "name", "color"),
        [("ade20k_150", "sky", [6, 230, 230]), ("pascal_voc_20", "person", [192, 128, 128])],
    )
    def test_of_a_built_in_vocabulary_are_those_of_its_data_set(self, vocabulary: str, name: str, color: list) -> None:
        names = load_vocabulary(vocabulary)
        for given in (names, [*names, "everything else"]):
            assert class_colors(given)[names.index(name)].tolist() == color

    @pytest.mark.parametrize(("count", "min_distance"), [(12, 60), (150, 20), (847, 10)])
    def test_are_distinct(self, count: int, min_distance: float) -> None:
        colors = class_colors(MANY_NAMES[:count]).astype(float)
        distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
        assert distances[~np.eye(count, dtype=bool)].min() >= min_distance

    def test_stay_in_every_process_at_another_position_and_when_names_are_added(self) -> None:
        assert class_colors(["zebra fish"]).tolist() == [[204, 34, 238]]
        colors = class_colors(["sky", "dog, puppy", "tree", "house"])
        assert np.array_equal(class_colors(["sky", "dog", "tree"]), colors[:3])
        assert np.array_equal(class_colors(["dog", "sky"]), colors[[1, 0]])


def test_statistics_list_the_classes_that_occur_the_largest_first() -> None:
    labels, probability = np.array([[2, 2, 0, 2, 255]]), np.array([[0.5, 0.75, 1.0, 0.25, 0.1]])
    entries = class_statistics(labels, NAMES, probability=probability, ignore_index=255)
    assert [(entry.index, entry.name, entry.share, entry.mean_probability) for entry in entries] == [
        (2, "grass", 0.6, 0.5),
        (0, "sky", 0.2, 1.0),
    ]


class TestRegions:
    def test_are_blended_with_the_grey_image_and_ignored_pixels_keep_their_color(self) -> None:
        overlay = overlay_array(np.where(stripes(600, 500, 2), 255, 1), ignore_index=255)
        grey = 0.299 * 200 + 0.587 * 50 + 0.114 * 50
        assert overlay[5, 5] == pytest.approx((class_colors(NAMES)[1] + grey) / 2, abs=1)
        assert (overlay[:500, 310:] == (200, 50, 50)).all()
        assert (overlay[5, 300] == 255).all()  # a line between them

    def test_have_the_number_of_their_class_among_any_others(self) -> None:
        image, labels = Image.new("RGB", (640, 480)), stripes(640, 480, 2)
        plain, first, both = (np.asarray(draw_regions(image, labels, NAMES, shown)) for shown in ([], [0], [0, 1]))
        assert np.array_equal(both[:, 320:] != first[:, 320:], both[:, 320:] != plain[:, 320:])
        assert (both[:, 320:] != plain[:, 320:]).any()
        assert (first[:, :320] != plain[:, :320]).any()
        tiny = np.where(np.indices(labels.shape).max(0) < 6, 1, 0)  # whose number does not fit
        assert np.array_equal(draw_regions(image, tiny, NAMES, [0, 1]), draw_regions(image, tiny, NAMES, [0]))

    def test_of_another_size_than_the_image_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(5, 4\): expected the image's \(4, 5\)"):
            draw_regions(Image.new("RGB", (5, 4)), np.zeros((5, 4), dtype=np.int64), NAMES)


class TestLegend:
    @pytest.mark.parametrize("size", [(600, 500), (500, 600)])
    def test_stands_outside_the_image_and_shows_the_classes_that_occur(self, size: tuple[int, int]) -> None:
        width, height = size
        labels = np.ones((height, width), dtype=int)
        overlay = overlay_array(labels)
        regions = draw_regions(Image.new("RGB", size, (200, 50, 50)), labels, NAMES, numbered=[1])
        assert np.array_equal(overlay[:height, :width], regions)
        assert colors_in(overlay[height:] if width > height else overlay[:, width:], NAMES) == [False, True, False]

    @pytest.mark.parametrize("size", [(900, 600), (600, 900)])
    def test_holds_60_classes(self, size: tuple[int, int]) -> None:
        overlay = overlay_array(stripes(*size, 60), MANY_NAMES[:60])
        assert all(colors_in(overlay, MANY_NAMES[:60]))
        assert overlay.size < 3 * 3 * size[0] * size[1]

    def test_of_very_many_classes_is_limited(self) -> None:
        names = [f"class {index}" for index in range(400)]
        assert len({overlay_array(stripes(900, 60, number), names).shape for number in (200, 400)}) == 1

    @pytest.mark.parametrize("name", ["", "杯子", "lone surrogate \ud800"])
    def test_takes_any_text(self, name: str) -> None:
        assert colors_in(overlay_array(np.zeros((8, 8), dtype=int), [name]), [name]) == [True]

    def test_is_in_a_font_of_the_system_where_pillows_own_lacks_a_letter(self) -> None:
        assert font_of("dog", 21).getname()[0] == ImageFont.load_default(21).getname()[0]
        with suppress(OSError):
            assert font_of("سماء", 21).getname() == ImageFont.truetype("DejaVuSans.ttf").getname()


@pytest.mark.parametrize(
    ("size", "drawn_width"), [((64, 48), 8 * 64), ((20, 70_400), None), ((70_400, 20), 65_500), ((1, 1), None)]
)
def test_overlays_of_any_shape_are_legible_and_fit_into_a_jpeg(size: tuple[int, int], drawn_width: int | None) -> None:
    overlay = overlay_array(np.zeros(size[::-1], dtype=np.uint8))
    assert max(overlay.shape) <= 65_500
    assert drawn_width in (None, overlay.shape[1])
