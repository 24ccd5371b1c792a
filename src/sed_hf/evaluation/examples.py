"""Batches of pictures prepared for the model, dealt out to the processes."""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..image_processing_sed import SEDImageProcessor
from .augmentation import scaled_sizes
from .sets import EvaluationSet


class PreparedExample(TypedDict):
    """One picture.

    Attributes:
        pixel_values: One (3, H, W) for each scale.
        label: int32 (height, width), in the size of the picture.
        file_name: The name to tell it by.
        index: Its index in the data set.
    """

    pixel_values: list[Tensor]
    label: Tensor
    file_name: str
    index: int


class Batch(TypedDict):
    """B pictures; `pixel_values` has one (B, 3, H, W) for each scale, the others as [`PreparedExample`]."""

    pixel_values: list[Tensor]
    labels: list[Tensor]
    file_names: list[str]
    indices: Tensor


class PreparedExamples(Dataset[PreparedExample]):
    """The examples of a data set at some indices, prepared at some scales of the network's input.

    Raises:
        ValueError: When an example is read: its files are damaged, or its label has another size than its picture.
    """

    def __init__(
        self,
        dataset: EvaluationSet,
        image_processor: SEDImageProcessor,
        indices: Sequence[int],
        scales: Sequence[float] = (1.0,),
    ) -> None:
        self.dataset = dataset
        self.image_processor = image_processor
        self.indices = indices
        self.sizes = [scaled_sizes(image_processor, scale) for scale in scales]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> PreparedExample:
        index = self.indices[position]
        example = self.dataset[index]
        image, file_name = example["image"], example["file_name"]
        label = torch.from_numpy(np.array(example["label"]).astype(np.int32))
        if (image.height, image.width) != label.shape:
            raise ValueError(
                f"{file_name}: the picture has {image.width}×{image.height} pixels,"
                f" but its label {label.shape[1]}×{label.shape[0]}"
            )
        pixel_values = [
            self.image_processor(images=image, return_tensors="pt", **size)["pixel_values"][0] for size in self.sizes
        ]
        return {"pixel_values": pixel_values, "label": label, "file_name": file_name, "index": index}


def iterate_batches(
    examples: PreparedExamples, batch_size: int, num_workers: int, device: torch.device
) -> Iterator[Batch]:
    """This process's share of the examples, on a device.

    All processes get equally many batches; the last ones repeat examples where they do not divide evenly.
    """
    loader = DataLoader(
        examples,
        batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # without one, the loader would draw from training's random state
    )
    # Not `accelerator.prepare`, which would save and restore this loader together with those of training.
    yield from prepare_data_loader(loader, device=device, put_on_device=True)


def _collate(examples: list[PreparedExample]) -> Batch:
    views = zip(*(example["pixel_values"] for example in examples), strict=True)
    return {
        "pixel_values": [torch.stack(view) for view in views],
        "labels": [example["label"] for example in examples],
        "file_names": [example["file_name"] for example in examples],
        "indices": torch.tensor([example["index"] for example in examples]),
    }
