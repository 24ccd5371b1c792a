"""Test-time augmentation, against its plain formulation with whole tensors at the picture's size."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_up_predictors import CLASS_NAMES, lower_resolution, write_own_pictures
from PIL import Image
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.evaluation import MultiScaleFlip, evaluate_benchmark
from sed_hf.evaluation.augmentation import scaled_sizes
from sed_hf.image_processing_sed import most_probable_class

PICTURE_SIZE = (20, 30)


@pytest.fixture(scope="module")
def processor(tiny_processor: SEDProcessor) -> SEDProcessor:
    return lower_resolution(tiny_processor)


def resized(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)


def evaluated_prediction(
    model: SEDForSemanticSegmentation, processor: SEDProcessor, folder: Path, views: MultiScaleFlip | None
) -> np.ndarray:
    """The class map that an evaluation writes for one picture."""
    dataset = write_own_pictures(folder / "data", [PICTURE_SIZE])
    evaluate_benchmark(model, processor, dataset, augmentation=views, predictions_dir=folder / "predictions")
    return np.asarray(Image.open(folder / "predictions" / "0.png"))


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
                view = resized(tiny_model(**inputs).logits.sigmoid(), PICTURE_SIZE)
            probabilities.append(view.flip(-1) if is_mirrored else view)
    expected = torch.stack(probabilities).mean(dim=0)[0].argmax(dim=0)
    np.testing.assert_array_equal(prediction, expected)


def test_one_view_without_flip_is_the_evaluation_without_augmentation(
    tiny_model: SEDForSemanticSegmentation, processor: SEDProcessor, tmp_path: Path
) -> None:
    augmented = evaluated_prediction(tiny_model, processor, tmp_path / "augmented", MultiScaleFlip())
    plain = evaluated_prediction(tiny_model, processor, tmp_path / "plain", None)
    np.testing.assert_array_equal(augmented, plain)


def test_chunks_of_classes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(7, size, size, generator=generator) for size in (4, 6)]
    expected = sum(resized(view[None], (9, 5)) for view in views)[0].argmax(dim=0)
    for elements in (1, 3 * 9 * 5, 2**24):
        monkeypatch.setattr("sed_hf.image_processing_sed.ELEMENTS_PER_CHUNK", elements)
        assert torch.equal(most_probable_class(views, (9, 5))[1], expected)


def test_flip_takes_the_mean_of_the_picture_and_its_mirror_image() -> None:
    picture = torch.tensor([0.2, 0.4, 0.6]).expand(1, 1, 1, 3)

    def segment(pixel_values: Tensor) -> Tensor:
        return pixel_values * torch.tensor([1.0, 2.0, 3.0])

    mean = MultiScaleFlip(flip=True).mean_over_flips(segment, picture)
    torch.testing.assert_close(mean.flatten(), torch.tensor([(0.2 + 0.6) / 2, 0.8, (1.8 + 0.6) / 2]))


@pytest.mark.parametrize(("scale", "edge"), [(0.75, 576), (1.0, 768), (1.25, 960), (1.01, 768), (0.01, 32)])
def test_input_size_is_the_multiple_of_32_nearest_to_the_scale(
    scale: float, edge: int, tiny_processor: SEDProcessor
) -> None:
    image_processor = type(tiny_processor.image_processor)()  # the official sizes
    assert scaled_sizes(image_processor, scale)["input_size"] == {"height": edge, "width": edge}


def test_scale_1_leaves_the_sizes_of_the_processor(tiny_processor: SEDProcessor) -> None:
    image_processor = tiny_processor.image_processor
    expected = {"size": dict(image_processor.size), "input_size": dict(image_processor.input_size)}
    assert scaled_sizes(image_processor, 1.0) == expected


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_scales_must_be_positive_numbers(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales: expected positive numbers"):
        MultiScaleFlip(scales)
