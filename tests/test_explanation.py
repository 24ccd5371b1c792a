"""What `sed-hf explain` shows is what the model computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDProcessor, cli
from sed_hf.cli import main
from sed_hf.inference.explain import Explanation, explain_picture, first_missing_stage
from sed_hf.inference.explain_figure import draw_explanation, heat_map, rows_to_draw, summarize

NAMES = ["cat", "dog, puppy", "grass", "sky", "a wooden table"]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def class_embeddings(tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor) -> torch.Tensor:
    return tiny_model.get_class_embeddings(**tiny_processor(text=NAMES, return_tensors="pt"))


@pytest.fixture(scope="module")
def explanation(
    tiny_model: SEDForSemanticSegmentation,
    tiny_processor: SEDProcessor,
    picture: Image.Image,
    class_embeddings: torch.Tensor,
) -> Explanation:
    return explain_picture(tiny_model, tiny_processor, picture, class_embeddings, topk=1)


def made_up(areas: list[int], highest: list[float], rejected: list[int]) -> Explanation:
    """An explanation of a picture one pixel high."""
    num_classes = len(highest)
    heads = np.zeros((num_classes, 1, 2), dtype=np.float32)
    heads[:, 0, 0] = highest
    segmentation = np.repeat(np.arange(num_classes), areas)[None]
    return Explanation(heads, (heads,) * 4, np.array(rejected), segmentation, np.ones(segmentation.shape, np.float32))


def test_it_holds_what_the_model_computes(
    tiny_model: SEDForSemanticSegmentation,
    tiny_processor: SEDProcessor,
    picture: Image.Image,
    class_embeddings: torch.Tensor,
    explanation: Explanation,
) -> None:
    inputs = tiny_processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        outputs = tiny_model(**inputs, class_embeddings=class_embeddings, output_hidden_states=True)
        kept = tiny_model(**inputs, class_embeddings=class_embeddings, early_rejection_topk=1).kept_classes
    np.testing.assert_allclose(explanation.cost_map, outputs.cost_map[0].mean(1), atol=1e-5)
    for head, logits in zip(explanation.heads, (*outputs.aux_logits, outputs.logits), strict=True):
        np.testing.assert_allclose(head, logits[0].sigmoid(), atol=1e-5)
    survives = kept[0].all(0).numpy()
    assert ((explanation.rejected_before == 0) == survives).all()
    expected = tiny_processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 90)])[0]
    assert (explanation.segmentation == expected.numpy()).mean() > 0.999


def test_the_stage_that_a_class_does_not_enter_is_the_first_that_it_misses() -> None:
    kept = torch.tensor([[True, True, True, False], [True, True, False, False], [True, False, False, False]])
    assert first_missing_stage(kept).tolist() == [0, 3, 2, 1]


def test_the_largest_classes_are_drawn_first_then_the_most_probable() -> None:
    explanation = made_up([1, 0, 3, 0], [0.5, 0.1, 0.4, 0.9], [0] * 4)
    assert rows_to_draw(explanation, 12) == [2, 0, 3, 1]
    assert rows_to_draw(explanation, 2) == [2, 0]


def test_the_summary_tells_of_every_class() -> None:
    summary = summarize(made_up([3, 1], [0.75, 0.25], [0, 2]), ["cat", "dog, puppy"], topk=8)
    assert summary["topk"] == 8
    assert summary["classes"][1] == {
        "index": 1,
        "name": "dog, puppy",
        "share": 0.25,
        "highest_cost": 0.25,
        "highest_probability_by_head": [0.25] * 4,
        "rejected_before_stage": 2,
    }
    assert summary["classes"][0]["rejected_before_stage"] is None


def test_heat_rises_from_dark_to_light() -> None:
    image = np.asarray(heat_map(np.linspace(-1, 2, 7, dtype=np.float32)[None], (-1, 2)).convert("L")).astype(int)
    assert (np.diff(image[0]) > 0).all()
    assert image[0, 0] < 10
    assert image[0, -1] > 240


@pytest.mark.parametrize("size", [(90, 60), (40, 200), (300, 20)])
def test_a_figure_has_a_row_for_each_class_that_is_drawn(size: tuple[int, int]) -> None:
    width, height = size
    areas = [width * height - 3, 1, 1, 1]
    explanation = made_up(areas, [0.9, 0.5, 0.2, 0.1], [0, 1, 2, 3])
    explanation = Explanation(
        explanation.cost_map,
        explanation.heads,
        explanation.rejected_before,
        explanation.segmentation.reshape(height, width),
        explanation.probability.reshape(height, width),
    )
    picture = Image.new("RGB", size, (90, 120, 90))
    heights = [
        draw_explanation(picture, explanation, ["a", "b", "c", "d"], 8, max_rows=rows).height for rows in (1, 2, 4)
    ]
    assert heights[1] > heights[0]
    assert heights[2] - heights[1] == 2 * (heights[1] - heights[0])


def test_the_command_writes_figure_and_summary(tiny_hub_folder: Path, picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "photo.png")
    arguments = ["explain", tmp_path / "photo.png", "--model", tiny_hub_folder, "--output", tmp_path / "out"]
    assert main([*map(str, arguments), "--topk", "1", "--classes", *NAMES]) == 0
    assert Image.open(tmp_path / "out" / "photo_explain.png").width > 600
    summary = json.loads((tmp_path / "out" / "photo_explain.json").read_text())
    assert [entry["name"] for entry in summary["classes"]] == NAMES
    assert sum(entry["share"] for entry in summary["classes"]) == pytest.approx(1, abs=1e-4)


def test_a_picture_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path / "none.png"), "--classes", "cat"]) == 2
    assert "none.png: expected a picture; there is no such file" in capsys.readouterr().err


def test_a_damaged_picture_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.setattr(cli, "load_model", None)
    assert main(["explain", str(tmp_path / "text.png"), "--classes", "cat"]) == 2
    assert "text.png: expected a picture: cannot identify image file" in capsys.readouterr().err
