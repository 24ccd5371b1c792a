"""What `sed-hf explain` shows is what the model computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.inference.explain import Explanation, draw_explanation, explain_image, explanation_summary, heat_map
from sed_hf.visualization import class_colors

NAMES = ["cat", "dog, puppy", "grass", "sky", "a wooden table"]


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def made_up(areas: list[int], highest: list[float], size: tuple[int, int] | None = None) -> Explanation:
    """An explanation of an image of which each class covers so many pixels, in order; the second class is rejected."""
    heads = np.zeros((len(highest), 1, 2), dtype=np.float32)
    heads[:, 0, 0] = highest
    segmentation = np.repeat(np.arange(len(areas)), areas).reshape(size[::-1] if size else (1, -1))
    rejected_before = np.where(np.arange(len(highest)) == 1, 2, 0)
    return Explanation(heads, (heads,) * 4, rejected_before, segmentation)


def test_it_holds_what_the_model_computes(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, image: Image.Image
) -> None:
    names = [f"class {number}" for number in range(20)]
    class_embeddings = tiny_model.get_class_embeddings(**tiny_processor(text=names, return_tensors="pt"))
    explanation = explain_image(tiny_model, tiny_processor, image, class_embeddings, topk=1)
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


def test_logits_that_are_not_finite_are_an_error(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, image: Image.Image
) -> None:
    class_embeddings = tiny_model.get_class_embeddings(**tiny_processor(text=NAMES, return_tensors="pt"))
    class_embeddings = torch.cat([class_embeddings[:-1], torch.full_like(class_embeddings[-1:], torch.nan)])
    with pytest.raises(ValueError, match="not finite"):
        explain_image(tiny_model, tiny_processor, image, class_embeddings, topk=1)


def test_the_summary_tells_of_every_class() -> None:
    summary = explanation_summary(made_up([3, 1], [0.75, 0.25]), ["cat", "dog, puppy"], topk=8)
    assert summary["topk"] == 8
    assert summary["classes"] == [
        {
            "index": index,
            "name": name,
            "share": highest,
            "highest_cost": highest,
            "highest_probability_by_head": [highest] * 4,
            "rejected_before_stage": stage,
        }
        for index, name, highest, stage in [(0, "cat", 0.75, None), (1, "dog, puppy", 0.25, 2)]
    ]


def test_heat_rises_from_dark_to_light() -> None:
    levels = np.asarray(heat_map(np.linspace(-1, 2, 7, dtype=np.float32)[None], -1, 2).convert("L")).astype(int)[0]
    assert (np.diff(levels) > 0).all()
    assert (levels[0] < 10, levels[-1] > 240) == (True, True)


@pytest.mark.parametrize("size", [(90, 60), (40, 200), (300, 20)])
def test_the_figure_has_a_row_for_each_class_that_is_drawn(size: tuple[int, int]) -> None:
    explanation = made_up([size[0] * size[1] - 3, 1, 1, 1], [0.9, 0.5, 0.2, 0.1], size)
    image = Image.new("RGB", size, (90, 120, 90))
    one, two, four = (draw_explanation(image, explanation, NAMES[:4], 8, max_rows=rows).height for rows in (1, 2, 4))
    assert one < two
    assert four - two == 2 * (two - one)


def test_the_largest_classes_are_drawn_first_then_the_most_probable() -> None:
    """Rows are compared with those of a figure whose classes are in this order already."""
    image = Image.new("RGB", (8, 5))
    segmentation = np.repeat([0, 2], [10, 30]).reshape(5, 8)
    heads = np.zeros((4, 1, 2), dtype=np.float32)
    heads[:, 0, 0] = [0.5, 0.1, 0.4, 0.9]
    rejected_before = np.zeros(4, dtype=np.int64)
    order = [2, 0, 3, 1]
    ranks = np.argsort(order)
    given = Explanation(heads, (heads,) * 4, rejected_before, segmentation)
    ordered = Explanation(heads[order], (heads[order],) * 4, rejected_before, ranks[segmentation])
    assert np.array_equal(
        draw_explanation(image, given, NAMES[:4], 8), draw_explanation(image, ordered, [NAMES[i] for i in order], 8)
    )


def test_the_figure_shows_the_overlay_with_its_legend(image: Image.Image) -> None:
    figure = draw_explanation(image, made_up([5399, 1], [0.9, 0.5], (90, 60)), ["red cup", "sky"], 8)
    assert (np.abs(np.asarray(figure, dtype=int) - class_colors(["red cup"])[0]).max(axis=-1) < 10).any()


def test_the_command_writes_figure_and_summary(image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "photo.png")
    arguments = ["explain", str(tmp_path / "photo.png"), "--output", str(tmp_path / "out"), "--topk", "1"]
    assert main([*arguments, "--classes", *NAMES]) == 0
    assert Image.open(tmp_path / "out" / "photo_explain.png").width > 600
    summary = json.loads((tmp_path / "out" / "photo_explain.json").read_text())
    assert [entry["name"] for entry in summary["classes"]] == NAMES
    assert sum(entry["share"] for entry in summary["classes"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("content", [None, b"not an image"])
def test_an_image_that_cannot_be_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    if content:
        (tmp_path / "photo.png").write_bytes(content)
    assert main(["explain", str(tmp_path / "photo.png"), "--classes", "cat", "--model", "no/model"]) == 2
    assert "photo.png" in capsys.readouterr().err
