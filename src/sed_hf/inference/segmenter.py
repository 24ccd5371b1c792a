"""RGB images to labels, with one model and one vocabulary."""

from collections.abc import Sequence

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..modeling_sed import SEDForSemanticSegmentation
from ..pipeline_sed import EVERYTHING_ELSE, segment_images
from ..processing_sed import SEDProcessor
from ..sliding_window_sed import SlidingWindow
from .class_embeddings import ClassEmbeddingCache, encode_classes
from .writers import unused_label

NO_CLASS = -1  # of a pixel, before it gets `ignore_index`


class Segmenter:
    """Segments RGB images with one model and one vocabulary.

    Args:
        model: In evaluation mode.
        processor: Its processor.
        class_names: The names of T classes; synonyms are separated by ", ".
        class_embeddings: Theirs, (T, P, D). By default they are encoded, or found in the cache on disk.
        topk: Early rejection: keep the classes that are among the k best at some pixel; 0 keeps all, `None` is the
            model's own setting.
        threshold: Pixels whose best probability is lower belong to no class.
        sliding_window: How to cut large images into tiles.
        everything_else: More names, which compete with `class_names`; together they are one class, the last.
        ignore_index: Label of pixels that belong to no class; by default the highest of the label map.

    Attributes:
        class_names: The names of the labels, with "everything else" if that is asked for.
        ignore_index: `None` if every pixel belongs to a class.
    """

    def __init__(
        self,
        model: SEDForSemanticSegmentation,
        processor: SEDProcessor,
        class_names: Sequence[str],
        class_embeddings: Tensor | None = None,
        *,
        topk: int | None = None,
        threshold: float | None = None,
        sliding_window: SlidingWindow | None = None,
        everything_else: Sequence[str] = (),
        ignore_index: int | None = None,
    ) -> None:
        if class_embeddings is None:
            class_embeddings = encode_classes(model, processor, class_names, ClassEmbeddingCache())
        self.class_names = list(class_names)
        if everything_else:
            others = encode_classes(model, processor, everything_else, ClassEmbeddingCache())
            class_embeddings = torch.cat([class_embeddings, others])
            self.class_names.append(EVERYTHING_ELSE)
        self.model = model
        self.processor = processor
        self.class_embeddings = class_embeddings
        self.topk = topk
        self.threshold = threshold
        self.sliding_window = sliding_window
        self.ignore_index = ignore_index
        if ignore_index is None and threshold is not None:
            self.ignore_index = unused_label(len(self.class_names))

    def __call__(self, images: Sequence[Image.Image], show_progress: bool = False) -> list[dict[str, npt.NDArray]]:
        """Segment images of any sizes in one batch; with a sliding window each by itself, in batches of tiles.

        Args:
            images: RGB images.
            show_progress: Show a bar of the tiles of a large image.

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
            ignore_index=NO_CLASS,
            sliding_window=self.sliding_window,
            show_progress=show_progress,
        )
        return [self._labels(result) for result in results]

    def _labels(self, result: dict[str, Tensor]) -> dict[str, npt.NDArray]:
        """A result in the labels of `class_names`, as arrays."""
        segmentation = result["segmentation"].cpu().clamp(max=len(self.class_names) - 1)
        if self.ignore_index is not None:
            segmentation = segmentation.masked_fill(segmentation == NO_CLASS, self.ignore_index)
        return {"segmentation": segmentation.numpy(), "probability": result["probability"].cpu().numpy()}
