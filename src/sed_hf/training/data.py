"""Training samples by their position in the run: neither an interruption nor the number of processes matters."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..data.transforms import TrainingTransform
from .recipe import Recipe


class TrainingSamples(Dataset[dict[str, Any]]):
    """The samples of a whole run: position p is the p-th picture that training sees.

    Each pass over the data set has an order of its own, and each position an augmentation of its own, both drawn from
    the seed. A dataloader that starts at any position, in any number of processes, gives the same samples.

    Args:
        dataset: Items with `image` (PIL), `label` (PIL or (H, W) integers) and `file_name`.
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
            ValueError: The label has another size than the picture; the message names the file.
        """
        epoch, offset = divmod(position, len(self.dataset))
        sample = self.dataset[int(epoch_order(len(self.dataset), self.seed, epoch)[offset])]
        image = sample["image"].convert("RGB")
        label = np.array(sample["label"]).astype(np.int32)
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


def build_training_samples(dataset: Any, recipe: Recipe, ignore_index: int) -> TrainingSamples:
    """The samples that a recipe trains with."""
    transform = TrainingTransform(
        recipe.shortest_edge,
        recipe.longest_edge,
        recipe.crop_size,
        recipe.color_jitter,
        recipe.horizontal_flip,
        ignore_index,
    )
    return TrainingSamples(dataset, recipe.steps * recipe.images_per_step, recipe.seed, transform)


def sample_vocabulary(
    labels: Tensor, num_classes: int, sizes: tuple[int, int], ignore_index: int, seed: Sequence[int]
) -> Tensor:
    """The classes that occur in the labels and random others: sorted indices.

    Args:
        labels: Integers of any shape.
        num_classes: The number of classes to draw from.
        sizes: The least and the greatest size of the vocabulary. Its logarithm is drawn uniformly, so that few and many
            classes are equally common. More are returned where more occur.
        ignore_index: The label of pixels without a class.
        seed: Determines the draw.
    """
    rng = np.random.default_rng(list(seed))
    least, greatest = sizes
    size = least if least == greatest else round(least * (greatest / least) ** rng.random())
    present = labels[labels != ignore_index].unique().cpu()
    others = np.setdiff1d(np.arange(num_classes), present.numpy())
    chosen = rng.permutation(others)[: max(0, size - len(present))]
    return torch.cat([present, torch.from_numpy(chosen)]).sort().values


def relabel(labels: Tensor, vocabulary: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels as positions in a vocabulary that holds all of them; ignored pixels stay ignored."""
    position = torch.full((num_classes,), ignore_index, device=labels.device)
    position[vocabulary.to(labels.device)] = torch.arange(len(vocabulary), device=labels.device)
    ignored = labels == ignore_index
    return position[labels.masked_fill(ignored, 0)].masked_fill(ignored, ignore_index)
