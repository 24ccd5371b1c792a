"""Samples and class names of a training run, the same after any interruption and on any number of processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .. import SEDForSemanticSegmentation, SEDProcessor
from ..data.benchmarks import load_benchmark
from ..data.distractors import distractors
from ..data.scenes import SceneDataset
from ..data.transforms import TrainingTransform
from ..image_processing_sed import to_labels
from .recipe import Recipe


@dataclass(eq=False)
class TrainingSamples(Dataset[dict[str, Any]]):
    """The samples of a whole run: position p is the p-th image that training sees.

    Each pass over the data set has an order of its own, and each position an augmentation of its own, by the seed.
    """

    dataset: Any  # items with `image` (PIL, RGB), `label` (PIL or (H, W) integers) and `file_name`
    length: int
    seed: int
    transform: Callable  # of an image, a label map and a random generator, as TrainingTransform

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Any]:
        """`pixel_values` (3, S, S), `labels` (S, S) int64 and `file_name` of the sample at a position."""
        epoch, offset = divmod(position, len(self.dataset))
        sample = self.dataset[int(_epoch_order(len(self.dataset), self.seed, epoch)[offset])]
        image, label = sample["image"], to_labels(sample["label"]).astype(np.int32)
        if label.shape != image.size[::-1]:
            raise ValueError(f"{sample['file_name']}: the image is {image.size[::-1]}, the label {label.shape}")
        rng = np.random.default_rng([self.seed, position, 1])  # not the order's generator
        pixels, label = self.transform(image, label, rng)
        levels = torch.from_numpy(pixels).permute(2, 0, 1)
        return {
            "pixel_values": tvF.normalize(levels.float() / 255, list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD)),
            "labels": torch.from_numpy(label.astype(np.int64)),
            "file_name": sample["file_name"],
        }


@lru_cache(maxsize=2)
def _epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def load_training_data(recipe: Recipe) -> tuple[TrainingSamples, list[str], int]:
    """The samples of a run, the class names, distractors included, and the ignored label."""
    num_samples = recipe.steps * recipe.images_per_step
    if recipe.dataset == "scenes":
        dataset: Any = SceneDataset("train", num_samples, recipe.seed, recipe.crop_size)
        class_names, ignore_index = dataset.class_names, 255
    else:
        assert recipe.data_dir is not None  # which the recipe has checked
        dataset = load_benchmark(recipe.dataset, recipe.data_dir, recipe.split, default_split="train")
        label = dataset.features["label"]
        class_names, ignore_index = label.names, label.ignore_index
    if recipe.distractor_vocabulary is not None:
        class_names = class_names + distractors(class_names, [recipe.distractor_vocabulary])
    transform = TrainingTransform(
        recipe.shortest_edge,
        recipe.longest_edge,
        recipe.crop_size,
        recipe.color_jitter,
        recipe.horizontal_flip,
        ignore_index,
    )
    return TrainingSamples(dataset, num_samples, recipe.seed, transform), class_names, ignore_index


class TrainingClasses:
    """Arguments of the model for T class names: tokenised once, and encoded once if the text encoder is frozen."""

    def __init__(self, names: list[str], processor: SEDProcessor, model: SEDForSemanticSegmentation) -> None:
        tokens = processor(text=names, return_tensors="pt").to(model.device)
        self.num_classes = len(names)
        self.ignore_index = model.config.ignore_index
        self.inputs: dict[str, Tensor] = {"input_ids": tokens["input_ids"], "class_ids": tokens["class_ids"]}
        if model.config.freeze_text_encoder:
            with torch.no_grad():
                self.inputs = {"class_embeddings": model.get_class_embeddings(**self.inputs)}

    def select(self, vocabulary: Tensor) -> dict[str, Tensor]:
        """The arguments for some of the classes, sorted indices, in their order."""
        if "class_embeddings" in self.inputs:
            return {"class_embeddings": self.inputs["class_embeddings"][vocabulary]}
        chosen = torch.isin(self.inputs["class_ids"], vocabulary)
        class_ids = torch.searchsorted(vocabulary, self.inputs["class_ids"][chosen])
        return {"input_ids": self.inputs["input_ids"][chosen], "class_ids": class_ids}


def sample_vocabulary(
    labels: Tensor, num_classes: int, sizes: tuple[int, int], ignore_index: int, seed: Sequence[int]
) -> Tensor:
    """The classes that occur in the labels of any process, all of which must call this, and random others, sorted.

    How many is drawn between two sizes, so that few and many are equally common: the logarithm is uniform.
    """
    counts = labels[labels != ignore_index].bincount(minlength=num_classes)
    present = reduce(counts, "sum").nonzero().flatten().cpu()
    rng = np.random.default_rng(seed)
    size = round(sizes[0] * (sizes[1] / sizes[0]) ** rng.random())
    others = rng.permutation(np.setdiff1d(np.arange(num_classes), present))
    chosen = torch.from_numpy(others[: max(0, size - len(present))])
    return torch.cat([present, chosen]).sort().values.to(labels.device)
