"""Images of an evaluation set, dealt out to the processes and read by workers."""

import math
import os
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..image_processing_sed import to_labels
from .sets import EvaluationSet

MAX_WORKERS = 4


class Example(TypedDict):
    """One image.

    Attributes:
        image: In RGB.
        label: (height, width) integers, in the size of the image.
        file_name: The name to tell it by.
        is_repeated: Whether it only fills up the share of this process, and must not be scored.
    """

    image: Image.Image
    label: npt.NDArray[np.integer]
    file_name: str
    is_repeated: bool


class ProcessShare(Dataset[Example]):
    """This process's share of a data set, from the image `first` on: every N-th of N processes.

    All shares are equally long, since a model that is sharded runs on all processes together: where the images do not
    divide evenly, the last one comes again.

    Raises:
        ValueError: When an example is read: its files are damaged, or its label has another size than its image.
    """

    def __init__(self, dataset: EvaluationSet, first: int) -> None:
        self.dataset = dataset
        self.first = first
        self.rank, self.num_processes = PartialState().process_index, PartialState().num_processes

    def __len__(self) -> int:
        return math.ceil((len(self.dataset) - self.first) / self.num_processes)

    def __getitem__(self, position: int) -> Example:
        index = self.first + position * self.num_processes + self.rank
        example = self.dataset[min(index, len(self.dataset) - 1)]
        image, label, file_name = example["image"], to_labels(example["label"]), example["file_name"]
        if label.shape != (image.height, image.width):
            raise ValueError(
                f"{file_name}: the image has {image.width}×{image.height} pixels,"
                f" but its label {label.shape[1]}×{label.shape[0]}"
            )
        is_repeated = index >= len(self.dataset)
        return {"image": image, "label": label, "file_name": file_name, "is_repeated": is_repeated}


def build_loader(dataset: EvaluationSet, first: int, batch_size: int, num_workers: int | None) -> DataLoader[Any]:
    """Batches of this process's share, equally many on all processes; arguments as for `evaluate_benchmark`."""
    if num_workers is None:
        num_workers = min(MAX_WORKERS, os.cpu_count() or 1)
    return DataLoader(
        ProcessShare(dataset, first),
        batch_size,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # without one, the loader would draw from training's random state
    )
