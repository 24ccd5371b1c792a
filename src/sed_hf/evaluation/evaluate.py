"""Zero-shot evaluation of a model on one data set, on one process or many."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..inference.writers import unused_label
from ..metrics import MeanIoU
from ..processing_sed import SEDProcessor
from ..utils import atomic_path
from .augmentation import MultiScaleFlip
from .examples import PreparedExamples, iterate_batches
from .label_space import label_space
from .progress import ProgressFile
from .segmenter import Segmenter
from .sets import EvaluationSet


def evaluate_benchmark(
    model: nn.Module,
    processor: SEDProcessor,
    dataset: EvaluationSet,
    *,
    class_embeddings: Tensor | None = None,
    early_rejection_topk: int | None = None,
    augmentation: MultiScaleFlip | None = None,
    vocabulary_size: int | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    predictions_dir: Path | None = None,
    progress_file: ProgressFile | None = None,
    progress_bar: str | None = None,
) -> dict[str, float | None]:
    """Segment every picture of a data set with the names of its classes, and compare with its labels.

    Processes are those that accelerate knows; all of them must call this, and each takes its share of the pictures.
    Predictions have the size of the label. Training may call this at any step: the model's modes and the random states
    are afterwards what they were.

    Args:
        model: [`SEDForSemanticSegmentation`], also as accelerate prepares it.
        processor: Its processor.
        dataset: Of `load_benchmark`, not streamed, or a `SceneDataset`.
        class_embeddings: (T, P, D) of the vocabulary. By default it is encoded, once.
        early_rejection_topk: As for the model: `None` for its own setting, 0 for every class.
        augmentation: Test-time augmentation. Each view rejects classes for itself; a rejected one has probability 0.
        vocabulary_size: Ask the model for this many names: those of the data set, then others that no picture shows.
        batch_size: Pictures at a time on each process.
        num_workers: Processes that read and prepare pictures, for each process.
        predictions_dir: Write each prediction to this folder as `<file name>.png`, of class indices in the model's
            vocabulary; with 8 bits for up to 255 classes, otherwise 16.
        progress_file: Save what is counted there, and go on from it. The file is left when all is counted.
        progress_bar: Show a bar with this text, on the main process.

    Returns:
        Figures in percent, on every process: those of `MeanIoU.compute`, such as `mIoU` and `IoU-<class>`, and for
        scenes `mIoU-backgrounds`, `mIoU-seen` and `mIoU-unseen` (compositions). A mean over no class is `None`.

    Raises:
        TypeError: `dataset` is something else.
        ValueError: A picture is damaged, or of another size than its label, or a label is out of range; the message
            names the file. `vocabulary_size` cannot be had, or `progress_file` is of other settings.
    """
    labels = label_space(dataset, vocabulary_size)
    metric = MeanIoU(
        labels.class_names,
        ignore_index=labels.ignore_index,
        last_class_is_background=labels.last_class_is_background,
        num_samples=len(dataset),
    )
    uncounted: Sequence[int] = range(len(dataset))
    if progress_file is not None and (counted := progress_file.restore(metric)) is not None:
        uncounted = (~counted).nonzero().flatten().tolist()

    bare_model: Any = extract_model_from_parallel(model)
    scales = augmentation.scales if augmentation else (1.0,)
    examples = PreparedExamples(dataset, processor.image_processor, uncounted, scales)
    processes = PartialState()
    images_per_step = batch_size * processes.num_processes

    with _evaluation_mode(bare_model), torch.no_grad():  # not inference_mode, whose tensors FSDP cannot use
        if class_embeddings is None:
            class_embeddings = _encode_vocabulary(bare_model, processor, labels.vocabulary, progress_bar)
        segment = Segmenter(model, bare_model.dtype, processor, class_embeddings, early_rejection_topk, augmentation)
        with _image_bar(progress_bar, len(dataset), len(dataset) - len(uncounted)) as bar:
            for step, batch in enumerate(iterate_batches(examples, batch_size, num_workers, bare_model.device), 1):
                predictions = segment(batch["pixel_values"], [label.shape for label in batch["labels"]])
                metric.add_batch(
                    predictions=predictions,
                    references=batch["labels"],
                    sample_ids=batch["indices"],
                    file_names=batch["file_names"],
                )
                if predictions_dir is not None:
                    _save_predictions(predictions, batch["file_names"], len(labels.vocabulary), predictions_dir)
                if progress_file is not None and step % math.ceil(progress_file.images_per_save / images_per_step) == 0:
                    state = metric.state_dict()  # a sum over all processes, so that all take part
                    if processes.is_main_process:
                        progress_file.save(state)
                bar.update(min(images_per_step, len(dataset) - bar.n))

    figures = metric.compute()
    for group, class_names in labels.groups.items():
        figures[f"mIoU-{group}"] = _mean([figures[f"IoU-{name}"] for name in class_names])
    return figures


def _encode_vocabulary(model: Any, processor: SEDProcessor, vocabulary: list[str], progress_bar: str | None) -> Tensor:
    """(T, P, D) embeddings of T class names in P prompt templates; the text says so meanwhile."""
    text = f"{progress_bar}: encoding {len(vocabulary)} classes"
    with tqdm(desc=text, bar_format="{desc}", leave=False, disable=_is_silent(progress_bar)):
        return model.get_class_embeddings(**processor(text=vocabulary, return_tensors="pt").to(model.device))


def _image_bar(text: str | None, num_images: int, num_counted: int) -> tqdm:
    return tqdm(total=num_images, initial=num_counted, desc=text, unit="image", disable=_is_silent(text))


def _is_silent(text: str | None) -> bool:
    return text is None or not PartialState().is_main_process


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, after which each module returns to its own: training may have set some apart."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _save_predictions(predictions: Sequence[Tensor], file_names: Sequence[str], num_classes: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.uint8 if unused_label(num_classes) == 255 else np.uint16
    for prediction, file_name in zip(predictions, file_names, strict=True):
        picture = Image.fromarray(prediction.cpu().numpy().astype(dtype))
        with atomic_path(folder / f"{Path(file_name).stem}.png") as temporary:
            picture.save(temporary, format="PNG")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
