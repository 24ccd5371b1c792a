"""Test-time augmentation: the mean of the probabilities at several scales, of the picture and its mirror image.

The official code does so through Detectron2's `SemanticSegmentorWithTTA`, which sums (T, H, W) probabilities at the
picture's size over all views. Here views stay at the resolution of the logits until the argmax, which takes classes in
chunks: bilinear interpolation is linear, so the mean is the same.

Detectron2 scales the shortest edge alone. SED then resizes every view to the same square, so that its scales hardly
differ; here that square is scaled too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sed_hf.image_processing_sed import SEDImageProcessor
from sed_hf.modeling_sed import ENCODER_STRIDE

ELEMENTS_PER_CHUNK = 2**24


@dataclass(frozen=True)
class MultiScaleFlip:
    """Which views of a picture are segmented.

    Attributes:
        scales: Factors of the network's input size; 1 is the size the model was made for. The size is rounded to a
            multiple of 32.
        flip: Whether each view is also segmented mirrored.

    Raises:
        ValueError: There is no scale, or one is not positive.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales: expected positive numbers, got {self.scales}")

    def mean_over_flips(self, segment: Callable[[Tensor], Tensor], pixel_values: Tensor) -> Tensor:
        """Probabilities (B, T, h, w) of pictures (B, 3, H, W), of which `segment` gives those of one view."""
        probabilities = segment(pixel_values)
        if not self.flip:
            return probabilities
        return probabilities.add_(segment(pixel_values.flip(-1)).flip(-1)).div_(2)


def scaled_sizes(image_processor: SEDImageProcessor, scale: float) -> dict[str, dict[str, int]]:
    """The arguments of the image processor that scale its result.

    Returns:
        `size`, of the first resize, in pixels; and `input_size`, of the network's input, in multiples of 32.
    """
    size = {edge: max(1, round(scale * pixels)) for edge, pixels in dict(image_processor.size).items()}
    input_size = {
        edge: ENCODER_STRIDE * max(1, round(scale * pixels / ENCODER_STRIDE))
        for edge, pixels in dict(image_processor.input_size).items()
    }
    return {"size": size, "input_size": input_size}


def most_probable_class_of_views(views: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The class of the highest mean probability at every pixel.

    Args:
        views: (T, h, w) probabilities, each at a resolution of its own.
        size: (H, W) in pixels, to which each is resized.

    Returns:
        int64 (H, W).
    """
    height, width = size
    chunk_size = max(1, ELEMENTS_PER_CHUNK // (height * width))
    best = views[0].new_full((height, width), -1.0)
    best_class = torch.zeros((height, width), dtype=torch.long, device=best.device)
    for first_class in range(0, len(views[0]), chunk_size):
        # A sum has the argmax of the mean.
        total = best.new_zeros(())
        for view in views:
            chunk = view[None, first_class : first_class + chunk_size]
            total = total + F.interpolate(chunk, size=(height, width), mode="bilinear", align_corners=False)[0]
        value, index = total.max(dim=0)
        is_better = value > best
        best = torch.where(is_better, value, best)
        best_class = torch.where(is_better, index + first_class, best_class)
    return best_class
