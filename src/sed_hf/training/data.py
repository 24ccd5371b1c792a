"""Training samples by their position in the run: neither an interruption nor the number of processes matters."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..data.benchmarks import OWN_DATA, load_benchmark
from ..data.scenes import SceneDataset
from ..data.transforms import TrainingTransform
from ..image_processing_sed import to_labels
from .recipe import Recipe


class TrainingSamples(Dataset[dict[str, Any]]):
    """The samples of a whole run: position p is the p-th image that training sees.

    Each pass over the data set has an order of its own, and each position an augmentation of its own, both drawn from
    the seed. A dataloader that starts at any position, in any number of processes, gives the same samples.

    Args:
        dataset: Items with `image` (PIL, RGB), `label` (PIL or (H, W) integers) and `file_name`.
        length: Number of positions.
        seed: Seed of order and augmentation.
        transform: Augmentation of an image, a label map and a random generator, as [`TrainingTransform`].
    """

    def __init__(self, dataset: Any, length: int, seed: int, transform: Callable) -> None:
        self.dataset = dataset
        self.length = length
        self.seed = seed
        self.transform = transform

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Any]:
        """`pixel_values` (3, S, S), `labels` (S, S) int64 and `file_name` of the sample at a position.

        Raises:
            ValueError: The label has another size than the image; the message names the file.
        """
        epoch, offset = divmod(position, len(self.dataset))
        sample = self.dataset[int(epoch_order(len(self.dataset), self.seed, epoch)[offset])]
        image, label = sample["image"], to_labels(sample["label"]).astype(np.int32)
        if label.shape != (image.height, image.width):
            raise ValueError(
                f"{sample['file_name']}: expected a label of the image's size, {image.width}×{image.height} pixels,"
                f" got {label.shape[1]}×{label.shape[0]}"
            )
        rng = np.random.default_rng([self.seed, position, 1])  # not the order's generator
        pixels, label = self.transform(image, label, rng)
        levels = torch.from_numpy(pixels).permute(2, 0, 1)
        return {
            "pixel_values": tvF.normalize(levels.float() / 255, list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD)),
            "labels": torch.from_numpy(label.astype(np.int64)),
            "file_name": sample["file_name"],
        }


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the data set in one pass."""
    return np.random.default_rng([seed, epoch]).permutation(length)


def load_training_data(recipe: Recipe) -> tuple[TrainingSamples, list[str], int]:
    """The samples of a run, the class names and the ignored label.

    Raises:
        FileNotFoundError: There are no such data.
        ValueError: The data set is unknown.
    """
    num_samples = recipe.steps * recipe.images_per_step
    if recipe.dataset == "scenes":
        dataset: Any = SceneDataset("train", num_samples, recipe.seed, recipe.crop_size)
        class_names, ignore_index = dataset.class_names, 255
    else:
        assert recipe.data_dir is not None  # which the recipe has checked
        split = recipe.split or (None if recipe.dataset == OWN_DATA else "train")
        dataset = load_benchmark(recipe.dataset, recipe.data_dir, split)
        label = dataset.features["label"]
        class_names, ignore_index = list(label.names), label.ignore_index
    transform = TrainingTransform(
        recipe.shortest_edge,
        recipe.longest_edge,
        recipe.crop_size,
        recipe.color_jitter,
        recipe.horizontal_flip,
        ignore_index,
    )
    return TrainingSamples(dataset, num_samples, recipe.seed, transform), class_names, ignore_index
