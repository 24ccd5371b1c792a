"""SED's loss: binary cross-entropy of every class at every pixel (section 3.5 of the paper)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from .chunking_sed import chunk_bytes
from .configuration_sed import SEDConfig

logger = logging.get_logger(__name__)


@torch.compiler.disable(reason="it computes its own gradients, and a check of labels would break the graph")
def segmentation_losses(
    all_logits: Sequence[Tensor],
    labels: Tensor,
    config: SEDConfig,
    num_pixels: Tensor | int | None = None,
    max_bytes: int | None = None,
) -> tuple[Tensor, ...]:
    """Binary cross-entropy of each head, resized to the labels' size, to one-hot labels; mean of pixels and classes.

    In short `F.binary_cross_entropy_with_logits(F.interpolate(logits, size), F.one_hot(labels))`.

    Args:
        all_logits: (B, T, h, w) of each head.
        labels: (B, H, W) integers: a class, or `config.ignore_index`.
        config: Says what is ignored, and whether such a pixel counts as one whose every class is negative.
        num_pixels: What the sum is divided by; by default the pixels that count. More where this batch is one part.
        max_bytes: The most that resized logits take at a time; by default what suits the device.

    Raises:
        ValueError: Labels have another shape or type, or a class that is not there.
    """
    batch_size, num_classes = all_logits[0].shape[:2]
    labels = labels.to(all_logits[0].device)  # where `device_map` has put the decoder
    if labels.ndim != 3 or len(labels) != batch_size or labels.is_floating_point():
        got = f"{labels.dtype} of {tuple(labels.shape)}"
        raise ValueError(f"labels: expected integers ({batch_size}, height, width), got {got}")
    if 0 <= config.ignore_index < num_classes:
        logger.warning_once(f"labels of {config.ignore_index} are ignored (config.ignore_index), also as a class")
    ignored = labels == config.ignore_index
    wrong = ~ignored & ((labels < 0) | (labels >= num_classes))
    expected = f"labels: expected classes from 0 to {num_classes - 1} or ignore_index={config.ignore_index}"
    if labels.device.type == "cuda":
        torch._assert_async(~wrong.any(), expected)  # for which nothing waits
    elif wrong.any():
        raise ValueError(f"{expected}, got {labels[wrong][0].item()}")
    positive = labels.long().masked_fill(ignored, -1)
    uncounted = None if config.ignored_as_negative else ignored
    if num_pixels is None:
        num_pixels = labels.numel() if uncounted is None else (~uncounted).sum().clamp(min=1)
    totals = (ChunkedBinaryCrossEntropy.apply(logits, positive, uncounted, max_bytes) for logits in all_logits)
    return tuple(total / (num_pixels * num_classes) for total in totals)


class ChunkedBinaryCrossEntropy(torch.autograd.Function):
    """The sum of the binary cross-entropy over all classes and counted pixels, of logits resized to the labels.

    With x the resized logits and y the one-hot labels, the sum and its derivative are

        BCE(x, y) = sum(softplus(x) - x y)        d BCE / d x = sigmoid(x) - y

    Classes are taken in chunks, and the derivative of a chunk while its x is at hand: neither x nor y of (B, T, H, W)
    is ever held, and backward only multiplies. That is 7 passes over x, where autograd with checkpointing takes 36.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, positive: Tensor, uncounted: Tensor | None, max_bytes: int | None = None
    ) -> Tensor:
        """Sum for (B, T, h, w) logits and (B, H, W) `positive` classes, -1 where there is none."""
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        dtype = torch.promote_types(logits.dtype, torch.float32)  # half precision is too coarse for sums
        total = logits.new_zeros((), dtype=dtype)
        max_bytes = max_bytes or chunk_bytes("loss", logits.device)
        chunk_size = max(1, max_bytes // (positive.numel() * dtype.itemsize))
        for first_class in range(0, logits.shape[1], chunk_size):
            chunk = logits[:, first_class : first_class + chunk_size].to(dtype)
            resized = F.interpolate(chunk, size=positive.shape[-2:], mode="bilinear", align_corners=False)
            if uncounted is not None:
                resized = resized.masked_fill_(uncounted.unsqueeze(1), -torch.inf)  # loss and derivative 0
            index = (positive - first_class).unsqueeze(1)
            inside = (index >= 0) & (index < chunk.shape[1])
            index = index.clamp(0, chunk.shape[1] - 1)
            total += F.softplus(resized).sum() - resized.gather(1, index).where(inside, 0).sum()
            if gradient is not None:
                derivative = resized.sigmoid_().scatter_add_(1, index, -inside.to(dtype))
                gradient[:, first_class : first_class + chunk_size] = torch.ops.aten.upsample_bilinear2d_backward(
                    derivative, list(derivative.shape[-2:]), list(chunk.shape), False, None, None
                )
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total, None, None, None
