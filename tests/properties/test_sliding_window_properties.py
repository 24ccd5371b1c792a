"""Tiles of any size and overlap cover any image, and fade into each other as a plain formula over all pixels says."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from decoder_inputs import LargestTensor
from hypothesis import given
from hypothesis import strategies as st
from small_models import TEMPLATES, small_model, small_processor
from strategies import examples, normal, seeds
from torch import Tensor

from sed_hf.pipeline_sed import Segmenter
from sed_hf.sliding_window_sed import SlidingWindow

CLASSES = F.normalize(normal(5, len(TEMPLATES), 16, seed=7), dim=-1)
PROBABILITY = 1e-5

overlaps = st.floats(0, 0.75)
windows = st.builds(SlidingWindow, st.integers(48, 70), overlaps, st.booleans())


def image_of(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


# More than one tile along an edge at least, so that there is something to join.
images_of_any_size = st.builds(image_of, st.integers(71, 110), st.integers(1, 110), seeds) | st.builds(
    image_of, st.integers(1, 110), st.integers(71, 110), seeds
)


def segment(image: Tensor, window: SlidingWindow, **options: Any) -> dict[str, Tensor]:
    model, names = small_model(torch.float64), list("abcde")
    segmenter = Segmenter(model, small_processor(32), names, CLASSES, sliding_window=window, **options)
    return {name: torch.from_numpy(array) for name, array in segmenter([image])[0].items()}


@torch.no_grad()
def plain_probabilities(image: Tensor, window: SlidingWindow, topk: int | None) -> Tensor:
    """The probability (T, H, W) of every class: of each tile at full size, weighted by the distance to its edges."""
    height, width = image.shape[1:]
    total, weights = torch.zeros(len(CLASSES), height, width), torch.zeros(height, width)

    def view(top: int, bottom: int, left: int, right: int) -> Tensor:
        pixel_values = small_processor(32)(images=image[:, top:bottom, left:right])["pixel_values"]
        outputs = small_model(torch.float64)(pixel_values, class_embeddings=CLASSES, early_rejection_topk=topk)
        return F.interpolate(outputs.all_logits().float().sigmoid(), (bottom - top, right - left), mode="bilinear")[0]

    def ramp(start: int, end: int, length: int) -> Tensor:
        position = torch.arange(start, end) + 0.5
        weight = torch.full((end - start,), (end - start) / 2)
        if start > 0:
            weight = torch.minimum(weight, position - start)
        if end < length:
            weight = torch.minimum(weight, end - position)
        return weight

    for top, bottom in window.spans(height):
        for left, right in window.spans(width):
            weight = ramp(top, bottom, height)[:, None] * ramp(left, right, width)
            total[:, top:bottom, left:right] += weight * view(top, bottom, left, right)
            weights[top:bottom, left:right] += weight
    mixed = total / weights
    return (mixed + view(0, height, 0, width)) / 2 if window.global_view else mixed


@given(st.integers(1, 5000), st.integers(32, 1000), overlaps)
def test_tiles_cover_any_edge_and_overlap_as_much_as_asked(length: int, tile_size: int, overlap: float) -> None:
    spans = SlidingWindow(tile_size, overlap).spans(length)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(end - start == min(tile_size, length) for start, end in spans)
    assert all(first[1] - second[0] >= tile_size * overlap for first, second in pairwise(spans))
    assert all(first[0] < second[0] for first, second in pairwise(spans))


@given(images_of_any_size, windows, st.sampled_from([None, 1, 2]), st.floats(0, 1))
@examples(5)
def test_any_tiles_equal_the_formula(image: Tensor, window: SlidingWindow, topk: int | None, threshold: float) -> None:
    result = segment(image, window, topk=topk)
    probabilities = plain_probabilities(image, window, topk)
    of_the_class = probabilities.gather(0, result["segmentation"][None])[0]
    for found in (result["probability"], of_the_class):
        torch.testing.assert_close(found, probabilities.amax(0), rtol=0, atol=PROBABILITY)
    some = segment(image, window, topk=topk, threshold=threshold, ignore_index=65535)
    expected = result["segmentation"].masked_fill(result["probability"] < threshold, 65535)
    assert torch.equal(some["segmentation"], expected)


def test_no_tensor_of_all_classes_at_full_size_is_made() -> None:
    image, classes = torch.zeros(3, 384, 384, dtype=torch.uint8), CLASSES.repeat(20, 1, 1)
    with LargestTensor() as largest:
        Segmenter(small_model(), small_processor(), ["sky"] * 100, classes, sliding_window=SlidingWindow(256))([image])
    assert largest.num_bytes <= 2**22 * 4  # of a chunk of classes; of all classes 59 MB


@pytest.mark.parametrize("value", [16, "64", {"tile_size": 64, "overlap": 1}, {"size": 64}])
def test_impossible_windows_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"sliding_window.*: expected "):
        SlidingWindow.of(value)


def test_a_segmenter_needs_as_many_names_as_embeddings() -> None:
    with pytest.raises(ValueError, match="2 class names for 5 class embeddings"):
        Segmenter(small_model(), small_processor(), ["sky", "grass"], CLASSES)
