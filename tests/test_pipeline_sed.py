"""`transformers.pipeline` with free class names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from sed_hf.pipeline_sed import SEDPipeline

LABELS = ["cat", "dog, puppy", "grass"]


@pytest.fixture(scope="module")
def segmenter(tiny_hub_folder: Path) -> SEDPipeline:
    return pipeline("zero-shot-image-segmentation", model=str(tiny_hub_folder), trust_remote_code=True)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def covered(results: list[dict[str, Any]]) -> np.ndarray:
    return np.sum([np.asarray(result["mask"]) == 255 for result in results], axis=0)


def test_every_pixel_gets_one_class(segmenter: SEDPipeline, photo: Image.Image) -> None:
    results = segmenter(photo, candidate_labels=LABELS)
    assert (covered(results) == 1).all()
    areas = [(np.asarray(result["mask"]) == 255).sum() for result in results]
    assert areas == sorted(areas, reverse=True)
    assert all(0 < result["score"] < 1 for result in results)


def test_pixels_below_the_threshold_get_none(segmenter: SEDPipeline, photo: Image.Image) -> None:
    assert segmenter(photo, candidate_labels=LABELS, threshold=1.0) == []


def test_several_pictures_equal_one_at_a_time(segmenter: SEDPipeline, photo: Image.Image) -> None:
    other = photo.rotate(90, expand=True)
    together = segmenter([photo, other], candidate_labels=LABELS, early_rejection_topk=1)
    alone = [segmenter(picture, candidate_labels=LABELS, early_rejection_topk=1) for picture in (photo, other)]
    assert [[result["label"] for result in results] for results in together] == [
        [result["label"] for result in results] for results in alone
    ]


def test_labels_are_encoded_once(segmenter: SEDPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter(photo, candidate_labels=["sea", "sand"])
    monkeypatch.setattr(segmenter.model, "get_class_embeddings", None)
    segmenter(photo, candidate_labels=["sea", "sand"])


def test_an_impossible_threshold_is_refused(segmenter: SEDPipeline, photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="threshold=2"):
        segmenter(photo, candidate_labels=LABELS, threshold=2)


def test_unknown_arguments_are_refused(segmenter: SEDPipeline, photo: Image.Image) -> None:
    with pytest.raises(TypeError, match="unexpected arguments: topk"):
        segmenter(photo, candidate_labels=LABELS, topk=3)
