"""Generated scenes: determinism, what training never sees, and labels that match the image."""

import colorsys
import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from sed_hf.data.scenes import SceneDataset, render_scene, scene_vocabulary, seen_classes, unseen_classes
from sed_hf.data.scenes.colors import COLOR_RANGES
from sed_hf.data.scenes.rendering import MAX_OBJECTS
from sed_hf.data.scenes.shapes import SIGNED_DISTANCES
from sed_hf.data.scenes.textures import TEXTURES
from sed_hf.data.scenes.vocabulary import (
    BACKGROUNDS,
    COLORS,
    COMPOSITION_IDS,
    COMPOSITIONS,
    SHAPES,
    UNSEEN_COMPOSITIONS,
    Split,
)

NUM_SCENES = 200


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [render_scene(0, index, "test") for index in range(NUM_SCENES)]


# --- determinism


def test_scene_depends_on_seed_and_index_only() -> None:
    first_image, first_label = render_scene(5, 17)
    render_scene(5, 18)
    second_image, second_label = render_scene(5, 17)
    assert (first_image == second_image).all()
    assert (first_label == second_label).all()


@pytest.mark.slow
def test_scene_is_the_same_in_another_process() -> None:
    program = (
        "import hashlib; from sed_hf.data.scenes import render_scene;"
        "image, label = render_scene(3, 4);"
        "print(hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    image, label = render_scene(3, 4)
    assert printed.strip() == hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


@pytest.mark.parametrize("other", [(1, 0, "train"), (0, 1, "train"), (0, 0, "test")])
def test_seed_index_and_split_each_change_the_scene(other: tuple[int, int, Split]) -> None:
    assert (render_scene(0, 0, "train")[0] != render_scene(*other)[0]).any()


# --- vocabulary


def test_a_quarter_of_the_compositions_is_unseen_evenly_over_colors_and_shapes() -> None:
    assert len(UNSEEN_COMPOSITIONS) * 4 == len(COMPOSITIONS) == len(COLORS) * len(SHAPES)
    assert Counter(composition.color for composition in UNSEEN_COMPOSITIONS) == dict.fromkeys(COLORS, 3)
    assert Counter(composition.shape for composition in UNSEEN_COMPOSITIONS) == dict.fromkeys(SHAPES, 2)


def test_no_name_stands_for_two_classes_so_training_names_no_unseen_composition() -> None:
    names = [name for synonyms in scene_vocabulary() for name in synonyms.split(", ")]
    assert len(set(names)) == len(names)
    assert {"grass, lawn", "red circle, red disc"} <= set(scene_vocabulary())


def test_ids_mean_the_same_in_training_and_full_vocabulary() -> None:
    assert SceneDataset("train", 1).class_names == seen_classes()
    assert scene_vocabulary() == seen_classes() + unseen_classes()


def test_every_name_can_be_drawn() -> None:
    assert list(TEXTURES) == list(BACKGROUNDS)
    assert list(SIGNED_DISTANCES) == list(SHAPES)
    assert list(COLOR_RANGES) == list(COLORS)


# --- what occurs


def test_training_images_show_exactly_the_seen_classes_and_test_images_all(
    scenes: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    train_labels = [render_scene(0, index, "train")[1] for index in range(NUM_SCENES)]
    assert set(np.unique(train_labels)) == set(range(len(seen_classes())))
    assert set(np.unique([label for _, label in scenes])) == set(range(len(scene_vocabulary())))


def test_scene_holds_one_to_three_backgrounds_and_several_objects(
    scenes: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    for _, label in scenes:
        classes = np.unique(label)
        num_backgrounds = (classes < len(BACKGROUNDS)).sum()
        assert 1 <= num_backgrounds <= 3
        assert 3 <= len(classes) - num_backgrounds <= MAX_OBJECTS


# --- labels match images


def color_name(rgb: np.ndarray) -> str:
    """What the eye calls a colour under uneven light: by hue, unless it is dark or pale."""
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb / 255)
    if value < 0.3:
        return "black"
    if saturation < 0.2:
        return "white"
    hues = {"red": 0, "orange": 27, "yellow": 55, "green": 130, "blue": 228, "purple": 285}
    return min(hues, key=lambda name: abs((360 * hue - hues[name] + 180) % 360 - 180))


def test_objects_have_the_color_of_their_label(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for image, label in scenes:
        for composition, class_id in COMPOSITION_IDS.items():
            pixels = image[label == class_id]
            if len(pixels) >= 100:
                assert color_name(np.median(pixels, axis=0)) == composition.color


def test_label_follows_the_edge_of_the_object() -> None:
    image, label = render_scene(0, 4, size=384)
    inside = label == np.bincount(label[label >= len(BACKGROUNDS)]).argmax()
    neighbours = (label[:, 1:] != label[:, :-1]) & (inside[:, 1:] | inside[:, :-1])
    steps = np.abs(np.diff(image.astype(int), axis=1)).sum(axis=-1)
    assert np.median(steps[neighbours]) > 2 * np.median(steps[~neighbours])


def test_images_of_one_background_are_told_from_others_by_their_texture(
    scenes: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Mean and deviation of colour suffice for a nearest-centroid classifier."""
    features, classes = [], []
    for image, label in scenes:
        for class_id in range(len(BACKGROUNDS)):
            pixels = image[label == class_id]
            if len(pixels) >= 1000:
                features.append(np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]))
                classes.append(class_id)
    table, ids = np.array(features), np.array(classes)
    centroids = np.array([table[ids == class_id].mean(axis=0) for class_id in range(len(BACKGROUNDS))])
    predicted = np.linalg.norm(table[:, None] - centroids[None], axis=-1).argmin(axis=1)
    assert (predicted == ids).mean() > 0.9


@pytest.mark.parametrize(
    ("shape", "inside", "outside"),
    [
        ("circle", (0.6, 0.6), (0.75, 0.75)),
        ("square", (0.7, 0.7), (0.8, 0.0)),
        ("triangle", (0.9, 0.0), (-0.6, 0.0)),
        ("star", (0.9, 0.0), (-0.6, 0.0)),
        ("cross", (0.0, 0.9), (0.5, 0.5)),
        ("ring", (0.0, 0.75), (0.0, 0.0)),
        ("heart", (0.4, 0.7), (0.0, 0.75)),
        ("crescent", (-0.8, 0.0), (0.2, 0.0)),
        ("diamond", (0.0, 0.95), (0.6, 0.0)),
        ("arrow", (0.1, 0.5), (-0.5, 0.5)),
        ("bar", (0.9, 0.0), (0.0, 0.3)),
        ("semicircle", (0.0, 0.5), (0.0, -0.5)),
    ],
)
def test_shape_looks_like_its_name(shape: str, inside: tuple[float, float], outside: tuple[float, float]) -> None:
    x, y = np.array([inside, outside], dtype=np.float32).T[:, None]
    distances = SIGNED_DISTANCES[shape](x, y)[0]
    assert distances[0] < 0 < distances[1]


@pytest.mark.parametrize("shape", list(SHAPES))
def test_shape_fits_the_unit_disc(shape: str) -> None:
    y, x = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j].astype(np.float32)
    assert np.hypot(x, y)[SIGNED_DISTANCES[shape](x, y) < 0].max() < 1.1


# --- data set


def test_item_is_a_image_its_label_and_a_name() -> None:
    item = SceneDataset("test", length=3, seed=1, size=96)[2]
    assert isinstance(item["image"], Image.Image)
    assert item["image"].mode == "RGB"
    assert item["image"].size == (96, 96)
    assert item["label"].shape == (96, 96)
    assert item["label"].dtype == np.int64
    assert item["file_name"] == "scene-test-seed1-000002"


def test_workers_of_a_dataloader_draw_the_same_scenes() -> None:
    dataset = SceneDataset("train", length=4, size=64)
    for index, drawn_there in enumerate(DataLoader(dataset, batch_size=None, num_workers=2)):
        assert dataset[index]["image"] == drawn_there["image"]


def test_set_ends_after_its_length() -> None:
    with pytest.raises(IndexError, match="Scene 3 is outside the set of 3 scenes"):
        SceneDataset("test", length=3)[3]


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'val'"):
        SceneDataset("val", length=1)  # type: ignore[arg-type]
