"""Test-time augmentation, against its plain formulation with whole tensors at the image's size."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_up_predictors import CLASS_NAMES, small_processor, write_own_images
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from sed_hf.evaluation import MultiScaleFlip, evaluate_benchmark
from sed_hf.evaluation.augmentation import scaled_sizes

IMAGE_SIZE = (20, 30)


@pytest.fixture(scope="module")
def processor(tiny_processor: SEDProcessor) -> SEDProcessor:
    return small_processor(tiny_processor, 64, tiny_processor.prompt_templates)


def evaluated_prediction(
    model: SEDForSemanticSegmentation, processor: SEDProcessor, folder: Path, views: MultiScaleFlip | None
) -> np.ndarray:
    """The class map that an evaluation writes for one image."""
    dataset = write_own_images(folder / "data", [IMAGE_SIZE])
    predictions = folder / "predictions"
    evaluate_benchmark(model, processor, dataset, augmentation=views, predictions_dir=predictions, num_workers=0)
    return np.asarray(Image.open(predictions / "0.png"))


def test_prediction_is_that_of_the_mean_probability_of_all_views(
    tiny_model: SEDForSemanticSegmentation, processor: SEDProcessor, tmp_path: Path
) -> None:
    views = MultiScaleFlip(scales=(0.5, 1.0), flip=True)
    prediction = evaluated_prediction(tiny_model, processor, tmp_path, views)

    image = Image.open(tmp_path / "data" / "images" / "0.png")
    sizes = [
        {"size": {"shortest_edge": 48, "longest_edge": 192}, "input_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 96, "longest_edge": 384}, "input_size": {"height": 64, "width": 64}},
    ]
    probabilities = []
    for size in sizes:
        inputs = processor(images=image, text=CLASS_NAMES, return_tensors="pt", **size)
        for is_mirrored in (False, True):
            if is_mirrored:
                inputs["pixel_values"] = inputs["pixel_values"].flip(-1)
            with torch.no_grad():
                view = tiny_model(**inputs).logits.sigmoid()
            view = F.interpolate(view, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
            probabilities.append(view.flip(-1) if is_mirrored else view)
    expected = torch.stack(probabilities).mean(dim=0)[0].argmax(dim=0)
    np.testing.assert_array_equal(prediction, expected)


def test_one_view_without_flip_is_the_evaluation_without_augmentation(
    tiny_model: SEDForSemanticSegmentation, processor: SEDProcessor, tmp_path: Path
) -> None:
    augmented = evaluated_prediction(tiny_model, processor, tmp_path / "augmented", MultiScaleFlip())
    plain = evaluated_prediction(tiny_model, processor, tmp_path / "plain", None)
    np.testing.assert_array_equal(augmented, plain)


@pytest.mark.parametrize(("scale", "edge"), [(0.75, 576), (1.0, 768), (1.25, 960), (1.01, 768), (0.01, 32)])
def test_input_size_is_the_multiple_of_32_nearest_to_the_scale(scale: float, edge: int) -> None:
    image_processor = SEDImageProcessor()  # the official sizes
    sizes = scaled_sizes(image_processor, scale)
    assert sizes["input_size"] == {"height": edge, "width": edge}
    assert sizes["size"] == {"shortest_edge": round(640 * scale), "longest_edge": round(2560 * scale)}


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_scales_must_be_positive_numbers(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales: expected positive numbers"):
        MultiScaleFlip(scales)
