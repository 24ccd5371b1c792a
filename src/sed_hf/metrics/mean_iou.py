"""Mean intersection over union of semantic segmentation, counted image by image in one confusion matrix.

The figures are those of Detectron2's `SemSegEvaluator`: means run over the classes that occur in the ground truth, and
a pixel with an ignored label counts nowhere, not even as a prediction.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from ..image_processing_sed import to_labels

ClassMap: TypeAlias = Any  # (height, width) class indices: tensor, array, PIL image or nested lists


class MeanIoU:
    """Mean IoU over any number of images, on one process or many, in the memory of a confusion matrix.

    Each process of `torch.distributed` adds its share of the images, each once, and `compute` sums over all processes.

    Args:
        class_names: The T names of classes 0, 1, ..., without repetition.
        ignore_index: The label of pixels that count nowhere. A prediction of it is wrong, and of no class.
        last_class_is_background: Whether predictions beyond the last class, `ignore_index` included, count as the last
            class, as in VOC-20b: 21 classes with the background last, predicted from a vocabulary of 59 names.

    Attributes:
        confusion_matrix: (T, T + 1) int64 pixels that this process has counted, label by prediction; the last column is
            of no class. It may be set, to continue from a saved one.
    """

    def __init__(
        self, class_names: Sequence[str], ignore_index: int = 255, last_class_is_background: bool = False
    ) -> None:
        if repeated := {name for name in class_names if list(class_names).count(name) > 1}:
            raise ValueError(f"class_names: expected different names, got {sorted(repeated)} more than once")
        self.class_names = list(class_names)
        self.ignore_index = ignore_index
        self.last_class_is_background = last_class_is_background
        self.confusion_matrix = torch.zeros((len(class_names), len(class_names) + 1), dtype=torch.int64)

    def add(self, *, prediction: ClassMap, reference: ClassMap, file_name: str = "image") -> None:
        """Count one image, which errors call `file_name`; its prediction and its label have the same size."""
        self.add_batch(predictions=[prediction], references=[reference], file_names=[file_name])

    def add_batch(
        self,
        *,
        predictions: Sequence[ClassMap],
        references: Sequence[ClassMap],
        file_names: Sequence[str] | None = None,
    ) -> None:
        """Count several images, of any sizes; of a batch with an error, none."""
        names = file_names or [f"image {position} of the batch" for position in range(len(predictions))]
        counts = [self._count(*image) for image in zip(predictions, references, names, strict=True)]
        for matrix in counts:
            self.confusion_matrix = self.confusion_matrix.to(matrix.device) + matrix

    def total(self) -> Tensor:
        """The confusion matrix of all processes together, which must all call this."""
        if not dist.is_initialized():
            return self.confusion_matrix
        accelerator = torch.accelerator.current_accelerator()
        uses_cpu = accelerator is None or dist.get_backend() == dist.Backend.GLOO
        matrix = self.confusion_matrix.to("cpu" if uses_cpu else accelerator, copy=True)
        dist.all_reduce(matrix)
        return matrix

    def compute(self) -> dict[str, float | None]:
        """The figures of all images that all processes have added, which must all call this; then forget the images.

        In percent: `mIoU`, `fwIoU` (weighted by labelled pixels), `IoU-<name>` of each class, `mACC` (mean accuracy),
        `pACC` (pixel accuracy), `ACC-<name>`. A class without a labelled pixel has `None` and enters no mean.
        """
        matrix = self.total().cpu().double()
        self.confusion_matrix = torch.zeros_like(self.confusion_matrix)
        labelled, matrix = matrix.sum(dim=1), matrix[:, :-1]
        correct, predicted = matrix.diag(), matrix.sum(dim=0)
        iou = correct / (labelled + predicted - correct)
        accuracy = correct / labelled  # NaN without a labelled pixel
        iou[accuracy.isnan()] = torch.nan
        figures = {
            "mIoU": iou.nanmean(),
            "fwIoU": (iou * labelled).nansum() / labelled.sum(),
            **{f"IoU-{name}": value for name, value in zip(self.class_names, iou, strict=True)},
            "mACC": accuracy.nanmean(),
            "pACC": correct.sum() / labelled.sum(),
            **{f"ACC-{name}": value for name, value in zip(self.class_names, accuracy, strict=True)},
        }
        # None, not NaN, because JSON has no NaN.
        return {name: None if value.isnan() else 100 * value.item() for name, value in figures.items()}

    def _count(self, prediction: ClassMap, reference: ClassMap, name: str) -> Tensor:
        """The (T, T + 1) matrix of one image, on the device of the prediction."""
        predicted = _class_indices(prediction, f"{name}: the prediction")
        labelled = _class_indices(reference, f"{name}: the label").to(predicted.device)
        if predicted.shape != labelled.shape:
            raise ValueError(f"{name}: the prediction is {tuple(predicted.shape)}, the label {tuple(labelled.shape)}")
        num_classes, last = len(self.class_names), len(self.class_names) - 1
        counts = labelled != self.ignore_index
        labelled, predicted = labelled[counts], predicted[counts]
        no_class = predicted == self.ignore_index
        if self.last_class_is_background:
            predicted = predicted.clamp(max=last)
        for what, values in {"label": labelled, "prediction": predicted[~no_class]}.items():
            wrong = values[(values < 0) | (values > last)]
            if wrong.numel():
                raise ValueError(f"{name}: {what} {wrong[0].item()} is outside the classes 0 to {last}")
        predicted = predicted.masked_fill(no_class, last if self.last_class_is_background else num_classes)
        pairs = labelled * (num_classes + 1) + predicted
        return pairs.bincount(minlength=self.confusion_matrix.numel()).view_as(self.confusion_matrix)


def _class_indices(class_map: ClassMap, what: str) -> Tensor:
    """A class map as an int64 tensor (height, width)."""
    if not isinstance(class_map, Tensor):
        # Of a PIL image the ids that are stored, which are not always the levels that it shows.
        array = to_labels(class_map) if isinstance(class_map, Image.Image) else np.asarray(class_map)
        # torch knows neither negative strides nor foreign byte orders.
        class_map = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), "C"))
    if class_map.is_floating_point() or class_map.ndim != 2:
        raise TypeError(f"{what}: expected integers (height, width), got {class_map.dtype} {tuple(class_map.shape)}")
    return class_map.long()
