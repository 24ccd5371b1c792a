"""`transformers.pipeline` with free class names."""

import copy
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

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDProcessor
from sed_hf.hub.load import TOY_MODEL
from sed_hf.image_processing_sed import NonFiniteLogitsError
from sed_hf.pipeline_sed import SEDPipeline, Segments

TASK = "open-vocabulary-segmentation"
LABELS = ["cat", "dog, puppy", "grass"]


@pytest.fixture(scope="module")
def segmenter(tiny_hub_folder: Path) -> SEDPipeline:
    return pipeline(TASK, model=str(tiny_hub_folder), trust_remote_code=True)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def expected(segmenter: SEDPipeline, photo: Image.Image) -> Segments:
    return segmenter(photo, candidate_labels=LABELS)


class TestSource:
    """What `pipeline` makes one of."""

    def test_may_be_a_model_and_its_processor(
        self,
        tiny_model: SEDForSemanticSegmentation,
        tiny_processor: SEDProcessor,
        photo: Image.Image,
        expected: Segments,
    ) -> None:
        segmenter = pipeline(TASK, model=tiny_model, processor=tiny_processor)
        assert isinstance(segmenter, SEDPipeline)
        for segments in segmenter([photo, photo], candidate_labels=LABELS, batch_size=2):
            assert (segments.label_map == expected.label_map).all()

    def test_may_be_a_folder_without_code_such_as_the_bundled_one(self, photo: Image.Image) -> None:
        segmenter = pipeline(TASK, model=str(TOY_MODEL), candidate_labels=["sky", "grass"])
        assert {segment["label"] for segment in segmenter(photo)} <= {"sky", "grass"}

    @pytest.mark.parametrize("trust_remote_code", [None, True])
    def test_may_be_a_folder_that_a_pipeline_has_saved(
        self,
        trust_remote_code: bool | None,
        segmenter: SEDPipeline,
        photo: Image.Image,
        expected: Segments,
        tmp_path: Path,
    ) -> None:
        segmenter.save_pretrained(tmp_path)
        loaded = pipeline(TASK, model=str(tmp_path), trust_remote_code=trust_remote_code)
        assert (loaded(photo, candidate_labels=LABELS).label_map == expected.label_map).all()

    def test_may_be_saved_offline_where_it_came_from_the_hub(self, tmp_path: Path) -> None:
        remote = {"AutoConfig": "someone/sed--configuration_sed.SEDConfig"}  # as transformers notes it
        SEDConfig(auto_map=remote).save_pretrained(tmp_path)
        assert "someone/sed" not in (tmp_path / "config.json").read_text()

    def test_of_another_task_says_which_to_use(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, photo: Image.Image
    ) -> None:
        segmenter = pipeline("image-segmentation", model=tiny_model, image_processor=tiny_processor.image_processor)
        with pytest.raises(ValueError, match=TASK):
            segmenter(photo, candidate_labels=LABELS)


class TestImages:
    def test_may_be_paths_arrays_and_tensors(
        self, segmenter: SEDPipeline, photo: Image.Image, expected: Segments, tmp_path: Path
    ) -> None:
        photo.save(tmp_path / "photo.png")
        array = np.array(photo)
        given = (str(tmp_path / "photo.png"), array, torch.from_numpy(array).permute(2, 0, 1))
        for segments in segmenter(given, candidate_labels=LABELS):
            assert (segments.label_map == expected.label_map).all()

    def test_are_taken_as_they_come(self, segmenter: SEDPipeline, photo: Image.Image) -> None:
        taken = []

        def photos() -> Iterator[Image.Image]:
            for number in range(5):
                taken.append(number)
                yield photo

        results = segmenter(photos(), candidate_labels=LABELS)
        assert len(taken) <= 1
        next(iter(results))
        assert len(taken) < 5

    def test_may_be_a_column_of_a_data_set(
        self, segmenter: SEDPipeline, photo: Image.Image, expected: Segments
    ) -> None:
        column = Dataset.from_dict({"image": [photo, photo]}, Features({"image": ImageFeature()}))["image"]
        results = list(segmenter(column, candidate_labels=LABELS, batch_size=2))
        assert [(segments.label_map == expected.label_map).all() for segments in results] == [True, True]

    def test_larger_than_a_tile_are_cut(self, segmenter: SEDPipeline, photo: Image.Image, expected: Segments) -> None:
        for segments in segmenter([photo, photo], candidate_labels=LABELS, sliding_window=80, batch_size=2):
            assert (segments.label_map == expected.label_map).all()
        window = {"tile_size": 40, "overlap": 0.5, "global_view": True}
        segments = segmenter(photo, candidate_labels=LABELS, sliding_window=window)
        assert segments.label_map.shape == (50, 70)
        assert (segments.probability != expected.probability).any()


class TestLabels:
    def test_are_encoded_once(
        self, segmenter: SEDPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for labels in (["sea", "sand"], ["sky"]):
            segmenter(photo, candidate_labels=labels)
        monkeypatch.setattr(segmenter.model, "get_class_embeddings", None)
        for labels in (["sea", "sand"], ["sky"]):
            segmenter(photo, candidate_labels=labels)


class TestErrors:
    @pytest.mark.parametrize(
        ("argument", "error", "message"),
        [
            ({"candidate_labels": None}, TypeError, "candidate_labels: expected class names"),
            ({"candidate_labels": "cat"}, TypeError, r"candidate_labels: expected a list .* write \['cat'\]"),
            ({"candidate_labels": ["cat", ""]}, ValueError, r"candidate_labels\[1\]: expected a class name"),
            ({"everything_else": []}, ValueError, "everything_else: expected at least one class name"),
            ({"threshold": "high"}, ValueError, "threshold='high': expected a probability"),
            ({"sliding_window": {"size": 64}}, ValueError, "sliding_window="),
            ({"topk": 3}, TypeError, "unexpected arguments: topk; expected candidate_labels"),
        ],
    )
    def test_name_the_argument(
        self,
        segmenter: SEDPipeline,
        photo: Image.Image,
        argument: dict[str, Any],
        error: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message):
            segmenter(photo, **{"candidate_labels": LABELS, **argument})

    @pytest.mark.parametrize("sliding_window", [None, 40])
    def test_name_the_image_whose_logits_are_not_finite(
        self,
        tiny_model: SEDForSemanticSegmentation,
        tiny_processor: SEDProcessor,
        photo: Image.Image,
        tmp_path: Path,
        sliding_window: int | None,
    ) -> None:
        broken = copy.deepcopy(tiny_model)
        broken.decoder.head.bias.data.fill_(float("nan"))
        segmenter = SEDPipeline(model=broken, processor=tiny_processor)
        photo.save(tmp_path / "overflow.png")
        for given, name in ((str(tmp_path / "overflow.png"), r"overflow\.png"), (photo, "image of 70 × 50")):
            with pytest.raises(NonFiniteLogitsError, match=f"{name}: the logits are not finite; use float32"):
                segmenter(given, candidate_labels=LABELS, sliding_window=sliding_window)
