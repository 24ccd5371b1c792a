"""The pipeline: batches of any size and any classes, in double precision, where rounding decides no pixel."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_models import small_model, small_processor
from strategies import examples, seeds

from sed_hf.pipeline_sed import SEDPipeline, Segments

NAMES = ["cat", "dog, puppy", "grass", "sky", "a wooden table", "7-Eleven"]
PROBABILITY = 1e-5

names = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)
topk = st.sampled_from([None, 0, 1, 2])


@cache
def segmenter() -> SEDPipeline:
    processor = small_processor(32)
    return SEDPipeline(model=small_model(torch.float64), processor=processor)


def image_of(height: int, width: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


images_of_any_size = st.builds(image_of, st.integers(1, 40), st.integers(1, 40), seeds)


def assert_same(actual: Segments, expected: Segments) -> None:
    np.testing.assert_array_equal(actual.label_map, expected.label_map)
    np.testing.assert_allclose(actual.probability, expected.probability, rtol=0, atol=PROBABILITY)
    assert [segment["label"] for segment in actual] == [segment["label"] for segment in expected]


@given(st.lists(images_of_any_size, min_size=1, max_size=5), st.integers(1, 6), names, topk)
@examples(5)
def test_any_batch_size_equals_one_by_one(several: list, batch_size: int, names: list[str], topk: int | None) -> None:
    options = {"candidate_labels": names, "early_rejection_topk": topk}
    together = segmenter()(several, batch_size=batch_size, **options)
    for image, segments in zip(several, together, strict=True):
        assert_same(segments, segmenter()(image, **options))


@given(images_of_any_size, names, st.floats(0, 1))
@examples(5)
def test_segments_tell_what_the_label_map_tells(image: Image.Image, names: list[str], threshold: float) -> None:
    segments = segmenter()(image, candidate_labels=names, threshold=threshold)
    assert segments.label_map.shape == segments.probability.shape == image.size[::-1]
    covered = np.full(segments.label_map.shape, -1)
    for segment in segments:
        mask = np.asarray(segment["mask"]) == 255
        assert (covered[mask] == -1).all()
        covered[mask] = names.index(segment["label"])
        assert segment["score"] == pytest.approx(segments.probability[mask].mean(), abs=PROBABILITY)
    np.testing.assert_array_equal(covered, segments.label_map)
    np.testing.assert_array_equal(segments.label_map == -1, segments.probability < threshold)


@given(images_of_any_size, st.data())
@examples(5)
def test_everything_else_is_what_the_other_names_win(image: Image.Image, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(NAMES) - 1))
    among_all = segmenter()(image, candidate_labels=NAMES)
    segments = segmenter()(image, candidate_labels=NAMES[:count], everything_else=NAMES[count:])
    np.testing.assert_array_equal(segments.label_map, np.minimum(among_all.label_map, count))
    assert segments.class_names == [*NAMES[:count], "everything else"]
