"""Zero-shot evaluation of a model on one data set, on one process or many."""

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from accelerate import PartialState

from .. import terminal
from ..data.images import read_batches
from ..data.scenes import SceneDataset
from ..image_processing_sed import NonFiniteLogitsError, SEDImageProcessor
from ..inference.class_embeddings import ClassEmbeddingCache, encode_classes
from ..inference.segmenter import Segmenter
from ..inference.writers import read_saved, write_label_map
from ..metrics import MeanIoU
from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from ..utils import write_file
from .augmentation import MultiScaleFlip
from .sets import EvaluationSet, group_figures, vocabulary_and_metric


class ProgressFile:
    """The counts of an unfinished evaluation on disk, from which a later run continues.

    Args:
        path: A JSON file.
        settings: What JSON can hold, by the names that a user knows. Counts of other settings are refused.
        images_per_save: How many images, of all processes together, may be lost by an interruption.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], images_per_save: int = 100) -> None:
        self.path, self.settings, self.images_per_save = path, settings, images_per_save
        saved = read_saved(path, settings) or {"num_images": 0, "confusion_matrix": []}
        self.num_images, self.matrix = saved["num_images"], torch.tensor(saved["confusion_matrix"])

    def save(self, num_images: int, metric: MeanIoU) -> None:
        """Replace the file if enough images are new; all processes must call this."""
        if num_images - self.num_images < self.images_per_save:
            return
        self.num_images, matrix = num_images, metric.total().tolist()
        if PartialState().is_main_process:
            progress = {"settings": self.settings, "num_images": num_images, "confusion_matrix": matrix}
            write_file(self.path, json.dumps(progress))


def evaluate_benchmark(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    dataset: EvaluationSet,
    *,
    early_rejection_topk: int | None = None,
    augmentation: MultiScaleFlip | None = None,
    vocabulary_size: int | None = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    cache: ClassEmbeddingCache | None = None,
    predictions_dir: Path | None = None,
    progress_file: ProgressFile | None = None,
    progress_bar: str | None = None,
) -> dict[str, float | None]:
    """Segment every image of a data set with the names of its classes, and compare with its labels.

    All processes that accelerate knows must call this; each takes its share. Random states stay as they are.

    Args:
        dataset: Of `load_benchmark`, not streamed, or a `SceneDataset`.
        early_rejection_topk: As for the model: `None` for its own setting, 0 for every class.
        vocabulary_size: Ask the model for this many names: those of the data set, then others that no image shows.
        batch_size: Images at a time on each process.
        num_workers: Processes that read images, for each process. By default up to 4.
        predictions_dir: Write each prediction to this folder as `<file name>.png`, of indices in the vocabulary.
        progress_file: Save the counts there, and continue from them.
        progress_bar: Show a bar with this text.

    Returns:
        Figures in percent, of `MeanIoU.compute`; for scenes also `mIoU-backgrounds`, `mIoU-seen` and `mIoU-unseen`.
    """
    vocabulary, metric = vocabulary_and_metric(dataset, vocabulary_size)
    is_main_process, done = PartialState().is_main_process, 0
    if progress_file is not None and (done := progress_file.num_images) and is_main_process:
        metric.confusion_matrix = progress_file.matrix
    is_silent, was_training = progress_bar is None or not is_main_process, model.training
    model.eval()
    class_embeddings = encode_classes(model, processor, vocabulary, cache, show_progress=not is_silent)
    segmenter = Segmenter(model, processor, vocabulary, class_embeddings, topk=early_rejection_topk)
    batches = segment_share(segmenter, augmentation, dataset, done, batch_size, num_workers)
    with terminal.progress_bar(total=len(dataset), initial=done, desc=progress_bar or "", disable=is_silent) as bar:
        for batch in batches:
            for example, prediction in batch:
                name = example["file_name"]
                metric.add(prediction=prediction, reference=example["label"], file_name=name)
                if predictions_dir is not None:
                    write_label_map(predictions_dir / f"{Path(name).stem}.png", prediction, len(vocabulary))
            done = min(done + batch_size * PartialState().num_processes, len(dataset))
            bar.update(done - bar.n)
            if progress_file is not None:
                progress_file.save(done, metric)
    model.train(was_training)
    figures = metric.compute()
    return figures | group_figures(figures) if isinstance(dataset, SceneDataset) else figures


def segment_share(
    segmenter: Segmenter,
    augmentation: MultiScaleFlip | None,
    dataset: EvaluationSet,
    start: int,
    batch_size: int,
    num_workers: int | None,
) -> Iterator[list[tuple[dict[str, Any], npt.NDArray]]]:
    """Examples and predictions of this process's share of a data set from an image on, batch by batch.

    A model that is sharded runs on all processes together. So where the images do not divide evenly, some processes
    segment the last one once more, without a result.
    """
    rank, num_processes = PartialState().process_index, PartialState().num_processes
    num_rounds = math.ceil((len(dataset) - start) / num_processes)
    share = range(start + rank, start + num_rounds * num_processes, num_processes)
    batches = [list(share[first : first + batch_size]) for first in range(0, len(share), batch_size)]
    image_processor = segmenter.processor.image_processor if augmentation is None else None
    read = partial(read_example, dataset, image_processor)
    for indices, examples in zip(batches, read_batches(batches, read, num_workers), strict=True):
        images = [example["image"] for example in examples]
        try:
            if augmentation is not None:
                results = augmentation.segment(segmenter, images)
            else:
                outputs = segmenter.forward([example["pixel_values"] for example in examples])
                results = segmenter.post_process(outputs, [image.size[::-1] for image in images])
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(error.index, examples[error.index]["file_name"]) from error
        predictions = [result["segmentation"] for result in results]
        triples = zip(indices, examples, predictions, strict=True)
        yield [(example, prediction) for index, example, prediction in triples if index < len(dataset)]


def read_example(dataset: EvaluationSet, image_processor: SEDImageProcessor | None, index: int) -> dict[str, Any]:
    """An example, or the last one if there are fewer, with the `pixel_values` that an image processor prepares."""
    example = dataset[min(index, len(dataset) - 1)]
    if image_processor is not None:
        example = {**example, "pixel_values": image_processor(example["image"], return_tensors="pt")["pixel_values"][0]}
    return example
