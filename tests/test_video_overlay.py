import numpy as np
import pytest
from PIL import Image

from sed_hf.inference.video_overlay import LegendPlaces, VideoOverlay
from sed_hf.visualization import SettledClassColors, class_palette

NAMES = ["sky", "dog, puppy", "grass"]
MANY_NAMES = [f"class {index}" for index in range(300)]
SIZE = (640, 360)


def frame_of(labels: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Vertical stripes of one width."""
    return np.broadcast_to(np.array(labels)[np.arange(size[0]) * len(labels) // size[0]], size[::-1])


def draw(overlay: VideoOverlay, labels: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.asarray(overlay.draw(Image.new("RGB", size, (128, 128, 128)), frame_of(labels, size)))


def color_of_stripe(picture: np.ndarray, stripe: int, num_stripes: int) -> list[int]:
    return picture[20, (2 * stripe + 1) * SIZE[0] // (2 * num_stripes)].tolist()


# steady from frame to frame


@pytest.mark.parametrize("num_classes", [3, 300])
def test_class_has_the_same_color_in_all_frames(num_classes: int) -> None:
    overlay = VideoOverlay(SIZE, MANY_NAMES[:num_classes])
    random = np.random.default_rng(0)
    seen: dict[int, list[int]] = {}
    for _ in range(30):
        labels = random.integers(0, num_classes, 5).tolist()
        picture = draw(overlay, labels)
        for stripe, label in enumerate(labels):
            color = color_of_stripe(picture, stripe, 5)
            assert seen.setdefault(label, color) == color


def test_all_frames_have_one_size() -> None:
    overlay = VideoOverlay(SIZE, MANY_NAMES)
    shapes = {draw(overlay, list(range(number, 7 * number + 1))).shape for number in range(1, 20)}
    assert shapes == {(overlay.size[1], overlay.size[0], 3)}


def test_legend_of_a_short_vocabulary_changes_in_nothing_but_percentages_and_fading() -> None:
    overlay = VideoOverlay(SIZE, NAMES)
    swatches = [draw(overlay, labels)[SIZE[1] :, : 3 * 14] for labels in ([0, 0, 1], [2], [1, 0])]
    assert all(np.array_equal(swatches[0], other) for other in swatches)


@pytest.mark.parametrize(("num_classes", "size"), [(1, (641, 361)), (7, (33, 91)), (60, (1, 1)), (300, (361, 641))])
def test_drawn_frames_have_even_sides(num_classes: int, size: tuple[int, int]) -> None:
    overlay = VideoOverlay(size, MANY_NAMES[:num_classes], ignore_index=65535)
    picture = draw(overlay, [0], size)
    assert picture.shape == (overlay.size[1], overlay.size[0], 3)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0


@pytest.mark.parametrize("size", [(640, 360), (360, 640)])
def test_legend_of_many_classes_leaves_most_of_the_frame_to_the_picture(size: tuple[int, int]) -> None:
    width, height = VideoOverlay(size, MANY_NAMES).size
    assert size[0] * size[1] > 0.6 * width * height


def test_pixels_without_a_class_keep_their_colors() -> None:
    frame = Image.new("RGB", SIZE, (90, 120, 30))
    picture = VideoOverlay(SIZE, NAMES, ignore_index=255).draw(frame, np.full(SIZE[::-1], 255))
    assert np.array_equal(np.asarray(picture)[: SIZE[1], : SIZE[0]], np.asarray(frame))


def test_frame_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the video's size \(640, 360\)"):
        draw(VideoOverlay(SIZE, NAMES), [0], (360, 640))


# colours


def test_settled_color_stays_when_similar_classes_occur_later() -> None:
    colors = SettledClassColors(847)
    colors.settle([5])
    before = colors.palette[5].copy()
    colors.settle(range(847))
    assert np.array_equal(colors.palette[5], before)
    assert np.array_equal(before, class_palette(847)[5])


def test_later_one_of_two_similar_classes_gets_another_color() -> None:
    palette = class_palette(847).astype(float)
    distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    first, second = (int(index) for index in np.unravel_index(np.argmin(distances), distances.shape))
    colors = SettledClassColors(847)
    colors.settle([first])
    colors.settle([second])
    assert np.linalg.norm(colors.palette[first].astype(float) - colors.palette[second]) > 100


# places in a legend that is too small


def test_class_keeps_its_place_while_there_are_free_ones() -> None:
    places = LegendPlaces(3)
    places.update({7: 1.0})
    places.update({4: 0.9, 7: 0.1})
    places.update({4: 1.0})
    assert places.classes == [7, 4, None]


def test_newcomer_takes_the_place_of_the_class_that_is_out_of_view_longest() -> None:
    places = LegendPlaces(3)
    for shares in ({1: 0.5, 2: 0.5}, {2: 0.5, 3: 0.5}, {3: 1.0}, {3: 0.9, 8: 0.1}):
        places.update(shares)
    assert places.classes == [8, 2, 3]


def test_newcomer_of_a_few_pixels_takes_no_place_from_another() -> None:
    places = LegendPlaces(1)
    places.update({1: 1.0})
    places.update({2: 0.004})
    assert places.classes == [1]


def test_classes_of_about_one_size_do_not_take_turns() -> None:
    places = LegendPlaces(2)
    places.update({1: 0.5, 2: 0.3, 3: 0.2})
    places.update({1: 0.5, 3: 0.3, 2: 0.2})
    assert places.classes == [1, 2]
    places.update({1: 0.5, 3: 0.4, 2: 0.1})
    assert places.classes == [1, 3]
