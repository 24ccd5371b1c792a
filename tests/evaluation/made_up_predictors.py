"""Small models that make their predictions up, plain to see, and small data to try them on."""

from pathlib import Path

import datasets
import numpy as np
import torch
from raw_copies import write_own_data
from small_models import seed_weights, small_model
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation
from sed_hf.data.benchmarks import load_benchmark
from sed_hf.modeling_sed import SEDSemanticSegmentationOutput

CLASS_NAMES = ["cat", "dog", "sky"]


class BrightnessPredictor(SEDForSemanticSegmentation):
    """Sees the classes in the order of brightness, so that every image counts; its weights, of a seed, do nothing.

    It raises `KeyboardInterrupt` once it has seen `num_seen` images.
    """

    def __init__(self, num_seen: int | None = None, seed: int = 0) -> None:
        super().__init__(small_model().config)
        seed_weights(self, seed)
        self.num_seen, self.num_images = num_seen, 0

    def get_class_embeddings(self, input_ids: Tensor, class_ids: Tensor, num_synonyms: Tensor) -> Tensor:
        return torch.zeros(int(class_ids.max()) + 1, len(self.config.prompt_templates), self.config.projection_dim)

    def forward(
        self, pixel_values: Tensor, class_embeddings: Tensor, early_rejection_topk: int | None = None
    ) -> SEDSemanticSegmentationOutput:
        self.num_images += len(pixel_values)
        self.topk_seen = early_rejection_topk
        if self.num_seen is not None and self.num_images > self.num_seen:
            raise KeyboardInterrupt
        return SEDSemanticSegmentationOutput(logits=self.logits(pixel_values, len(class_embeddings)))

    def logits(self, pixel_values: Tensor, num_classes: int) -> Tensor:
        brightness = pixel_values.mean(dim=1, keepdim=True)
        return -((brightness - torch.linspace(-2, 2, num_classes).view(1, -1, 1, 1)) ** 2)


class HalvesPredictor(BrightnessPredictor):
    """Sees one class in the left half of every image, and another in the right half."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right = left, right

    def logits(self, pixel_values: Tensor, num_classes: int) -> Tensor:
        logits = torch.full((len(pixel_values), num_classes, 8, 8), -9.0)
        logits[:, self.left, :, :4] = 9.0
        logits[:, self.right, :, 4:] = 9.0
        return logits


def write_own_images(root: Path, sizes: list[tuple[int, int]]) -> datasets.Dataset:
    """Own data of `CLASS_NAMES` with random labels of the given (height, width), some ignored."""
    generator = np.random.default_rng(0)
    labels = {str(index): generator.choice([0, 1, 2, 255], size) for index, size in enumerate(sizes)}
    write_own_data(root, labels, CLASS_NAMES)
    return load_benchmark("custom", root)
