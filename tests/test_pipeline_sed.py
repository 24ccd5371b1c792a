"""`transformers.pipeline` with free class names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import pipeline

from sed_hf.inference.class_embeddings import encode_classes, save_class_embeddings, text_encoder_sha256
from sed_hf.pipeline_sed import SEDPipeline

LABELS = ["cat", "dog, puppy", "grass"]


@pytest.fixture(scope="module")
def segmenter(tiny_hub_folder: Path) -> SEDPipeline:
    return pipeline("open-vocabulary-segmentation", model=str(tiny_hub_folder), trust_remote_code=True)


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


def test_the_label_map_holds_the_same_as_the_masks(segmenter: SEDPipeline, photo: Image.Image) -> None:
    segments = segmenter(photo, candidate_labels=LABELS)
    for segment in segments:
        assert ((np.asarray(segment["mask"]) == 255) == (segments.label_map == LABELS.index(segment["label"]))).all()
    assert segments.label_map.shape == segments.probability.shape == (50, 70)


def test_a_hundred_pictures_in_batches_equal_one_at_a_time(segmenter: SEDPipeline) -> None:
    def photos() -> Iterator[Image.Image]:
        random = np.random.default_rng(0)
        for number in range(100):
            size = (40 + number % 7, 50 + number % 5, 3)
            yield Image.fromarray(random.integers(0, 256, size, dtype=np.uint8))

    small = {"candidate_labels": LABELS, "early_rejection_topk": 1}
    batched = segmenter(photos(), batch_size=4, **small)
    count = 0
    for one, segments in zip(photos(), batched, strict=True):
        alone = segmenter(one, **small)
        # The batch size changes rounding, and so the winner of a tie, but not its probability.
        np.testing.assert_allclose(alone.probability, segments.probability, atol=1e-5)
        assert (alone.label_map != segments.label_map).mean() < 0.002
        count += 1
    assert count == 100


def test_pictures_are_taken_as_they_come(segmenter: SEDPipeline, photo: Image.Image) -> None:
    taken = []

    def photos() -> Iterator[Image.Image]:
        for number in range(5):
            taken.append(number)
            yield photo

    results = segmenter(photos(), candidate_labels=LABELS)
    assert len(taken) <= 1
    next(iter(results))
    assert len(taken) < 5


def test_a_column_of_a_data_set_is_taken(segmenter: SEDPipeline, photo: Image.Image) -> None:
    column = Dataset.from_dict({"image": [photo, photo]}, Features({"image": ImageFeature()}))["image"]
    expected = segmenter(photo, candidate_labels=LABELS).label_map
    results = list(segmenter(column, candidate_labels=LABELS, batch_size=2))
    assert len(results) == 2
    assert all((segments.label_map == expected).all() for segments in results)


@pytest.mark.parametrize("form", ["path", "array", "tensor", "list", "tuple"])
def test_every_form_of_a_picture_is_taken(
    segmenter: SEDPipeline, photo: Image.Image, tmp_path: Path, form: str
) -> None:
    photo.save(tmp_path / "photo.png")
    given = {
        "path": str(tmp_path / "photo.png"),
        "array": np.asarray(photo),
        "tensor": torch.from_numpy(np.array(photo)).permute(2, 0, 1),
        "list": [photo],
        "tuple": (photo,),
    }[form]
    result = segmenter(given, candidate_labels=LABELS)
    segments = result[0] if form in ("list", "tuple") else result
    assert (segments.label_map == segmenter(photo, candidate_labels=LABELS).label_map).all()


def test_labels_are_encoded_once(segmenter: SEDPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    for labels in (["sea", "sand"], ["sky"]):
        segmenter(photo, candidate_labels=labels)
    monkeypatch.setattr(segmenter.model, "get_class_embeddings", None)
    for labels in (["sea", "sand"], ["sky"]):
        segmenter(photo, candidate_labels=labels)


def test_labels_can_be_a_saved_vocabulary(segmenter: SEDPipeline, photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "names.safetensors"
    encoder = text_encoder_sha256(segmenter.model, segmenter.processor)
    embeddings = encode_classes(segmenter.model, segmenter.processor, LABELS)
    save_class_embeddings(path, LABELS, embeddings, encoder)
    segments = segmenter(photo, candidate_labels=path)
    assert segments.class_names == LABELS
    assert (segments.label_map == segmenter(photo, candidate_labels=LABELS).label_map).all()


def test_labels_can_be_given_once(tiny_hub_folder: Path, photo: Image.Image) -> None:
    segmenter = pipeline(
        "open-vocabulary-segmentation", model=str(tiny_hub_folder), trust_remote_code=True, candidate_labels=LABELS
    )
    assert {segment["label"] for segment in segmenter(photo)} <= set(LABELS)


def test_everything_else_takes_what_other_names_win(segmenter: SEDPipeline, photo: Image.Image) -> None:
    names = [*LABELS, "sky", "a wooden table"]
    among_all = segmenter(photo, candidate_labels=names).label_map
    segments = segmenter(photo, candidate_labels=LABELS, everything_else=names[3:])
    assert (segments.label_map == np.minimum(among_all, 3)).all()
    assert segments.class_names == [*LABELS, "everything else"]
    assert {segment["label"] for segment in segments} <= set(segments.class_names)


def test_missing_labels_are_refused(segmenter: SEDPipeline, photo: Image.Image) -> None:
    with pytest.raises(TypeError, match="candidate_labels: expected class names"):
        segmenter(photo)


def test_a_sliding_window_that_one_tile_fills_changes_nothing(segmenter: SEDPipeline, photo: Image.Image) -> None:
    whole = segmenter(photo, candidate_labels=LABELS)
    tiled = segmenter([photo, photo], candidate_labels=LABELS, sliding_window=80, batch_size=2)
    assert all((segments.label_map == whole.label_map).all() for segments in tiled)


def test_a_sliding_window_cuts_large_pictures(segmenter: SEDPipeline, photo: Image.Image) -> None:
    window = {"tile_size": 40, "overlap": 0.5, "global_view": True}
    segments = segmenter(photo, candidate_labels=LABELS, sliding_window=window)
    assert segments.label_map.shape == (50, 70)
    assert (covered(segments) == 1).all()


def test_an_impossible_threshold_is_refused(segmenter: SEDPipeline, photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="threshold=2"):
        segmenter(photo, candidate_labels=LABELS, threshold=2)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"threshold": "high"}, "threshold='high': expected a probability"),
        ({"candidate_labels": ["cat", ""]}, r"candidate_labels\[1\]: expected a class name"),
        ({"everything_else": []}, "everything_else: expected at least one class name"),
        ({"everything_else": ["sky", "Sky"]}, r"everything_else\[1\]: 'Sky' is the same class name"),
    ],
)
def test_errors_name_the_argument(
    segmenter: SEDPipeline, photo: Image.Image, argument: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter(photo, **{"candidate_labels": LABELS, **argument})


def test_unknown_arguments_are_refused(segmenter: SEDPipeline, photo: Image.Image) -> None:
    with pytest.raises(TypeError, match="unexpected arguments: topk; expected candidate_labels"):
        segmenter(photo, candidate_labels=LABELS, topk=3)
