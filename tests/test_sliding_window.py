"""Large pictures in tiles."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation, SEDProcessor, SEDSemanticSegmentationOutput
from sed_hf.sliding_window_sed import SlidingWindow, segment_with_sliding_window

NUM_CLASSES = 3


class Painter:
    """A model whose logits are the colours of what it sees, a class for each channel; stands for a model on a CPU."""

    device = torch.device("cpu")

    def __init__(self, kept: list[int] | None = None) -> None:
        self.kept = None if kept is None else torch.tensor(kept)
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, pixel_values: Tensor, **_: Any) -> SEDSemanticSegmentationOutput:
        self.seen.append(tuple(pixel_values.shape))
        logits = F.avg_pool2d(pixel_values.float(), 4).logit()
        if self.kept is None:
            return SEDSemanticSegmentationOutput(logits=logits)
        return SEDSemanticSegmentationOutput(logits=logits[:, self.kept], logit_classes=self.kept)


class Passer:
    """A processor that prepares nothing but the range of values."""

    image_processor = type("ImageProcessor", (), {"ignore_index": 255})

    def __call__(self, images: list[Tensor], return_tensors: str) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack(images).float() / 256}


def paint(picture: Tensor, window: SlidingWindow, painter: Painter | None = None, **options: Any) -> dict[str, Tensor]:
    embeddings = torch.zeros(NUM_CLASSES, 1, 1)
    return segment_with_sliding_window(painter or Painter(), Passer(), picture, embeddings, window, **options)


def blocks(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A picture of 32-pixel squares of a colour each, and the class of each pixel."""
    squares = torch.randint(NUM_CLASSES, (height // 32, width // 32), generator=torch.Generator().manual_seed(0))
    classes = squares.repeat_interleave(32, 0).repeat_interleave(32, 1)
    return (F.one_hot(classes, NUM_CLASSES).permute(2, 0, 1) * 200 + 20).to(torch.uint8), classes


@pytest.mark.parametrize("length", [10, 64, 65, 100, 129, 1000])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
def test_tiles_cover_an_edge_and_overlap_as_much_as_asked(length: int, overlap: float) -> None:
    spans = SlidingWindow(64, overlap).spans(length)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(end - start == min(64, length) for start, end in spans)
    assert all(first[1] - second[0] >= 64 * overlap for first, second in pairwise(spans))


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_every_pixel_gets_the_class_that_the_tiles_see_there(overlap: float) -> None:
    picture, classes = blocks(160, 224)
    segmentation = paint(picture, SlidingWindow(64, overlap))["segmentation"]
    assert segmentation.dtype == torch.long
    # But for the pixels at the squares' edges, between two logits.
    inside = F.max_pool2d(classes[None].float(), 5, 1, 2) == -F.max_pool2d(-classes[None].float(), 5, 1, 2)
    assert inside.float().mean() > 0.6
    assert torch.equal(segmentation[inside[0]], classes[inside[0]])


def test_a_tile_fades_into_the_next() -> None:
    # The tiles see the same colour in other brightness: only their own mean reaches the logits.
    class Mean(Painter):
        def __call__(self, pixel_values: Tensor, **_: Any) -> SEDSemanticSegmentationOutput:
            mean = pixel_values.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)
            return SEDSemanticSegmentationOutput(logits=mean.logit())

    picture = torch.linspace(50, 200, 112).to(torch.uint8).expand(3, 64, 112)
    probability = paint(picture, SlidingWindow(64, 0.25), Mean())["probability"]
    row = probability[20]
    assert row[:48].unique().numel() == 1
    assert row[64:].unique().numel() == 1
    assert (row[47:65].diff() > 0).all()
    assert torch.allclose(probability, row.expand_as(probability))


def test_the_global_view_counts_as_much_as_the_tiles() -> None:
    class SizeTeller(Painter):
        def __call__(self, pixel_values: Tensor, **_: Any) -> SEDSemanticSegmentationOutput:
            value = 0.2 if pixel_values.shape[-1] == 64 else 0.6
            return SEDSemanticSegmentationOutput(logits=torch.full((len(pixel_values), 3, 4, 4), value).logit())

    picture = torch.zeros(3, 64, 160, dtype=torch.uint8)
    probability = paint(picture, SlidingWindow(64, 0.25, global_view=True), SizeTeller())["probability"]
    torch.testing.assert_close(probability, torch.full((64, 160), 0.4))


def test_rejected_classes_have_probability_zero() -> None:
    picture, _ = blocks(64, 160)
    segmentation = paint(picture, SlidingWindow(64), Painter(kept=[0, 2]))["segmentation"]
    assert 1 not in segmentation
    everything = paint(picture, SlidingWindow(64), Painter(kept=[0, 1, 2]))["segmentation"]
    assert torch.equal(everything, paint(picture, SlidingWindow(64))["segmentation"])


def test_uncertain_pixels_get_the_ignore_index() -> None:
    picture, _ = blocks(64, 160)
    result = paint(picture, SlidingWindow(64), threshold=0.8, ignore_index=-1)
    assert torch.equal(result["segmentation"] == -1, result["probability"] < 0.8)
    assert (result["segmentation"] == -1).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold=1\.5: expected a probability"),
        ({"threshold": 0.5, "ignore_index": 2}, "ignore_index=2 is also one of the 3 classes"),
    ],
)
def test_what_the_threshold_cannot_mean_is_refused_before_a_tile_is_seen(options: dict, message: str) -> None:
    painter = Painter()
    with pytest.raises(ValueError, match=message):
        paint(blocks(64, 160)[0], SlidingWindow(64), painter, **options)
    assert not painter.seen


def test_the_batch_size_does_not_matter() -> None:
    picture, _ = blocks(160, 160)
    painter = Painter()
    one, several = (paint(picture, SlidingWindow(64), painter, batch_size=size) for size in (1, 3))
    assert torch.equal(one["segmentation"], several["segmentation"])
    assert max(shape[0] for shape in painter.seen) == 3


def test_no_tensor_of_all_classes_at_full_size_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sed_hf.sliding_window_sed.ELEMENTS_PER_CHUNK", 64 * 64)
    picture, _ = blocks(512, 512)
    with LargestTensor() as largest:
        paint(picture, SlidingWindow(64))
    assert largest.num_bytes <= 512 * 512 * 8  # the label map


@torch.inference_mode()
@pytest.mark.parametrize("global_view", [False, True])
def test_one_tile_equals_the_whole_picture(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, global_view: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=generator)
    embeddings = F.normalize(torch.randn(5, 80, 64, generator=generator), dim=-1)
    window = SlidingWindow(96, global_view=global_view)
    result = segment_with_sliding_window(tiny_model, tiny_processor, picture, embeddings, window)
    inputs = tiny_processor(images=picture, return_tensors="pt")
    expected = tiny_processor.post_process_semantic_segmentation(
        tiny_model(**inputs, class_embeddings=embeddings), target_sizes=[(70, 90)]
    )[0]
    assert torch.equal(result["segmentation"], expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (16, "tile_size of at least 32 pixels, got 16"),
        ("64", "tile_size of at least 32 pixels, got '64'"),
        ({"tile_size": 64, "overlap": 1}, "overlap to be from 0 to 0.75, got 1"),
        ({"tile_size": 64, "global_view": "no"}, "global_view to be True or False, got 'no'"),
        ({"size": 64}, "expected a tile size, or a dict of tile_size, overlap and global_view"),
    ],
)
def test_impossible_windows_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlidingWindow.of(value)
