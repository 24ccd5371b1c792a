"""Large images in tiles; that they equal a plain formula is in properties/test_sliding_window_properties.py."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation, SEDProcessor, SEDSemanticSegmentationOutput
from sed_hf.image_processing_sed import NonFiniteLogitsError
from sed_hf.pipeline_sed import segment_images
from sed_hf.sliding_window_sed import SlidingWindow


class Painter:
    """A model whose logits are the colours of what it sees, a class for each channel; stands for a model on a CPU."""

    device = torch.device("cpu")

    def __call__(self, pixel_values: Tensor, **_: Any) -> SEDSemanticSegmentationOutput:
        return SEDSemanticSegmentationOutput(logits=self.probabilities(pixel_values).logit())

    def probabilities(self, pixel_values: Tensor) -> Tensor:
        return F.avg_pool2d(pixel_values, 4)


class Passer:
    """A processor that prepares nothing but the range of values."""

    image_processor = type("ImageProcessor", (), {"ignore_index": 255})

    def __call__(self, images: Tensor, return_tensors: str) -> dict[str, Tensor]:
        return {"pixel_values": images[None].float() / 256}


def test_no_tensor_of_all_classes_at_full_size_is_made() -> None:
    class ManyClasses(Painter):
        def probabilities(self, pixel_values: Tensor) -> Tensor:
            return torch.rand(1, 200, 4, 4, generator=torch.Generator().manual_seed(0))

    image, window = torch.zeros(3, 512, 512, dtype=torch.uint8), SlidingWindow(256)
    with LargestTensor() as largest:
        segment_images(ManyClasses(), Passer(), [image], torch.zeros(200, 1, 1), sliding_window=window)
    assert largest.num_bytes <= 2**22 * 4  # of a chunk of classes; of all classes 210 MB


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_in_one_tile_is_an_error_that_says_which_image(value: float) -> None:
    class Broken(Painter):
        def probabilities(self, pixel_values: Tensor) -> Tensor:
            seen = super().probabilities(pixel_values)
            seen[pixel_values[:, :, ::4, ::4] > 0.9] = torch.tensor(value).sigmoid()
            return seen

    whole, broken = (torch.full((3, 64, 160), 50, dtype=torch.uint8) for _ in range(2))
    broken[:, :4, -4:] = 250
    with pytest.raises(NonFiniteLogitsError, match="image 1: the logits are not finite; use float32 or bfloat16"):
        segment_images(Broken(), Passer(), [whole, broken], torch.zeros(3, 1, 1), sliding_window=SlidingWindow(64))


@pytest.mark.parametrize("global_view", [False, True])
def test_one_tile_equals_the_whole_image(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, global_view: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in ((70, 90), (40, 9))]
    embeddings = F.normalize(torch.randn(5, 80, 64, generator=generator), dim=-1)
    window = SlidingWindow(96, global_view=global_view)
    whole = [segment_images(tiny_model, tiny_processor, [image], embeddings)[0] for image in images]
    tiled = segment_images(tiny_model, tiny_processor, images, embeddings, sliding_window=window)
    assert all(torch.equal(one[name], other[name]) for one, other in zip(whole, tiled, strict=True) for name in one)


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
