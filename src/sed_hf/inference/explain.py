"""What SED sees in a picture, class by class: the cost map, every head, and where early rejection drops a class."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..modeling_sed import SEDForSemanticSegmentation, SEDSemanticSegmentationOutput
from ..processing_sed import SEDProcessor


@dataclass(frozen=True)
class Explanation:
    """What SED sees of T classes.

    Attributes:
        cost_map: float32 (T, h, w), cosine similarity of each location and class name, mean of all prompt templates.
        heads: float32 (T, h, w), (T, 2h, 2w), (T, 4h, 4w), (T, 8h, 8w): the probabilities of the auxiliary heads,
            before each stage, and of the last head.
        rejected_before: int64 (T,), the stage (from 1) that a class does not enter with early rejection; 0: it enters
            every one.
        segmentation: int64 (height, width), the class of each pixel.
        probability: float32 (height, width), of that class.
    """

    cost_map: npt.NDArray[np.float32]
    heads: tuple[npt.NDArray[np.float32], ...]
    rejected_before: npt.NDArray[np.int64]
    segmentation: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float32]


@torch.inference_mode()
def explain_picture(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    picture: Image.Image,
    class_embeddings: Tensor,
    topk: int,
) -> Explanation:
    """Segment a picture and keep what led to it.

    Args:
        model: In evaluation mode.
        processor: Its processor.
        picture: RGB.
        class_embeddings: (T, P, D).
        topk: The k of the early rejection to report on. Everything else is of dense decoding.
    """
    pixel_values = processor(images=picture, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    features = model.get_image_features(pixel_values)
    locations = F.normalize(features.dense_embeddings, dim=1)
    class_embeddings = class_embeddings.to(locations)
    dense = model.decoder(locations, class_embeddings, features.hidden_states)
    rejecting = model.decoder(locations, class_embeddings, features.hidden_states, topk)
    result: Any = processor.post_process_semantic_segmentation(
        SEDSemanticSegmentationOutput(logits=dense.logits),
        target_sizes=[(picture.height, picture.width)],
        return_probabilities=True,
    )[0]
    # The mean of cosines is the cosine with the mean embedding, up to its length, which is left as it is.
    cost_map = torch.einsum("dhw,td->thw", locations[0].float(), class_embeddings.float().mean(1))
    return Explanation(
        cost_map=cost_map.cpu().numpy(),
        heads=tuple(logits[0].float().sigmoid().cpu().numpy() for logits in (*dense.aux_logits, dense.logits)),
        rejected_before=first_missing_stage(rejecting.kept_classes[0]).cpu().numpy(),
        segmentation=result["segmentation"].cpu().numpy(),
        probability=result["probability"].cpu().numpy(),
    )


def first_missing_stage(kept_classes: Tensor) -> Tensor:
    """The first stage, from 1, that each class does not enter, of (S, T) bool; 0 if it enters all: (T,)."""
    is_missing = ~kept_classes
    return torch.where(is_missing.any(0), is_missing.int().argmax(0) + 1, 0)
