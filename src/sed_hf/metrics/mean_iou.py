"""Mean intersection over union as an `evaluate` module that streams: it keeps one confusion matrix and no predictions.

The file stands alone, so `evaluate.load("<path of this file>", class_names=[...])` works without the Hub, and so does
`from sed_hf.metrics import MeanIoU`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import datasets
import evaluate
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

ClassMap: TypeAlias = Tensor | np.ndarray | Sequence[Sequence[int]]  # (height, width), integer class indices

_DESCRIPTION = """
Mean IoU, frequency-weighted IoU, mean and pixel accuracy of semantic segmentation, as Detectron2 defines them: means
run over the classes that occur in the ground truth, and a pixel whose label is ignored counts nowhere, not even as a
prediction.
"""

_INPUTS_DESCRIPTION = """
Inputs are class maps, one a picture, which may differ in size:
    predictions: (height, width) integer class indices.
    references: (height, width) integer class indices or the ignored index.
"""

_CITATION = """
@inproceedings{xie2024sed,
  title={{SED}: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation},
  author={Xie, Bin and Cao, Jiale and Xie, Jin and Khan, Fahad Shahbaz and Pang, Yanwei},
  booktitle={CVPR},
  year={2024}
}
"""


class MeanIoU(evaluate.Metric):
    """Mean IoU over any number of images, on one process or many, in the memory of a few confusion matrices.

    On one process nothing but the class names is needed:

        metric = evaluate.load("src/sed_hf/metrics/mean_iou.py", class_names=names)
        for batch in dataloader:
            metric.add_batch(predictions=predict(batch), references=batch["label"])
        figures = metric.compute()

    On several processes the dataloader repeats some images so that all processes get equally many. To count each image
    once, give the size of the data set, and with each image its index in it:

        metric = evaluate.load(path, class_names=names, num_samples=len(dataset))
        metric.add_batch(predictions=..., references=..., sample_ids=batch["index"])

    An image repeated on the same process is left out at once. One repeated on another process can only be recognised
    when the processes meet, in `compute`; since padding comes at the end, each process sets aside the matrices of its
    latest batch until the next one arrives, and `compute` counts an image that several processes set aside on one of
    them. `compute` refuses to report unless every image was counted exactly once, which reveals missing indices.

    Args:
        class_names: The names of classes 0, 1, ..., without repetition. They name the figures of single classes.
        ignore_index: The label of pixels that count nowhere.
        last_class_is_background: Whether predictions beyond the last class count as the last class. This is the rule of
            VOC-20b: 21 classes with the background last, predicted from a vocabulary of 59 names.
        num_samples: The number of images in the data set. With it, `add_batch` demands `sample_ids`. Several processes
            demand it.
        **kwargs: What `evaluate.load` passes to every metric. `num_process` stays 1: processes are those of
            `torch.distributed` (hence accelerate's), whose confusion matrices are summed.

    Raises:
        ValueError: If a class name is repeated or `num_process` is set.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        ignore_index: int = 255,
        last_class_is_background: bool = False,
        num_samples: int | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("num_process", 1) != 1:
            raise ValueError("Leave num_process at 1: this metric finds its processes through torch.distributed.")
        repeated = [name for name, count in Counter(class_names).items() if count > 1]
        if repeated:
            raise ValueError(f"Class names must differ, these are repeated: {repeated}")
        super().__init__(**kwargs)
        self.class_names = list(class_names)
        self.ignore_index = ignore_index
        self.last_class_is_background = last_class_is_background
        self.num_samples = num_samples
        self.reset()

    def _info(self) -> evaluate.MetricInfo:
        class_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": class_map, "references": class_map}),
            reference_urls=["https://arxiv.org/abs/2311.15537"],
        )

    def reset(self) -> None:
        """Forget all images."""
        num_classes = len(self.class_names)
        # All matrices are (label, prediction) in pixels. The first image moves this one to its device.
        self._confusion_matrix = torch.zeros((num_classes, num_classes), dtype=torch.int64)
        self._counted = torch.zeros(self.num_samples or 0, dtype=torch.bool)
        self._latest: dict[int, Tensor] = {}  # sample index → confusion matrix, not yet part of the sum
        self._restored: dict[str, Tensor] | None = None

    def add_batch(
        self,
        *,
        predictions: Sequence[ClassMap] | Tensor | np.ndarray,
        references: Sequence[ClassMap] | Tensor | np.ndarray,
        sample_ids: Sequence[int] | Tensor | None = None,
        file_names: Sequence[str] | None = None,
    ) -> None:
        """Count a batch of images. A batch with an error is not counted at all.

        Args:
            predictions: (batch, height, width), or one (height, width) an image. Their device holds the matrix.
            references: Labels of the same sizes.
            sample_ids: (batch,), the indices of the images in the data set. Needed if, and only if, the metric was
                given `num_samples`.
            file_names: (batch,), to name images in error messages, which otherwise give index or position.

        Raises:
            TypeError: If a class map does not hold integers.
            ValueError: If sizes disagree, if a value is no class, or if `sample_ids` is missing, superfluous or out of
                range.
        """
        ids = self._check_sample_ids(sample_ids)
        names = file_names if file_names is not None else _describe_samples(ids, len(predictions))
        matrices = [
            self._image_confusion_matrix(prediction, reference, name)
            for prediction, reference, name in zip(predictions, references, names, strict=True)
        ]
        if ids is None:
            self._accumulate(matrices)
        else:
            self._count_latest()
            self._latest = {
                sample_id: matrix
                for sample_id, matrix in zip(ids, matrices, strict=True)
                if not self._is_counted(sample_id)
            }

    def add(
        self,
        *,
        prediction: ClassMap,
        reference: ClassMap,
        sample_id: int | None = None,
        file_name: str | None = None,
    ) -> None:
        """Count one image; arguments and errors as in `add_batch`."""
        self.add_batch(
            predictions=[prediction],
            references=[reference],
            sample_ids=None if sample_id is None else [sample_id],
            file_names=None if file_name is None else [file_name],
        )

    def compute(
        self,
        *,
        predictions: Sequence[ClassMap] | Tensor | np.ndarray | None = None,
        references: Sequence[ClassMap] | Tensor | np.ndarray | None = None,
        **add_batch_kwargs: Any,
    ) -> dict[str, float | None]:
        """Report on all images of all processes, on each of them, and forget them. All processes must call this.

        Args:
            predictions: A last batch, which goes through `add_batch` together with the other arguments.
            references: Its labels.
            **add_batch_kwargs: Further arguments of `add_batch`.

        Returns:
            Figures in percent: `mIoU`, `fwIoU` (IoU weighted by the share of labelled pixels), `IoU-<name>` for each
            class, `mACC` (mean accuracy), `pACC` (pixel accuracy), `ACC-<name>`. A class without a labelled pixel has
            None and does not enter the means.

        Raises:
            ValueError: If the last batch lacks predictions or references, and as `add_batch`.
            RuntimeError: If `num_samples` is given and an image was not counted, or counted by several processes.
        """
        if predictions is not None and references is not None:
            self.add_batch(predictions=predictions, references=references, **add_batch_kwargs)
        elif predictions is not None or references is not None or add_batch_kwargs:
            raise ValueError("A last batch needs both predictions and references.")
        state = self.state_dict()
        missing = (~state["counted"]).nonzero().flatten().tolist()
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {self.num_samples} images were never added, the first are {missing[:5]}."
            )
        self.reset()
        return _figures(state["confusion_matrix"], self.class_names)

    def state_dict(self) -> dict[str, Tensor]:
        """What all processes have counted together, to save and go on from later. All processes must call this.

        Returns:
            `confusion_matrix`: (classes, classes) int64 pixels, label by prediction, and `counted`: (num_samples,)
            bool. They are the same on every process.

        Raises:
            RuntimeError: If several processes counted the same image.
        """
        self._drop_images_of_other_processes()
        self._count_latest()
        times_counted = _reduce(self._counted.long(), dist.ReduceOp.SUM)
        repeated = (times_counted > 1).nonzero().flatten().tolist()
        if repeated:
            raise RuntimeError(
                f"Images {repeated[:5]} were counted by several processes. Repeated images are recognised in the last "
                "batch of each process only; check the sampler and the sample_ids."
            )
        confusion_matrix = _reduce(self._confusion_matrix, dist.ReduceOp.SUM)
        counted = times_counted.bool()
        if self._restored is not None:
            confusion_matrix += self._restored["confusion_matrix"].to(confusion_matrix.device)
            counted |= self._restored["counted"]
        return {"confusion_matrix": confusion_matrix, "counted": counted}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Go on from a saved `state_dict`, with any number of processes. All processes must load the same one.

        Images it has counted are left out if they are added again.

        Raises:
            ValueError: If it was saved for other numbers of classes or samples, or holds no counts.
        """
        self.reset()
        for name, tensor in (("confusion_matrix", self._confusion_matrix), ("counted", self._counted)):
            if name not in state_dict:
                raise ValueError(f"{name} was not saved.")
            saved = state_dict[name]
            if saved.shape != tensor.shape:
                raise ValueError(
                    f"{name} was saved with shape {tuple(saved.shape)}, this metric has {tuple(tensor.shape)}."
                )
            if saved.dtype != tensor.dtype or (saved.dtype != torch.bool and (saved < 0).any()):
                raise ValueError(f"{name} was saved as {saved.dtype}, or with numbers below 0.")
        self._restored = {"confusion_matrix": state_dict["confusion_matrix"], "counted": state_dict["counted"].cpu()}

    def _check_sample_ids(self, sample_ids: Sequence[int] | Tensor | None) -> list[int] | None:
        if self.num_samples is None and _num_processes() > 1:
            raise ValueError("Several processes need num_samples and sample_ids: padding repeats images.")
        if (sample_ids is None) != (self.num_samples is None):
            raise ValueError("num_samples (of the metric) and sample_ids (of each batch) go together.")
        if self.num_samples is None or sample_ids is None:
            return None
        ids = [int(sample_id) for sample_id in sample_ids]
        for sample_id in ids:
            if not 0 <= sample_id < self.num_samples:
                raise ValueError(f"Sample index {sample_id} is outside the data set of {self.num_samples} samples.")
        return ids

    def _image_confusion_matrix(self, prediction: ClassMap, reference: ClassMap, name: str) -> Tensor:
        """The (label, prediction) matrix of one image in pixels, on the device of the prediction."""
        predicted = _class_indices(prediction, f"{name}: the prediction")
        labelled = _class_indices(reference, f"{name}: the label").to(predicted.device)
        if predicted.shape != labelled.shape:
            raise ValueError(f"{name}: the prediction is {tuple(predicted.shape)}, the label {tuple(labelled.shape)}.")
        counts = labelled != self.ignore_index
        predicted, labelled = predicted[counts], labelled[counts]
        num_classes = len(self.class_names)
        if self.last_class_is_background:
            predicted = predicted.clamp(max=num_classes - 1)
        _check_range(labelled, num_classes, f"{name}: label", f"and not the ignored {self.ignore_index}")
        _check_range(predicted, num_classes, f"{name}: predicted class", "at a labelled pixel")
        pairs = labelled * num_classes + predicted
        return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)

    def _accumulate(self, matrices: Sequence[Tensor]) -> None:
        for matrix in matrices:
            self._confusion_matrix = self._confusion_matrix.to(matrix.device)
            self._confusion_matrix += matrix

    def _count_latest(self) -> None:
        self._accumulate(list(self._latest.values()))
        self._counted[list(self._latest)] = True
        self._latest = {}

    def _is_counted(self, sample_id: int) -> bool:
        restored = self._restored is not None and bool(self._restored["counted"][sample_id])
        return restored or bool(self._counted[sample_id])

    def _drop_images_of_other_processes(self) -> None:
        """Of the latest images keep those that no process has counted and no process of lower rank holds too."""
        rank = dist.get_rank() if _num_processes() > 1 else 0
        counted = _reduce(self._counted.long(), dist.ReduceOp.SUM) > 0
        owner = torch.full(self._counted.shape, _num_processes())
        owner[list(self._latest)] = rank
        owner = _reduce(owner, dist.ReduceOp.MIN)
        self._latest = {
            sample_id: matrix
            for sample_id, matrix in self._latest.items()
            if not counted[sample_id] and owner[sample_id] == rank
        }


def _describe_samples(ids: list[int] | None, batch_size: int) -> list[str]:
    if ids is None:
        return [f"image {position} of the batch" for position in range(batch_size)]
    return [f"sample {sample_id}" for sample_id in ids]


def _class_indices(class_map: ClassMap, what: str) -> Tensor:
    tensor = torch.as_tensor(class_map)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{what} must hold integer class indices, not {tensor.dtype}.")
    return tensor.long()


def _check_range(indices: Tensor, num_classes: int, what: str, context: str) -> None:
    wrong = indices[(indices < 0) | (indices >= num_classes)]
    if wrong.numel():
        raise ValueError(f"{what} {wrong[0].item()} is outside the classes 0 to {num_classes - 1} {context}.")


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    """The reduction of `tensor` over all processes, on the device of `tensor`, which stays as it is."""
    # The sum must not travel on the device of the images: a process that got none would not know it.
    reduced = tensor.to(_communication_device(), copy=True)
    if _num_processes() > 1:
        dist.all_reduce(reduced, operation)
    return reduced.to(tensor.device)


def _communication_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator()
    if _num_processes() == 1 or accelerator is None or dist.get_backend() == dist.Backend.GLOO:
        return torch.device("cpu")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


def _figures(confusion_matrix: Tensor, class_names: Sequence[str]) -> dict[str, float | None]:
    """What `MeanIoU.compute` returns, from a (classes, classes) matrix of pixels, label by prediction."""
    matrix = confusion_matrix.cpu().double()
    correct, labelled, predicted = matrix.diag(), matrix.sum(dim=1), matrix.sum(dim=0)
    occurs = labelled > 0
    iou = torch.where(occurs, correct / (labelled + predicted - correct), torch.nan)
    accuracy = torch.where(occurs, correct / labelled, torch.nan)
    figures = {
        "mIoU": iou[occurs].mean(),
        "fwIoU": (iou * labelled)[occurs].sum() / labelled.sum(),
        **{f"IoU-{name}": value for name, value in zip(class_names, iou, strict=True)},
        "mACC": accuracy[occurs].mean(),
        "pACC": correct.sum() / labelled.sum(),
        **{f"ACC-{name}": value for name, value in zip(class_names, accuracy, strict=True)},
    }
    # None, not NaN, because JSON has no NaN.
    return {name: None if value.isnan() else 100 * value.item() for name, value in figures.items()}
