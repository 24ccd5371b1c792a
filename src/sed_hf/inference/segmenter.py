"""RGB images to labels, with one model and one vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..data.distractors import distractors
from ..modeling_sed import SEDForSemanticSegmentation
from ..pipeline_sed import EVERYTHING_ELSE, segment_images
from ..processing_sed import SEDProcessor
from ..sliding_window_sed import SlidingWindow


def competing_names(class_names: Sequence[str], vocabulary: str | None) -> list[str]:
    """The names of a vocabulary, by name or path, that make up the class "everything else" beside these, if any."""
    if vocabulary is None:
        return []
    if EVERYTHING_ELSE in class_names:
        raise ValueError(f"--everything-else adds a class of the name {EVERYTHING_ELSE!r}, which is one of yours")
    return distractors(class_names, [vocabulary])


def unused_label(num_classes: int) -> int:
    """The label of pixels without a class: 255 if the label map has 8 bits, 65535 if it has 16."""
    if num_classes > 65535:
        raise ValueError(f"expected at most 65535 classes, which is what a label map can hold, got {num_classes}")
    return 255 if num_classes <= 255 else 65535


@dataclass(eq=False)
class Segmenter:
    """Segments RGB images with one model and one vocabulary.

    Attributes:
        model: In evaluation mode.
        processor: Its processor.
        class_names: The names of T classes; synonyms are separated by ", ".
        class_embeddings: Theirs, (T, P, D).
        topk: Early rejection: keep the classes that are among the k best at some pixel; 0 keeps all, `None` is the
            model's own setting.
        threshold: Pixels whose best probability is lower belong to no class.
        sliding_window: How to cut large images into tiles.
        everything_else: Embeddings of more names, which compete with `class_names`; together they are one more class.
        ignore_index: Label of pixels that belong to no class; `None` if every pixel belongs to one.
    """

    model: SEDForSemanticSegmentation
    processor: SEDProcessor
    class_names: Sequence[str]
    class_embeddings: Tensor
    topk: int | None = None
    threshold: float | None = None
    sliding_window: SlidingWindow | None = None
    everything_else: Tensor | None = None

    def __post_init__(self) -> None:
        if self.everything_else is not None:
            self.class_names = [*self.class_names, EVERYTHING_ELSE]
            self.class_embeddings = torch.cat([self.class_embeddings, self.everything_else])
        self.ignore_index = None if self.threshold is None else unused_label(len(self.class_names))

    def __call__(self, images: Sequence[Image.Image], show_progress: bool = False) -> list[dict[str, npt.NDArray]]:
        """Segment images of any sizes in one batch; with a sliding window each by itself, in batches of tiles.

        Returns:
            For each image `segmentation`, int64 (height, width), and `probability`, float32 (height, width).

        Raises:
            NonFiniteLogitsError: The model gives values that are not numbers for an image.
        """
        results = segment_images(
            self.model,
            self.processor,
            images,
            self.class_embeddings,
            early_rejection_topk=self.topk,
            threshold=self.threshold,
            ignore_index=-1,
            sliding_window=self.sliding_window,
            show_progress=show_progress,
        )
        return self._arrays(results)

    @torch.no_grad()  # not inference_mode, after which FSDP cannot train
    def forward(self, pixel_values: Sequence[Tensor]) -> Any:
        """The model's outputs for images that the image processor has prepared, each (3, H, W), to post-process."""
        if len({values.shape for values in pixel_values}) > 1:
            raise ValueError("images of different sizes without do_input_resize: use a batch size of 1")
        model, topk = self.model, self.topk
        return model(
            torch.stack(list(pixel_values)).to(model.device, model.dtype),
            class_embeddings=self.class_embeddings,
            early_rejection_topk=model.config.early_rejection_topk if topk is None else topk,
        )

    def post_process(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[dict[str, npt.NDArray]]:
        """What a call returns, from the outputs of `forward` and the (height, width) of each image."""
        post_process: Any = self.processor.post_process_semantic_segmentation
        return self._arrays(post_process(outputs, sizes, self.threshold, ignore_index=-1, return_probabilities=True))

    def _arrays(self, results: Sequence[dict[str, Tensor]]) -> list[dict[str, npt.NDArray]]:
        arrays = []
        for result in results:
            segmentation = result["segmentation"].cpu().clamp(max=len(self.class_names) - 1)  # the others are the last
            if self.ignore_index is not None:
                segmentation = segmentation.masked_fill(segmentation == -1, self.ignore_index)
            arrays.append({"segmentation": segmentation.numpy(), "probability": result["probability"].cpu().numpy()})
        return arrays
