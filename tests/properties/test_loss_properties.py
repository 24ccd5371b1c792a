"""The loss, in pieces and with gradients of its own, equals the plain formula."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, seeds
from torch import Tensor

from sed_hf import SEDConfig
from sed_hf.loss_sed import segmentation_losses

LOSS = 1e-5


@st.composite
def logits_and_labels(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits (B, T, h, w), and labels (B, H, W) of any size, some of them ignored."""
    batch_size, num_classes = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    seed, size = draw(seeds), [draw(st.integers(1, 12)) for _ in range(4)]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, num_classes, (batch_size, *size[2:]), generator=generator)
    return normal(batch_size, num_classes, *size[:2], seed=seed), labels.where(labels >= 0, 255)


def plain_loss(logits: Tensor, labels: Tensor, ignored_as_negative: bool) -> Tensor:
    """The formula with a one-hot target."""
    resized = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    counted = (labels != 255)[:, None].expand_as(resized)
    target = F.one_hot(labels.where(labels != 255, 0), logits.shape[1]).permute(0, 3, 1, 2) * counted
    losses = F.binary_cross_entropy_with_logits(resized, target.to(logits.dtype), reduction="none")
    if ignored_as_negative:
        return losses.mean()
    return losses[counted].mean() if counted.any() else losses.sum() * 0


def test_an_ignored_label_that_is_a_class_is_named(sed_hf_log: pytest.LogCaptureFixture) -> None:
    segmentation_losses([torch.zeros(1, 2, 1, 1)], torch.zeros(1, 1, 1).long(), SEDConfig(ignore_index=1))
    assert "labels of class 1 are ignored" in sed_hf_log.text


@given(logits_and_labels(), st.booleans(), st.integers(0, 16).map(lambda power: 2**power))
def test_value_and_gradient_equal_the_plain_formula_in_any_chunks(
    case: tuple[Tensor, Tensor], ignored_as_negative: bool, max_bytes: int
) -> None:
    logits, labels = case
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = segmentation_losses([ours], labels, SEDConfig(ignored_as_negative=ignored_as_negative), None, max_bytes)[0]
    expected = plain_loss(theirs, labels, ignored_as_negative)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close([loss, ours.grad], [expected, theirs.grad], rtol=0, atol=LOSS)
