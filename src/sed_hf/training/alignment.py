"""Training of the two towers before SED, for a model whose CLIP does not yet align images and words."""

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from ..modeling_sed import ENCODER_STRIDE, SEDCostMap, SEDForSemanticSegmentation, SEDSemanticSegmentationOutput

MAX_LOGIT_SCALE = 4.6052  # a temperature of 1/100, where CLIP's training stops it


class TowerAlignment(nn.Module):
    """Classifies every cell of the cost map, so that a location's embedding lies nearest to its class's name."""

    def __init__(self, model: SEDForSemanticSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: Tensor, labels: Tensor, input_ids: Tensor, class_ids: Tensor
    ) -> SEDSemanticSegmentationOutput:
        """The loss; arguments as for the model."""
        class_embeddings = self.model.get_class_embeddings(input_ids, class_ids)
        dense_embeddings = self.model.get_image_features(pixel_values).pooler_output
        cost_map = SEDCostMap.of(dense_embeddings, class_embeddings).compute()
        logits = self.model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * cost_map
        labels = labels.masked_fill(labels == self.model.config.ignore_index, -1)  # which may be a distractor's number
        loss = alignment_loss(logits, cell_shares(labels, len(class_embeddings)))
        return SEDSemanticSegmentationOutput(loss=loss)


def cell_shares(labels: Tensor, num_classes: int) -> Tensor:
    """The share of each class in each cell of the cost map: (B, T, h, w) of labels (B, 32h, 32w)."""
    cells = F.pixel_unshuffle(labels[:, None], ENCODER_STRIDE).movedim(1, -1)  # (B, h, w, 1024)
    inside = (cells >= 0) & (cells < num_classes)
    counts = torch.zeros(*cells.shape[:3], num_classes, device=labels.device)
    counts.scatter_add_(3, cells.where(inside, 0), inside.float())
    return counts.movedim(-1, 1) / cells.shape[-1]


def alignment_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of the classes (B, T, h, w) of each cell, for each prompt template of logits (B, T, P, h, w).

    Every class that occurs in the batch, on any process, counts the same, or backgrounds would drown the objects. The
    mean over the processes is the loss of the whole batch.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=1).mean(2)  # (B, T, h, w)
    area = reduce(shares.sum((0, 2, 3)), "sum")[:, None, None]
    weights = shares / area.clamp(min=1e-6) / (area > 0).sum()
    return -(weights * log_probabilities).sum() * PartialState().num_processes
