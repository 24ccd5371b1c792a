"""The model in the box: what `sed-hf segment` takes when no model is given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.data.scenes import SceneDataset, render_scene, scene_vocabulary, unseen_classes
from sed_hf.hub.load import TOY_MODEL

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_it_fits_into_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in TOY_MODEL.iterdir()) <= 12e6


def test_segment_takes_it_when_no_model_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["segment", str(EXAMPLES / "scene-1.png"), "--classes", "sky", "sand", "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert "the model in the box" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"scene-1_overlay.jpg", "scene-1_labels.png", "scene-1.json"}


@torch.no_grad()
def test_it_finds_compositions_it_was_never_shown() -> None:
    """Of the pixels of unseen compositions in 20 scenes, among the names of all 104 classes."""
    model = SEDForSemanticSegmentation.from_pretrained(TOY_MODEL).eval()
    processor = SEDProcessor.from_pretrained(TOY_MODEL)
    class_embeddings = model.get_class_embeddings(**processor(text=scene_vocabulary()))
    scenes = SceneDataset("test", 20)
    right, pixels = 0, 0
    for scene in scenes:
        outputs = model(**processor(images=scene["image"]), class_embeddings=class_embeddings)
        segmentation = processor.post_process_semantic_segmentation(outputs, target_sizes=[scene["label"].shape])[0]
        unseen = scene["label"] >= len(scene_vocabulary()) - len(unseen_classes())
        right += int((segmentation.numpy()[unseen] == scene["label"][unseen]).sum())
        pixels += int(unseen.sum())
    assert right / pixels > 0.5


@pytest.mark.parametrize(("number", "index"), [(1, 6), (2, 4), (3, 9)])
def test_the_examples_are_scenes_of_the_test_split(number: int, index: int) -> None:
    example = np.asarray(Image.open(EXAMPLES / f"scene-{number}.png")).astype(int)
    scene, _ = render_scene(7, index, "test")
    assert np.abs(example - scene).max() <= 1  # other builds of numpy may round otherwise
