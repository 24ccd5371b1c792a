"""Tiles of any size and overlap cover any image, and fade into each other as a plain formula over all pixels says."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from strategies import examples, normal, seeds
from torch import Tensor

from sed_hf import SEDSemanticSegmentationOutput
from sed_hf.pipeline_sed import segment_images
from sed_hf.sliding_window_sed import SlidingWindow

NUM_CLASSES = 5
PROBABILITY = 1e-5

overlaps = st.floats(0, 0.75)
windows = st.builds(SlidingWindow, st.integers(32, 70), overlaps, st.booleans())


class Painter:
    """A model whose logits are mixtures of the colours that it sees; with some classes rejected, if asked."""

    device, config = torch.device("cpu"), SimpleNamespace(early_rejection_topk=None)

    def __init__(self, kept: list[int] | None = None) -> None:
        self.kept = kept

    def probabilities(self, pixel_values: Tensor) -> Tensor:
        """(B, T, 4, 5) of a batch (B, 3, H, W) of any size; of rejected classes 0."""
        mixtures = normal(NUM_CLASSES, 3, seed=7)
        seen = torch.einsum(
            "tc,bchw->bthw", 4 * mixtures, F.adaptive_avg_pool2d(pixel_values.float(), (4, 5))
        ).sigmoid()
        if self.kept is not None:
            rejected = [index for index in range(NUM_CLASSES) if index not in self.kept]
            seen[:, rejected] = 0
        return seen

    def __call__(self, pixel_values: Tensor, **_: Any) -> SEDSemanticSegmentationOutput:
        logits = self.probabilities(pixel_values).logit()
        if self.kept is None:
            return SEDSemanticSegmentationOutput(logits=logits)
        return SEDSemanticSegmentationOutput(logits=logits[:, self.kept], logit_classes=torch.tensor(self.kept))


class Passer:
    """A processor that prepares nothing but the range of values; tiles on their own need not have one size."""

    image_processor = type("ImageProcessor", (), {"ignore_index": 255})

    def __call__(self, images: Any, return_tensors: str) -> dict[str, Tensor]:
        images = images if isinstance(images, list) else [images]
        return {"pixel_values": torch.stack(images).float() / 255 - 0.5}


def image_of(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


# More than one tile along an edge at least, so that there is something to join.
images_of_any_size = st.builds(image_of, st.integers(71, 160), st.integers(1, 160), seeds) | st.builds(
    image_of, st.integers(1, 160), st.integers(71, 160), seeds
)


def paint(image: Tensor, window: SlidingWindow, painter: Painter | None = None, **options: Any) -> dict[str, Tensor]:
    embeddings = torch.zeros(NUM_CLASSES, 1, 1)
    return segment_images(painter or Painter(), Passer(), [image], embeddings, sliding_window=window, **options)[0]


def plain_probabilities(image: Tensor, window: SlidingWindow, painter: Painter) -> Tensor:
    """The probability (T, H, W) of every class: of each tile at full size, weighted by the distance to its edges."""
    height, width = image.shape[1:]
    total, weights = torch.zeros(NUM_CLASSES, height, width), torch.zeros(height, width)

    def view(top: int, bottom: int, left: int, right: int) -> Tensor:
        pixel_values = Passer()(image[:, top:bottom, left:right], "pt")["pixel_values"]
        seen = painter.probabilities(pixel_values)
        return F.interpolate(seen, size=(bottom - top, right - left), mode="bilinear", align_corners=False)[0]

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


@given(images_of_any_size, windows, st.none() | st.sets(st.integers(0, NUM_CLASSES - 1), min_size=1), st.floats(0, 1))
@examples(6)
def test_any_tiles_equal_the_plain_formula(
    image: Tensor, window: SlidingWindow, kept: set[int] | None, threshold: float
) -> None:
    painter = Painter(None if kept is None else sorted(kept))
    result = paint(image, window, painter)
    probabilities = plain_probabilities(image, window, painter)
    of_the_class = probabilities.gather(0, result["segmentation"][None])[0]
    for found in (result["probability"], of_the_class):
        torch.testing.assert_close(found, probabilities.amax(0), rtol=0, atol=PROBABILITY)
    some = paint(image, window, painter, threshold=threshold, ignore_index=65535)
    expected = result["segmentation"].masked_fill(result["probability"] < threshold, 65535)
    assert torch.equal(some["segmentation"], expected)


def test_no_tensor_of_all_classes_at_full_size_is_made() -> None:
    class ManyClasses(Painter):
        def probabilities(self, pixel_values: Tensor) -> Tensor:
            return normal(1, 100, 4, 4, seed=0).sigmoid()

    image, window = torch.zeros(3, 384, 384, dtype=torch.uint8), SlidingWindow(256)
    with LargestTensor() as largest:
        segment_images(ManyClasses(), Passer(), [image], torch.zeros(100, 1, 1), sliding_window=window)
    assert largest.num_bytes <= 2**22 * 4  # of a chunk of classes; of all classes 59 MB


@pytest.mark.parametrize("value", [16, "64", {"tile_size": 64, "overlap": 1}, {"size": 64}])
def test_impossible_windows_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"sliding_window.*: expected "):
        SlidingWindow.of(value)
