"""A model with its classes and options, from prepared pictures to class maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..image_processing_sed import most_probable_class
from ..processing_sed import SEDProcessor
from .augmentation import MultiScaleFlip


@dataclass(frozen=True)
class Segmenter:
    """Segments batches with one vocabulary.

    Attributes:
        model: [`SEDForSemanticSegmentation`], also as accelerate prepares it.
        dtype: That of the model's parameters.
        processor: Its processor.
        class_embeddings: (T, P, D).
        early_rejection_topk: As for the model.
        augmentation: Test-time augmentation.
    """

    model: nn.Module
    dtype: torch.dtype
    processor: SEDProcessor
    class_embeddings: Tensor
    early_rejection_topk: int | None = None
    augmentation: MultiScaleFlip | None = None

    def __call__(self, pixel_values: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Segment B pictures in the official order: sigmoid, resize, argmax.

        Args:
            pixel_values: (B, 3, H, W) at each scale of the augmentation, or at the one scale without it.
            sizes: (height, width) of each class map.

        Returns:
            Class indices, int64 (height, width), of each picture.
        """
        if self.augmentation is None:
            (view,) = pixel_values
            class_maps = self.processor.post_process_semantic_segmentation(self._outputs(view), target_sizes=sizes)
            return cast("list[Tensor]", class_maps)  # dicts only on request
        views = [self.augmentation.mean_over_flips(self._probabilities, view) for view in pixel_values]
        return [most_probable_class([view[i] for view in views], size)[1] for i, size in enumerate(sizes)]

    def _outputs(self, pixel_values: Tensor) -> Any:
        return self.model(
            pixel_values=pixel_values.to(self.dtype),
            class_embeddings=self.class_embeddings,
            early_rejection_topk=self.early_rejection_topk,
            return_dict=True,
        )

    def _probabilities(self, pixel_values: Tensor) -> Tensor:
        """Float32 (B, T, h, w), at the resolution of the logits."""
        return self._outputs(pixel_values).all_logits().float().sigmoid()
