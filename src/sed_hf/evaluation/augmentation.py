"""Test-time augmentation: the mean of the probabilities at several scales, of the image and its mirror image.

The official code does so through Detectron2's `SemanticSegmentorWithTTA`, which sums (T, H, W) probabilities at the
image's size over all views. Here views stay at the resolution of the logits until the argmax, which takes classes in
chunks: bilinear interpolation is linear, so the mean is the same.

Detectron2 only scales the shortest edge. SED then resizes every view to the same square, so that its scales hardly
differ; here that square is scaled too.
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
    """Which views of an image are segmented.

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


class AugmentedSegmenter:
    """Segments RGB images by the mean probability over all views.

    Each view rejects classes for itself; a rejected one has probability 0.

    Args:
        segmenter: Its model, processor, class embeddings and early rejection are used.
        augmentation: The views.
    """

    def __init__(self, segmenter: Segmenter, augmentation: MultiScaleFlip) -> None:
        self.segmenter = segmenter
        self.augmentation = augmentation

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, npt.NDArray]]:
        """For each image `segmentation`, int64 (height, width)."""
        views: list[Tensor] = []  # (B, T, h, w) for each scale
        image_processor = self.segmenter.processor.image_processor
        for scale in self.augmentation.scales:
            sizes = scaled_sizes(image_processor, scale)
            pixel_values = image_processor(images=list(images), return_tensors="pt", **sizes)["pixel_values"]
            view = self._probabilities(pixel_values)
            if self.augmentation.flip:
                view = view.add_(self._probabilities(pixel_values.flip(-1)).flip(-1)).div_(2)
            views.append(view)
        results = []
        for index, image in enumerate(images):
            _, classes = most_probable_class([view[index] for view in views], (image.height, image.width))
            results.append({"segmentation": classes.cpu().numpy()})
        return results

    @torch.no_grad()
    def _probabilities(self, pixel_values: Tensor) -> Tensor:
        """Float32 (B, T, h, w) of one view, at the resolution of the logits.

        Raises:
            NonFiniteLogitsError: The model gives values that are not numbers.
        """
        outputs = self.segmenter.model(
            pixel_values=pixel_values.to(self.segmenter.model.device, self.segmenter.model.dtype),
            class_embeddings=self.segmenter.class_embeddings,
            early_rejection_topk=self.segmenter.topk,
        )
        check_finite(outputs.logits)
        return outputs.all_logits().float().sigmoid()


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
