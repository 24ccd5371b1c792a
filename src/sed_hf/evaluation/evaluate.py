"""Zero-shot evaluation of a model on one data set, on one process or many."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy.typing as npt
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from .. import terminal
from ..image_processing_sed import NonFiniteLogitsError
from ..inference.class_embeddings import encode_classes
from ..inference.segmenter import Segmenter
from ..inference.writers import label_map
from ..metrics import MeanIoU
from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from ..utils import atomic_path
from .augmentation import AugmentedSegmenter, MultiScaleFlip
from .label_space import LabelSpace, label_space
from .progress import ProgressFile
from .reading import Example, build_loader
from .sets import EvaluationSet

Segment: TypeAlias = Callable[[list[Image.Image]], list[dict[str, npt.NDArray]]]


def evaluate_benchmark(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    dataset: EvaluationSet,
    *,
    class_embeddings: Tensor | None = None,
    early_rejection_topk: int | None = None,
    augmentation: MultiScaleFlip | None = None,
    vocabulary_size: int | None = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    predictions_dir: Path | None = None,
    progress_file: ProgressFile | None = None,
    progress_bar: str | None = None,
) -> dict[str, float | None]:
    """Segment every image of a data set with the names of its classes, and compare with its labels.

    Processes are those that accelerate knows; all of them must call this, and each takes its share of the images.
    Predictions have the size of the label. Training may call this at any step: it does not touch the random states.

    Args:
        model: On the device where it is to run.
        processor: Its processor.
        dataset: Of `load_benchmark`, not streamed, or a `SceneDataset`.
        class_embeddings: (T, P, D) of the vocabulary. By default it is encoded, once.
        early_rejection_topk: As for the model: `None` for its own setting, 0 for every class.
        augmentation: Test-time augmentation.
        vocabulary_size: Ask the model for this many names: those of the data set, then others that no image shows.
        batch_size: Images at a time on each process.
        num_workers: Processes that read images, for each process. By default up to 4.
        predictions_dir: Write each prediction to this folder as `<file name>.png`, of class indices in the model's
            vocabulary; with 8 bits for up to 255 classes, otherwise 16.
        progress_file: Save the counts there, and continue from them.
        progress_bar: Show a bar with this text, on the main process.

    Returns:
        Figures in percent, on every process: those of `MeanIoU.compute`, such as `mIoU` and `IoU-<class>`, and for
        scenes `mIoU-backgrounds`, `mIoU-seen` and `mIoU-unseen` (compositions). A mean over no class is `None`.

    Raises:
        TypeError: `dataset` is something else.
        ValueError: An image is damaged, or of another size than its label, a label is out of range, or the model gives
            values that are not numbers; the message names the file. `vocabulary_size` cannot be had, or `progress_file`
            is of other settings.
    """
    labels = label_space(dataset, vocabulary_size)
    if not PartialState().is_main_process:
        progress_bar = None
    was_training = model.training
    model.eval()
    with torch.no_grad():
        if class_embeddings is None:
            is_shown = progress_bar is not None
            class_embeddings = encode_classes(model, processor, labels.vocabulary, show_progress=is_shown)
        segmenter = Segmenter(model, processor, labels.vocabulary, class_embeddings, topk=early_rejection_topk)
        segment = segmenter if augmentation is None else AugmentedSegmenter(segmenter, augmentation)
        metric = _count_images(
            segment, dataset, labels, batch_size, num_workers, predictions_dir, progress_file, progress_bar
        )
    model.train(was_training)
    return _with_groups(metric.compute(), labels)


def _count_images(
    segment: Segment,
    dataset: EvaluationSet,
    labels: LabelSpace,
    batch_size: int,
    num_workers: int | None,
    predictions_dir: Path | None,
    progress_file: ProgressFile | None,
    progress_bar: str | None,
) -> MeanIoU:
    """The counts of this process's share; arguments as for [`evaluate_benchmark`]."""
    metric = MeanIoU(labels.class_names, labels.ignore_index, labels.last_class_is_background)
    processes, num_counted = PartialState(), 0
    if progress_file is not None and (saved := progress_file.load()) is not None:
        num_counted, matrix = saved
        if processes.is_main_process:
            metric.confusion_matrix = matrix
    num_saved, images_per_step = num_counted, batch_size * processes.num_processes
    loader = build_loader(dataset, num_counted, batch_size, num_workers)
    bar = terminal.progress_bar(
        total=len(dataset), initial=num_counted, desc=progress_bar or "", unit="image", disable=progress_bar is None
    )
    with bar:
        for examples in loader:
            try:
                results = segment([example["image"] for example in examples])
            except NonFiniteLogitsError as error:
                raise NonFiniteLogitsError(error.index, examples[error.index]["file_name"]) from error
            for example, result in zip(examples, results, strict=True):
                if not example["is_repeated"]:
                    _count(metric, example, result["segmentation"], labels, predictions_dir)
            num_counted = min(num_counted + images_per_step, len(dataset))
            if progress_file is not None and num_counted - num_saved >= progress_file.images_per_save:
                matrix = metric.total()  # in which all processes take part
                if processes.is_main_process:
                    progress_file.save(num_counted, matrix)
                num_saved = num_counted
            bar.update(num_counted - bar.n)
    return metric


def _count(
    metric: MeanIoU, example: Example, prediction: npt.NDArray, labels: LabelSpace, predictions_dir: Path | None
) -> None:
    """Score a prediction, and write it if there is a folder for it."""
    metric.add(prediction=prediction, reference=example["label"], file_name=example["file_name"])
    if predictions_dir is not None:
        predictions_dir.mkdir(parents=True, exist_ok=True)
        with atomic_path(predictions_dir / f"{Path(example['file_name']).stem}.png") as temporary:
            label_map(prediction, len(labels.vocabulary)).save(temporary, format="PNG")


def _with_groups(figures: dict[str, float | None], labels: LabelSpace) -> dict[str, float | None]:
    """The figures, and the mean IoU of each group of classes."""
    for group, class_names in labels.groups.items():
        known = [iou for name in class_names if (iou := figures[f"IoU-{name}"]) is not None]
        figures[f"mIoU-{group}"] = sum(known) / len(known) if known else None
    return figures
