"""What the labels of an evaluation set mean, and which names a model is asked for."""

from dataclasses import dataclass, field, replace

import datasets

from ..data.distractors import distractors
from ..data.features import SegmentationMap
from ..data.scenes import SceneDataset, unseen_classes
from ..data.scenes.vocabulary import BACKGROUNDS
from .sets import EvaluationSet

DISTRACTOR_VOCABULARIES = ("pascal_context_459", "ade20k_847")


@dataclass(frozen=True)
class LabelSpace:
    """Classes of the ground truth and of the model.

    Attributes:
        vocabulary: The T names that the model is asked for.
        class_names: The names of the classes that labels and predictions are compared in, by index.
        ignore_index: The label of pixels that count nowhere.
        last_class_is_background: Whether predictions beyond the last class mean the last one, as in VOC-20b.
        groups: Classes whose mean IoU is of interest by itself, by the name of the group.
    """

    vocabulary: list[str]
    class_names: list[str]
    ignore_index: int = 255
    last_class_is_background: bool = False
    groups: dict[str, list[str]] = field(default_factory=dict)

    def padded(self, vocabulary_size: int) -> "LabelSpace":
        """The same labels, where the model is asked for further names that no image is labelled with.

        Raises:
            ValueError: The size is less than the vocabulary's, or there are not so many further names.
        """
        num_distractors = vocabulary_size - len(self.vocabulary)
        if num_distractors < 0:
            raise ValueError(f"vocabulary size {vocabulary_size}: expected at least {len(self.vocabulary)}")
        others = distractors(self.vocabulary, DISTRACTOR_VOCABULARIES)
        if num_distractors > len(others):
            raise ValueError(
                f"vocabulary size {vocabulary_size}: expected at most {len(self.vocabulary) + len(others)}"
            )
        vocabulary = self.vocabulary + others[:num_distractors]
        class_names = self.class_names if self.last_class_is_background else vocabulary
        return replace(self, vocabulary=vocabulary, class_names=class_names)


def label_space(dataset: EvaluationSet, vocabulary_size: int | None = None) -> LabelSpace:
    """The label space of a data set, with the vocabulary padded to a size if one is given.

    Raises:
        TypeError: The data set is neither one of `load_benchmark` nor one of scenes.
        ValueError: As `LabelSpace.padded`.
    """
    labels = _own_label_space(dataset)
    return labels if vocabulary_size is None else labels.padded(vocabulary_size)


def _own_label_space(dataset: EvaluationSet) -> LabelSpace:
    if isinstance(dataset, SceneDataset):
        return LabelSpace(dataset.class_names, dataset.class_names, groups=_scene_groups(dataset))
    label = dataset.features.get("label") if isinstance(dataset, datasets.Dataset) else None
    if not isinstance(label, SegmentationMap):
        raise TypeError(
            f"expected a datasets.Dataset of load_benchmark, not streamed, or a SceneDataset; got {dataset!r:.200}"
        )
    return LabelSpace(label.names, label.class_names, label.ignore_index, label.background_index is not None)


def _scene_groups(scenes: SceneDataset) -> dict[str, list[str]]:
    """Backgrounds, and the compositions that training shows and never shows."""
    unseen = set(unseen_classes())
    backgrounds, compositions = scenes.class_names[: len(BACKGROUNDS)], scenes.class_names[len(BACKGROUNDS) :]
    groups = {
        "backgrounds": backgrounds,
        "seen": [name for name in compositions if name not in unseen],
        "unseen": [name for name in compositions if name in unseen],
    }
    return {group: names for group, names in groups.items() if names}
