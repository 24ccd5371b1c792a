"""Test-time augmentation: the mean of the probabilities at several scales, of the image and its mirror image.

As Detectron2's `SemanticSegmentorWithTTA`, but that views stay at the resolution of the logits, since resizing is
linear, and that the square to which SED resizes is scaled, not only the resize before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..image_processing_sed import SEDImageProcessor, check_finite, most_probable_class
from ..inference.segmenter import Segmenter
from ..modeling_sed import ENCODER_STRIDE


@dataclass(frozen=True)
class MultiScaleFlip:
    """Which views of an image are segmented."""

    scales: tuple[float, ...] = (1.0,)  # factors of the network's input size, which is rounded to a multiple of 32
    flip: bool = False  # whether each view is also segmented mirrored

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales: expected positive numbers, got {self.scales}")

    @torch.no_grad()
    def segment(self, segmenter: Segmenter, images: Sequence[Image.Image]) -> list[dict[str, npt.NDArray]]:
        """For each RGB image `segmentation`, int64 (height, width), as `segmenter` gives it from one view.

        Each view rejects classes for itself; a rejected one has probability 0.
        """
        image_processor = segmenter.processor.image_processor
        views: list[Tensor] = []  # (B, T, h, w) for each scale
        for scale in self.scales:
            sizes = scaled_sizes(image_processor, scale)
            pixel_values = image_processor(images=list(images), return_tensors="pt", **sizes)["pixel_values"]
            view = _probabilities(segmenter, pixel_values)
            if self.flip:
                view = view.add_(_probabilities(segmenter, pixel_values.flip(-1)).flip(-1)).div_(2)
            views.append(view)
        results = []
        for index, image in enumerate(images):
            _, classes = most_probable_class([view[index] for view in views], (image.height, image.width))
            results.append({"segmentation": classes.cpu().numpy()})
        return results


def _probabilities(segmenter: Segmenter, pixel_values: Tensor) -> Tensor:
    """Float32 (B, T, h, w) at the resolution of the logits."""
    outputs = segmenter.forward(list(pixel_values))
    check_finite(outputs.logits)
    return outputs.all_logits().float().sigmoid()


def scaled_sizes(image_processor: SEDImageProcessor, scale: float) -> dict[str, dict[str, int]]:
    """`size`, of the first resize, and `input_size`, a multiple of 32: arguments that scale the processor's result."""
    size = {edge: max(1, round(scale * pixels)) for edge, pixels in dict(image_processor.size).items()}
    input_size = {
        edge: ENCODER_STRIDE * max(1, round(scale * pixels / ENCODER_STRIDE))
        for edge, pixels in dict(image_processor.input_size).items()
    }
    return {"size": size, "input_size": input_size}
