"""Mean IoU equals counting pixel by pixel, however the images are split and ordered."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from sed_hf.metrics import MeanIoU


class Case(NamedTuple):
    """Arguments of the metric, and the predictions and labels (height, width) of images."""

    num_classes: int
    ignore_index: int
    has_background: bool
    images: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    def metric(self) -> MeanIoU:
        names = [f"class {index}" for index in range(self.num_classes)]
        return MeanIoU(names, self.ignore_index, last_class_is_background=self.has_background)

    def figures(self) -> dict[str, float | None]:
        """Of one image after the other."""
        metric = self.metric()
        for prediction, label in self.images:
            metric.add(prediction=prediction, reference=label)
        return metric.compute()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any classes, of which some occur nowhere, and images, of which some have no labelled pixel."""
    num_classes, has_background = draw(st.integers(1, 6)), draw(st.booleans())
    ignore_index = draw(st.sampled_from([255, 65535, -1, num_classes]))
    predictions = st.sampled_from([*range(num_classes + (4 if has_background else 0)), ignore_index])
    labels = st.sampled_from([*range(num_classes), ignore_index])
    images = []
    for _ in range(draw(st.integers(0, 4))):
        shape = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
        images.append(tuple(draw(hnp.arrays(np.int64, shape, elements=values)) for values in (predictions, labels)))
    return Case(num_classes, ignore_index, has_background, images)


def counted(case: Case) -> dict[str, float | None]:
    """All figures, pixel by pixel."""
    hits, labelled, predicted = (dict.fromkeys(range(case.num_classes), 0) for _ in range(3))
    for prediction, label in case.images:
        for guess, truth in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
            if truth == case.ignore_index:
                continue
            if case.has_background:
                guess = case.num_classes - 1 if guess == case.ignore_index else min(guess, case.num_classes - 1)
            labelled[truth] += 1
            if guess != case.ignore_index:
                predicted[guess] += 1
            hits[truth] += guess == truth
    total = sum(labelled.values())
    present = [index for index in labelled if labelled[index]]
    iou = {index: 100 * hits[index] / (labelled[index] + predicted[index] - hits[index]) for index in present}
    accuracy = {index: 100 * hits[index] / labelled[index] for index in present}
    return {
        "mIoU": sum(iou.values()) / len(iou) if present else None,
        "fwIoU": sum(iou[index] * labelled[index] for index in present) / total if present else None,
        "mACC": sum(accuracy.values()) / len(accuracy) if present else None,
        "pACC": 100 * sum(hits.values()) / total if present else None,
        **{f"IoU-class {index}": iou.get(index) for index in labelled},
        **{f"ACC-class {index}": accuracy.get(index) for index in labelled},
    }


@given(cases(), st.data())
def test_any_order_and_split_into_batches_equals_counting_pixel_by_pixel(case: Case, data: st.DataObject) -> None:
    assert case.figures() == {
        name: None if value is None else pytest.approx(value, rel=1e-12) for name, value in counted(case).items()
    }
    images = data.draw(st.permutations(case.images))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(images)))) | {0, len(images)})
    metric = case.metric()
    for first, last in pairwise(cuts):
        predictions, labels = zip(*images[first:last], strict=True)
        metric.add_batch(predictions=predictions, references=labels)
    assert metric.compute() == case.figures()


@given(cases(), st.integers(-(2**40), 2**40), st.booleans())
def test_one_impossible_value_is_named_and_counts_nothing(case: Case, value: int, is_label: bool) -> None:
    is_background = value >= case.num_classes and case.has_background and not is_label
    assume(not (0 <= value < case.num_classes or is_background or value == case.ignore_index))
    metric = case.metric()
    wrong = (np.array([[0]]), np.array([[value]])) if is_label else (np.array([[value]]), np.array([[0]]))
    predictions, labels = zip(*case.images, wrong, strict=True)
    with pytest.raises(ValueError, match=rf"image {len(case.images)} of the batch: .* {value} is outside the classes"):
        metric.add_batch(predictions=predictions, references=labels)
    assert metric.confusion_matrix.sum() == 0
