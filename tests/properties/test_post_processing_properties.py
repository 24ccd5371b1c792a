"""From logits to labels: any number of classes, any sizes and any chunks give what the plain formula gives."""

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, seeds
from torch import Tensor

from sed_hf import SEDImageProcessor, SEDSemanticSegmentationOutput

PROBABILITY = 1e-6

edges = st.integers(1, 12)


Case = tuple[Tensor, list[tuple[int, int]]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """The logits (B, T, h, w) of any images, classes, resolution and dtype, and the size that each image is to get."""
    batch_size = draw(st.integers(1, 3))
    shape = (batch_size, draw(st.integers(1, 20)), draw(edges), draw(edges))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    sizes = st.tuples(st.integers(1, 50), st.integers(1, 50))
    return 3 * normal(*shape, seed=draw(seeds), dtype=dtype), [draw(sizes) for _ in range(batch_size)]


def process(outputs: SEDSemanticSegmentationOutput, sizes: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
    kwargs["return_segmentation_scores"] = True
    return SEDImageProcessor().post_process_semantic_segmentation(outputs, sizes, **kwargs)


def assert_most_probable(result: dict[str, Tensor], logits: Tensor, size: tuple[int, int]) -> None:
    """Each pixel has a class of the highest probability: at a tie, but for rounding, any of them."""
    probabilities = F.interpolate(logits.float().sigmoid()[None], size=size, mode="bilinear", align_corners=False)[0]
    segmentation, probability = result["segmentation"], result["probability"]
    assert (segmentation.dtype, probability.dtype) == (torch.int64, torch.float32)
    torch.testing.assert_close(result["segmentation_scores"], probabilities, rtol=0, atol=PROBABILITY)
    of_the_class = probabilities.gather(0, segmentation[None])[0]
    for found in (probability, of_the_class):
        torch.testing.assert_close(found, probabilities.amax(0), rtol=0, atol=PROBABILITY)


@given(cases(), st.floats(0, 1), st.sampled_from([-1, 255, 65535]))
def test_any_logits_equal_the_plain_formula_and_any_threshold_ignores_exactly_what_is_below(
    case: Case, threshold: float, ignore_index: int
) -> None:
    all_logits, sizes = case
    outputs = SEDSemanticSegmentationOutput(logits=all_logits)
    every = process(outputs, sizes)
    some = process(outputs, sizes, threshold=threshold, ignore_index=ignore_index)
    for logits, size, before, after in zip(all_logits, sizes, every, some, strict=True):
        assert_most_probable(before, logits, size)
        expected = before["segmentation"].masked_fill(before["probability"] < threshold, ignore_index)
        assert torch.equal(after["segmentation"], expected)
        assert torch.equal(after["probability"], before["probability"])


@given(cases(), st.data())
def test_rejected_classes_win_nowhere_and_the_others_keep_their_numbers(case: Case, data: st.DataObject) -> None:
    all_logits, sizes = case
    batch_size, num_classes = all_logits.shape[:2]
    kept = sorted(data.draw(st.sets(st.integers(0, num_classes - 1), min_size=1)))
    rejecting = SEDSemanticSegmentationOutput(
        logits=all_logits[:, kept],
        logit_classes=torch.tensor(kept),
        kept_classes=torch.zeros(batch_size, 3, num_classes, dtype=torch.bool),
    )
    for logits, size, result in zip(rejecting.all_logits(), sizes, process(rejecting, sizes), strict=True):
        assert set(result["segmentation"].unique().tolist()) <= set(kept)
        assert_most_probable(result, logits, size)
