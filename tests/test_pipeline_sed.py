"""`transformers.pipeline` with free class names. See also properties/."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import pipeline

from sed_hf import SEDConfig, SEDProcessor
from sed_hf import SEDForSemanticSegmentation as Model
from sed_hf.hub.load import TOY_MODEL
from sed_hf.image_processing_sed import NonFiniteLogitsError
from sed_hf.pipeline_sed import SEDPipeline

TASK = "open-vocabulary-segmentation"
LABELS = ["cat", "dog, puppy", "grass"]
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def segmenter(tiny_hub_folder: Path) -> SEDPipeline:
    return pipeline(TASK, model=str(tiny_hub_folder), trust_remote_code=True, candidate_labels=LABELS)


@pytest.fixture(scope="module")
def assert_as_usual(segmenter: SEDPipeline) -> Callable[[Any], None]:
    """Check that segments are those of the photo."""
    expected = segmenter(PHOTO)
    return lambda segments: np.testing.assert_array_equal(segments.label_map, expected.label_map)


class TestSource:
    """What `pipeline` makes one of."""

    def test_may_be_a_model_and_its_processor(
        self, tiny_model: Model, tiny_processor: SEDProcessor, assert_as_usual: Callable
    ) -> None:
        model = copy.deepcopy(tiny_model).train()  # as `Trainer` leaves it
        segmenter = pipeline(TASK, model=model, processor=tiny_processor)
        assert isinstance(segmenter, SEDPipeline)
        assert_as_usual(segmenter(PHOTO, candidate_labels=LABELS))

    @pytest.mark.parametrize("part", ["image_processor", "tokenizer"])
    def test_parts_of_a_processor_which_it_would_not_use_are_refused(
        self, part: str, tiny_model: Model, tiny_processor: SEDProcessor
    ) -> None:
        with pytest.raises(TypeError, match=f"{part}: pass processor="):
            pipeline(TASK, model=tiny_model, processor=tiny_processor, **{part: getattr(tiny_processor, part)})

    def test_may_be_a_folder_without_code_such_as_the_bundled_one(self) -> None:
        segmenter = pipeline(TASK, model=str(TOY_MODEL), candidate_labels=["sky", "grass"])
        assert {segment["label"] for segment in segmenter(PHOTO)} <= {"sky", "grass"}

    @pytest.mark.parametrize("trust_remote_code", [None, True])
    def test_may_be_a_folder_that_a_pipeline_has_saved(
        self, trust_remote_code: bool | None, segmenter: SEDPipeline, assert_as_usual: Callable, tmp_path: Path
    ) -> None:
        segmenter.save_pretrained(tmp_path)
        loaded = pipeline(TASK, model=str(tmp_path), trust_remote_code=trust_remote_code)
        assert_as_usual(loaded(PHOTO, candidate_labels=LABELS))

    def test_may_be_saved_offline_where_it_came_from_the_hub(self, tmp_path: Path) -> None:
        remote = {"AutoConfig": "someone/sed--configuration_sed.SEDConfig"}  # as transformers notes it
        SEDConfig(auto_map=remote).save_pretrained(tmp_path)
        assert "someone/sed" not in (tmp_path / "config.json").read_text()

    def test_of_another_task_says_which_to_use(self, tiny_model: Model, tiny_processor: SEDProcessor) -> None:
        segmenter = pipeline("image-segmentation", model=tiny_model, image_processor=tiny_processor.image_processor)
        with pytest.raises(ValueError, match=TASK):
            segmenter(PHOTO, candidate_labels=LABELS)


class TestImages:
    def test_may_be_paths_arrays_tensors_and_columns_of_data_sets(
        self, segmenter: SEDPipeline, assert_as_usual: Callable, tmp_path: Path
    ) -> None:
        PHOTO.save(tmp_path / "photo.png")
        array = np.array(PHOTO)
        column = Dataset.from_dict({"image": [PHOTO, PHOTO]}, Features({"image": ImageFeature()}))["image"]
        for images in ((str(tmp_path / "photo.png"), array, torch.from_numpy(array).permute(2, 0, 1)), column):
            results = list(segmenter(images, batch_size=2))
            assert len(results) == len(images)
            for segments in results:
                assert_as_usual(segments)

    def test_are_taken_as_they_come(self, segmenter: SEDPipeline) -> None:
        taken = []

        def photos() -> Iterator[Image.Image]:
            for number in range(5):
                taken.append(number)
                yield PHOTO

        results = segmenter(photos())
        assert len(taken) <= 1
        next(iter(results))
        assert len(taken) < 5

    def test_larger_than_a_tile_are_cut(self, segmenter: SEDPipeline, assert_as_usual: Callable) -> None:
        for segments in segmenter([PHOTO, PHOTO], sliding_window=80, batch_size=2):
            assert_as_usual(segments)
        segments = segmenter(PHOTO, sliding_window={"tile_size": 40, "overlap": 0.5, "global_view": True})
        assert segments.label_map.shape == (50, 70)
        assert (segments.probability != segmenter(PHOTO).probability).any()


def test_labels_are_needed(tiny_model: Model, tiny_processor: SEDProcessor) -> None:
    with pytest.raises(TypeError, match="candidate_labels: expected class names, got none"):
        SEDPipeline(model=tiny_model, processor=tiny_processor)(PHOTO)


def test_labels_are_encoded_once(segmenter: SEDPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for labels in (["sea", "sand"], ["sky"]):
        segmenter(PHOTO, candidate_labels=labels)
    monkeypatch.setattr(segmenter.model, "get_class_embeddings", None)
    for labels in (["sea", "sand"], ["sky"]):
        segmenter(PHOTO, candidate_labels=labels)


class TestErrors:
    @pytest.mark.parametrize(
        ("argument", "error", "message"),
        [
            ({"candidate_labels": "cat"}, TypeError, r"candidate_labels: expected a list .* write \['cat'\]"),
            ({"candidate_labels": ["cat", ""]}, ValueError, r"candidate_labels\[1\]: expected a class name"),
            ({"everything_else": []}, ValueError, "everything_else: expected at least one class name"),
            ({"threshold": "high"}, ValueError, "threshold='high': expected a probability"),
            ({"sliding_window": {"size": 64}}, ValueError, "sliding_window="),
            ({"topk": 3}, TypeError, "unexpected arguments: topk; expected candidate_labels"),
        ],
    )
    def test_name_the_argument(self, segmenter: SEDPipeline, argument: dict, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            segmenter(PHOTO, **argument)

    @pytest.mark.parametrize("sliding_window", [None, 40])
    def test_name_the_image_whose_logits_are_not_finite(
        self, tiny_model: Model, tiny_processor: SEDProcessor, tmp_path: Path, sliding_window: int | None
    ) -> None:
        broken = copy.deepcopy(tiny_model)
        broken.decoder.head.bias.data.fill_(float("nan"))
        segmenter = SEDPipeline(model=broken, processor=tiny_processor)
        PHOTO.save(tmp_path / "overflow.png")
        for given, name in ((str(tmp_path / "overflow.png"), r"overflow\.png"), (PHOTO, "image of 70 × 50")):
            with pytest.raises(NonFiniteLogitsError, match=f"{name}: the logits are not finite; use float32"):
                segmenter(given, candidate_labels=LABELS, sliding_window=sliding_window)
