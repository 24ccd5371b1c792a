"""What a model can be evaluated on: sets of images, what their labels mean, and which names the model is asked for."""

import logging
from collections.abc import Mapping
from os import PathLike
from typing import TypeAlias

import datasets

from ..data.benchmarks import BENCHMARKS, OWN_DATA, load_benchmark
from ..data.distractors import distractors
from ..data.features import SegmentationMap
from ..data.prepare import data_sha256
from ..data.scenes import SceneDataset, seen_classes, unseen_classes
from ..data.scenes.vocabulary import BACKGROUNDS
from ..metrics import MeanIoU
from ..utils import some

logger = logging.getLogger(__name__)

EvaluationSet: TypeAlias = datasets.Dataset | SceneDataset

# Those of the official table, in its order. COCO-Stuff is not among them: SED is trained on its classes.
ZERO_SHOT_BENCHMARKS = (
    "ade20k_847", "pascal_context_459", "ade20k_150", "pascal_context_59", "pascal_voc_20", "pascal_voc_20b",
)  # fmt: skip
SCENES = "scenes"
NUM_SCENES = 500
EVALUATION_SETS = (*BENCHMARKS, OWN_DATA, SCENES)
DISTRACTOR_VOCABULARIES = ("pascal_context_459", "ade20k_847")


def load_evaluation_set(
    name: str, data_dir: str | PathLike[str] | None = None, limit: int | None = None
) -> EvaluationSet:
    """Load the validation split of a benchmark, own data, or the 500 test scenes; of all the first `limit` images."""
    if name == SCENES:
        return SceneDataset("test", NUM_SCENES if limit is None else min(limit, NUM_SCENES))
    if data_dir is None:
        raise ValueError(f"{name}: expected the folder of its data as data_dir (--data-dir)")
    dataset = load_benchmark(name, data_dir)
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def vocabulary_and_metric(dataset: EvaluationSet, vocabulary_size: int | None = None) -> tuple[list[str], MeanIoU]:
    """The names that a model is asked for, up to `vocabulary_size` with others that no image shows, and the metric."""
    label = dataset.features.get("label") if isinstance(dataset, datasets.Dataset) else None
    if isinstance(dataset, SceneDataset):
        label = SegmentationMap(names=dataset.class_names)
    if not isinstance(label, SegmentationMap):
        raise TypeError(f"expected a data set of load_benchmark, not streamed, or a SceneDataset; got {dataset!r:.100}")
    vocabulary, has_background = label.names, label.background_index is not None
    if vocabulary_size is not None:
        least = len(vocabulary)
        vocabulary = vocabulary + distractors(vocabulary, DISTRACTOR_VOCABULARIES)
        if not least <= vocabulary_size <= len(vocabulary):
            raise ValueError(f"vocabulary size {vocabulary_size}: expected {least} to {len(vocabulary)}")
        vocabulary = vocabulary[:vocabulary_size]
    return vocabulary, MeanIoU(label.class_names if has_background else vocabulary, label.ignore_index, has_background)


def group_figures(figures: dict[str, float | None]) -> dict[str, float | None]:
    """The mean IoU of scenes' backgrounds, and of the compositions that training shows and never shows."""
    backgrounds, seen = seen_classes()[: len(BACKGROUNDS)], seen_classes()[len(BACKGROUNDS) :]
    means: dict[str, float | None] = {}
    for group, names in {"backgrounds": backgrounds, "seen": seen, "unseen": unseen_classes()}.items():
        known = [iou for name in names if (iou := figures.get(f"IoU-{name}")) is not None]
        means[f"mIoU-{group}"] = sum(known) / len(known) if known else None
    return means


def describe_data(dataset: EvaluationSet) -> dict[str, int | str]:
    """The number of images of a set, and what tells its data from others: a short hash, or how scenes are generated."""
    vocabulary_and_metric(dataset)  # refuses what has no labels
    data = repr(dataset) if isinstance(dataset, SceneDataset) else data_sha256(dataset)[:16]
    return {"num_images": len(dataset), "images_masks_and_names": data}


def warn_of_absent_classes(name: str, dataset: EvaluationSet, figures: Mapping[str, float | None]) -> None:
    """Name the classes of a set that no mask shows: masks of 0 and 255, for one, only show the first."""
    _, metric = vocabulary_and_metric(dataset)
    if absent := [class_name for class_name in metric.class_names if figures[f"ACC-{class_name}"] is None]:
        logger.warning("%s: no mask shows %s; %d is ignored", name, some(absent), metric.ignore_index)


def set_title(name: str) -> str:
    """What papers call a benchmark, or the name itself."""
    return BENCHMARKS[name].title if name in BENCHMARKS else name
