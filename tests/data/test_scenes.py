"""Generated scenes: determinism, and what training never sees, and the bundled toy model, which finds them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sed_hf.data.scenes import SceneDataset, render_scene, scene_vocabulary, seen_classes, unseen_classes
from sed_hf.data.scenes.model import build_scene_model
from sed_hf.data.scenes.vocabulary import COLORS, COMPOSITIONS, SHAPES, UNSEEN_COMPOSITIONS, Split
from sed_hf.hub.load import TOY_MODEL, load

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(("number", "index"), [(1, 6), (2, 4), (3, 9)])
def test_a_scene_depends_on_seed_index_and_split_only_as_the_examples_show(number: int, index: int) -> None:
    example = np.asarray(Image.open(EXAMPLES / f"scene-{number}.png")).astype(int)
    image, _ = render_scene(7, index, "test")
    assert np.abs(example - image).max() <= 1  # other builds of numpy may round otherwise


@pytest.mark.parametrize("other", [(1, 0, "train"), (0, 1, "train"), (0, 0, "test")])
def test_seed_index_and_split_each_change_the_scene(other: tuple[int, int, Split]) -> None:
    assert (render_scene(0, 0, "train")[0] != render_scene(*other)[0]).any()


class TestClasses:
    def test_a_quarter_of_the_compositions_is_unseen_evenly_over_colors_and_shapes(self) -> None:
        assert len(UNSEEN_COMPOSITIONS) * 4 == len(COMPOSITIONS) == len(COLORS) * len(SHAPES)
        assert Counter(color for color, _ in UNSEEN_COMPOSITIONS) == dict.fromkeys(COLORS, 3)
        assert Counter(shape for _, shape in UNSEEN_COMPOSITIONS) == dict.fromkeys(SHAPES, 2)

    def test_no_name_stands_for_two_classes_so_training_names_no_unseen_composition(self) -> None:
        names = [name for synonyms in scene_vocabulary() for name in synonyms.split(", ")]
        assert len(set(names)) == len(names)
        assert {"grass, lawn", "red circle, red disc"} <= set(scene_vocabulary())

    def test_ids_mean_the_same_in_training_and_full_vocabulary(self) -> None:
        assert SceneDataset("train", 1).class_names == seen_classes()
        assert SceneDataset("test", 1).class_names == scene_vocabulary() == seen_classes() + unseen_classes()

    def test_of_training_are_exactly_the_seen_ones_and_of_test_all(self) -> None:
        of_training, of_test = (
            {label for index in range(200) for label in np.unique(render_scene(0, index, split, size=96)[1])}
            for split in ("train", "test")
        )
        assert of_training == set(range(len(seen_classes())))
        assert of_test == set(range(len(scene_vocabulary())))


def test_a_data_set_gives_images_labels_and_names() -> None:
    item = SceneDataset("test", length=3, seed=1, size=96)[2]
    assert (item["image"].mode, item["image"].size) == ("RGB", (96, 96))
    assert (item["label"].dtype, item["label"].shape) == (np.int64, (96, 96))
    assert item["file_name"] == "scene-test-seed1-000002"


def test_the_toy_model_fits_into_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in TOY_MODEL.iterdir()) <= 12e6


def test_the_toy_model_is_trained_from_what_sed_hf_init_scenes_writes() -> None:
    (model, processor), (start, start_processor) = load(), build_scene_model()
    start.load_state_dict(model.state_dict())
    assert len(start_processor.tokenizer) == len(processor.tokenizer)
    assert start_processor.prompt_templates == processor.prompt_templates
    assert start_processor.image_processor.input_size == processor.image_processor.input_size


@torch.no_grad()
def test_the_toy_model_finds_compositions_it_was_never_shown() -> None:
    """Of the pixels of unseen compositions in 10 scenes, among the names of all 104 classes."""
    model, processor = load()
    class_embeddings = model.get_class_embeddings(**processor(text=scene_vocabulary()))
    right, pixels = 0, 0
    for scene in SceneDataset("test", 10):
        outputs = model(**processor(images=scene["image"]), class_embeddings=class_embeddings)
        segmentation = processor.post_process_semantic_segmentation(outputs, target_sizes=[scene["label"].shape])[0]
        unseen = scene["label"] >= len(scene_vocabulary()) - len(unseen_classes())
        right += int((segmentation.numpy()[unseen] == scene["label"][unseen]).sum())
        pixels += int(unseen.sum())
    assert right / pixels > 0.5
