"""Test-time augmentation, against its plain formulation with whole tensors at the image's size."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from made_up_predictors import CLASS_NAMES, write_own_images
from PIL import Image
from small_models import small_model, small_processor

from sed_hf.evaluation import MultiScaleFlip, evaluate_benchmark

IMAGE_SIZE = (20, 30)


def test_prediction_is_that_of_the_mean_probability_of_all_views(tmp_path: Path) -> None:
    dataset, views = write_own_images(tmp_path / "data", [IMAGE_SIZE]), MultiScaleFlip(scales=(0.5, 1.0), flip=True)
    model, processor = small_model(), small_processor(64)
    evaluate_benchmark(model, processor, dataset, augmentation=views, predictions_dir=tmp_path, num_workers=0)
    prediction = np.asarray(Image.open(tmp_path / "0.png"))

    image = Image.open(tmp_path / "data" / "images" / "0.jpg")
    sizes = [
        {"size": {"shortest_edge": 24, "longest_edge": 96}, "input_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 48, "longest_edge": 192}, "input_size": {"height": 64, "width": 64}},
    ]
    probabilities = []
    for size in sizes:
        inputs = processor(images=image, text=CLASS_NAMES, return_tensors="pt", **size)
        for is_mirrored in (False, True):
            if is_mirrored:
                inputs["pixel_values"] = inputs["pixel_values"].flip(-1)
            with torch.no_grad():
                view = model(**inputs).logits.sigmoid()
            view = F.interpolate(view, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
            probabilities.append(view.flip(-1) if is_mirrored else view)
    expected = torch.stack(probabilities).mean(dim=0)[0].argmax(dim=0)
    np.testing.assert_array_equal(prediction, expected)
