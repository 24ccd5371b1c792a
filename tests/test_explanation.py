"""What `sed-hf explain` shows is what the model computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.inference.explain import Explanation, draw_explanation, explain_image, write_explanation
from sed_hf.visualization import class_colors

NAMES = ["red cup", "dog, puppy", "grass", "sky"]


def made_up(segmentation: np.ndarray, highest: dict[str, float]) -> Explanation:
    """An explanation with a highest probability of each class, in which the second of `NAMES` is rejected."""
    heads = np.zeros((len(highest), 1, 2), dtype=np.float32)
    heads[:, 0, 0] = list(highest.values())
    rejected_before = np.array([2 if name == NAMES[1] else 0 for name in highest])
    return Explanation(list(highest), 8, heads, (heads,) * 4, rejected_before, segmentation)


def test_it_holds_what_the_model_computes(tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    names = [f"class {number}" for number in range(20)]
    class_embeddings = tiny_model.get_class_embeddings(**tiny_processor(text=names, return_tensors="pt"))
    explanation = explain_image(tiny_model, tiny_processor, image, names, class_embeddings, topk=1)
    inputs = tiny_processor(images=image, return_tensors="pt")
    with torch.no_grad():
        outputs = tiny_model(**inputs, class_embeddings=class_embeddings, output_hidden_states=True)
        kept = tiny_model(**inputs, class_embeddings=class_embeddings, early_rejection_topk=1).kept_classes[0]
    np.testing.assert_allclose(explanation.cost_map, outputs.cost_map[0].mean(1), atol=1e-5)
    for head, logits in zip(explanation.heads, (*outputs.aux_logits, outputs.logits), strict=True):
        np.testing.assert_allclose(head, logits[0].sigmoid(), atol=1e-5)
    first_missing = [next((stage for stage, keeps in enumerate(column, 1) if not keeps), 0) for column in kept.T]
    assert explanation.rejected_before.tolist() == first_missing
    assert any(first_missing)
    expected = tiny_processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 90)])[0]
    assert (explanation.segmentation == expected.numpy()).mean() > 0.999


def test_the_json_file_tells_of_every_class(tmp_path: Path) -> None:
    explanation = made_up(np.array([[0, 0, 0, 1]]), dict(zip(NAMES, [0.75, 0.25], strict=False)))
    write_explanation(tmp_path / "explain.png", Image.new("RGB", (4, 1)), explanation, max_rows=1)
    facts = ("index", "name", "share", "highest_cost", "highest_probability_by_head", "rejected_before_stage")
    classes = [(0, "red cup", 0.75, 0.75, [0.75] * 4, None), (1, "dog, puppy", 0.25, 0.25, [0.25] * 4, 2)]
    assert json.loads((tmp_path / "explain.json").read_text()) == {
        "topk": 8,
        "classes": [dict(zip(facts, values, strict=True)) for values in classes],
    }


@pytest.mark.parametrize("size", [(90, 60), (40, 200), (300, 20)])
def test_the_figure_has_the_overlay_and_a_row_for_each_class_that_is_drawn(size: tuple[int, int]) -> None:
    explanation = made_up(np.zeros(size[::-1], dtype=int), dict(zip(NAMES, [0.9, 0.5, 0.2, 0.1], strict=True)))
    image = Image.new("RGB", size, (90, 120, 90))
    one, two, four = (draw_explanation(image, explanation, max_rows=rows) for rows in (1, 2, 4))
    assert one.height < two.height
    assert four.height - two.height == 2 * (two.height - one.height)
    assert (np.abs(np.asarray(one, dtype=int) - class_colors(NAMES)[0]).max(axis=-1) < 10).any()


def test_the_largest_classes_are_drawn_first_then_the_most_probable() -> None:
    segmentation = np.repeat([0, 1], [30, 10]).reshape(5, 8)
    in_order = made_up(segmentation, {"grass": 0.4, "red cup": 0.5, "sky": 0.9, "dog, puppy": 0.1})
    other = made_up(3 - segmentation, {"dog, puppy": 0.1, "sky": 0.9, "red cup": 0.5, "grass": 0.4})
    image = Image.new("RGB", (8, 5))
    assert np.array_equal(draw_explanation(image, other), draw_explanation(image, in_order))


def test_the_command_writes_figure_and_json_file(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "red").save(tmp_path / "photo.png")
    options = ["--output", str(tmp_path / "out"), "--topk", "1", "--classes", *NAMES]
    assert main(["explain", str(tmp_path / "photo.png"), *options]) == 0
    assert Image.open(tmp_path / "out" / "photo_explain.png").width > 600
    summary = json.loads((tmp_path / "out" / "photo_explain.json").read_text())
    assert [entry["name"] for entry in summary["classes"]] == NAMES
