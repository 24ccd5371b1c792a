"""From logits to labels: any number of classes, any sizes and any chunks give what the plain formula gives."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, orders, seeds
from torch import Tensor

from sed_hf import SEDImageProcessor, SEDSemanticSegmentationOutput
from sed_hf.image_processing_sed import highest_of_chunks

PROBABILITY = 1e-6

edges = st.integers(1, 12)
target_edges = st.integers(1, 50)


class Case(NamedTuple):
    """The logits (B, T, h, w) of some images, drawn from a seed, and the size that each is to get."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    seed: int
    sizes: list[tuple[int, int]]

    @property
    def num_classes(self) -> int:
        """T."""
        return self.shape[1]

    @property
    def logits(self) -> Tensor:
        """(B, T, h, w)."""
        return 3 * normal(*self.shape, seed=self.seed, dtype=self.dtype)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any number of images and classes, any resolution and dtype."""
    batch_size = draw(st.integers(1, 3))
    shape = (batch_size, draw(st.integers(1, 20)), draw(edges), draw(edges))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    return Case(shape, dtype, draw(seeds), [(draw(target_edges), draw(target_edges)) for _ in range(batch_size)])


def process(
    logits: Tensor | SEDSemanticSegmentationOutput, sizes: Any = None, **kwargs: Any
) -> list[dict[str, Tensor]]:
    outputs = SEDSemanticSegmentationOutput(logits=logits) if isinstance(logits, Tensor) else logits
    return SEDImageProcessor().post_process_semantic_segmentation(outputs, sizes, return_probabilities=True, **kwargs)


def plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The probability (T, H, W) of every class."""
    return F.interpolate(logits.float().sigmoid()[None], size=size, mode="bilinear", align_corners=False)[0]


def assert_most_probable(result: dict[str, Tensor], probabilities: Tensor) -> None:
    """Each pixel has a class of the highest probability: at a tie, but for rounding, any of them."""
    segmentation, probability = result["segmentation"], result["probability"]
    assert segmentation.dtype == torch.int64
    assert probability.dtype == torch.float32
    torch.testing.assert_close(probability, probabilities.amax(0), rtol=0, atol=PROBABILITY)
    of_the_class = probabilities.gather(0, segmentation[None])[0]
    torch.testing.assert_close(of_the_class, probabilities.amax(0), rtol=0, atol=PROBABILITY)


@given(cases())
def test_any_logits_equal_the_plain_formula(case: Case) -> None:
    results = process(case.logits, case.sizes)
    for logits, size, result in zip(case.logits, case.sizes, results, strict=True):
        assert result["segmentation"].shape == result["probability"].shape == size
        assert_most_probable(result, plain(logits, size))


@given(st.integers(1, 9), edges, edges, st.integers(1, 9), seeds)
def test_any_chunks_of_classes_have_the_highest_score_of_all(
    num_classes: int, height: int, width: int, chunk_size: int, seed: int
) -> None:
    scores = normal(num_classes, height, width, seed=seed).round()  # so that there are ties
    classes = 3 * torch.arange(num_classes)
    chunks = zip(classes.split(chunk_size), scores.split(chunk_size), strict=True)
    best, best_class = highest_of_chunks(chunks)
    assert torch.equal(best, scores.amax(0))
    first = (scores == best).int().argmax(0)
    assert torch.equal(best_class, classes[first])


@given(cases())
def test_a_batch_equals_its_images_one_by_one(case: Case) -> None:
    for index, result in enumerate(process(case.logits, case.sizes)):
        (alone,) = process(case.logits[index : index + 1], [case.sizes[index]])
        assert all(torch.equal(result[name], alone[name]) for name in result)


@given(cases(), st.data())
def test_any_order_of_classes_permutes_the_label_map(case: Case, data: st.DataObject) -> None:
    order = data.draw(orders(case.num_classes))
    results = process(case.logits[:, order], case.sizes)
    for logits, size, result in zip(case.logits, case.sizes, results, strict=True):
        assert_most_probable(
            {**result, "segmentation": torch.tensor(order)[result["segmentation"]]}, plain(logits, size)
        )


@given(cases(), st.floats(0, 1), st.sampled_from([-1, 255, 65535]))
def test_any_threshold_ignores_exactly_what_is_below(case: Case, threshold: float, ignore_index: int) -> None:
    every = process(case.logits, case.sizes)
    some = process(case.logits, case.sizes, threshold=threshold, ignore_index=ignore_index)
    for before, after in zip(every, some, strict=True):
        expected = before["segmentation"].masked_fill(before["probability"] < threshold, ignore_index)
        assert torch.equal(after["segmentation"], expected)
        assert torch.equal(after["probability"], before["probability"])


@given(cases(), st.data())
def test_rejected_classes_win_nowhere_and_the_others_keep_their_numbers(case: Case, data: st.DataObject) -> None:
    kept = sorted(data.draw(st.sets(st.integers(0, case.num_classes - 1), min_size=1)))
    rejecting = SEDSemanticSegmentationOutput(
        logits=case.logits[:, kept],
        logit_classes=torch.tensor(kept),
        kept_classes=torch.zeros(case.shape[0], 3, case.num_classes, dtype=torch.bool),
    )
    for logits, size, result in zip(rejecting.all_logits(), case.sizes, process(rejecting, case.sizes), strict=True):
        assert set(result["segmentation"].unique().tolist()) <= set(kept)
        assert_most_probable(result, plain(logits, size))


@given(cases())
def test_without_target_sizes_the_logits_keep_theirs(case: Case) -> None:
    for logits, result in zip(case.logits, process(case.logits), strict=True):
        assert_most_probable(result, logits.float().sigmoid())
