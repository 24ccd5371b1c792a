"""Large images in overlapping tiles, each of which the model sees at full detail.

Memory holds the probabilities of two or three rows of tiles, at the resolution of the logits; the image's own
resolution only ever exists for a block of pixels and a chunk of classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .image_processing_sed import ELEMENTS_PER_CHUNK, check_finite, highest_of_chunks

Span: TypeAlias = tuple[int, int]  # start and end in pixels


@dataclass(frozen=True)
class SlidingWindow:
    """How an image is cut.

    Args:
        tile_size: Edge of the square tiles, in pixels of the image.
        overlap: The least share of a tile that its neighbour covers too; there one fades into the other.
        global_view: Average the tiles with the whole image seen at once, which shows what tiles are too small for.
    """

    tile_size: int
    overlap: float = 0.25
    global_view: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.tile_size, int) or self.tile_size < 32:
            raise ValueError(f"sliding_window: expected a tile_size of at least 32 pixels, got {self.tile_size!r}")
        if not 0 <= self.overlap <= 0.75:
            raise ValueError(f"sliding_window: expected overlap to be from 0 to 0.75, got {self.overlap!r}")

    @classmethod
    def of(cls, value: Any) -> "SlidingWindow | None":
        """A window from a tile size or a dict of the arguments; `None` stays."""
        if value is None or isinstance(value, cls):
            return value
        try:
            return cls(**value) if isinstance(value, dict) else cls(value)
        except TypeError as error:
            expected = "expected a tile size, or a dict of tile_size, overlap and global_view"
            raise ValueError(f"sliding_window={value!r}: {expected}") from error

    def spans(self, length: int) -> list[Span]:
        """Start and end of the tiles along an edge of `length` pixels, evenly spaced."""
        if length <= self.tile_size:
            return [(0, length)]
        stride = max(1, int(self.tile_size * (1 - self.overlap)))
        count = math.ceil((length - self.tile_size) / stride) + 1
        starts = [round(number * (length - self.tile_size) / (count - 1)) for number in range(count)]
        return [(start, start + self.tile_size) for start in starts]


class View(NamedTuple):
    """What the model sees in a rectangle: probabilities (K, h, w) of K sorted classes; the others have 0."""

    rows: Span
    columns: Span
    probabilities: Tensor
    classes: Tensor


@torch.inference_mode()
def segment_with_sliding_window(
    model: Any,
    processor: Any,
    image: Tensor,
    class_embeddings: Tensor,
    window: SlidingWindow,
    early_rejection_topk: int | None = None,
    show_progress: bool = False,
) -> dict[str, Tensor]:
    """`segmentation`, int64 (H, W), and `probability`, float32 (H, W), of one uint8 image (3, H, W) in tiles.

    The arguments are those of [`segment_images`].
    """
    height, width = image.shape[1:]
    rows, columns = window.spans(height), window.spans(width)
    every_class = torch.arange(len(class_embeddings), device=model.device)

    def look(rows: Span, columns: Span) -> View:
        tile = image[:, slice(*rows), slice(*columns)]
        outputs = model(
            processor(images=tile, return_tensors="pt")["pixel_values"].to(model.device),
            class_embeddings=class_embeddings,
            early_rejection_topk=early_rejection_topk,
        )
        check_finite(outputs.logits)
        progress.update()
        classes = every_class if outputs.logit_classes is None else outputs.logit_classes
        return View(rows, columns, outputs.logits[0].float().sigmoid(), classes)

    total = len(rows) * len(columns) + window.global_view
    with tqdm(total=total, desc="Tiles", unit="tile", leave=False, disable=not show_progress) as progress:
        whole = look((0, height), (0, width)) if window.global_view else None
        segmentation = torch.empty(height, width, dtype=torch.long, device=model.device)
        probability = torch.empty(height, width, device=model.device)
        active: list[View] = []
        for band in pairwise(sorted({edge for span in rows for edge in span})):
            while rows and rows[0][0] <= band[0]:
                row = rows.pop(0)
                active += [look(row, column) for column in columns]
            active = [view for view in active if view.rows[1] > band[0]]
            for block in pairwise(sorted({edge for span in columns for edge in span})):
                views = [view for view in active if view.columns[0] <= block[0] and block[1] <= view.columns[1]]
                place = (slice(*band), slice(*block))
                scores = mixed_probabilities(views, whole, band, block, (height, width))
                probability[place], segmentation[place] = highest_of_chunks(scores)
    return {"segmentation": segmentation, "probability": probability}


def mixed_probabilities(
    views: list[View], whole: View | None, band: Span, block: Span, size: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some classes (t,) and their probabilities in a block of pixels (t, height, width) at a time.

    The views are those that cover the block; where they overlap, one fades into the other. The view of the whole image
    counts as much as the others together.
    """
    weights = torch.stack([fading(view, band, block, size) for view in views])
    shares = [*(weights / weights.sum(0))]
    if whole is not None:
        views = [*views, whole]
        shares = [*(share / 2 for share in shares), torch.full_like(shares[0], 0.5)]
    resizing = [
        (
            resampling(view.probabilities.shape[1], view.rows, band).to(weights),
            resampling(view.probabilities.shape[2], view.columns, block).to(weights).T,
        )
        for view in views
    ]
    seen = torch.cat([view.classes for view in views]).unique()
    for classes in seen.split(max(1, ELEMENTS_PER_CHUNK // weights[0].numel())):
        mixed = weights.new_zeros(len(classes), *weights.shape[1:])
        for view, share, (vertical, horizontal) in zip(views, shares, resizing, strict=True):
            position = torch.searchsorted(view.classes, classes).clamp(max=len(view.classes) - 1)
            is_kept = view.classes[position] == classes
            mixed += share * (vertical @ (view.probabilities[position] * is_kept[:, None, None]) @ horizontal)
        yield classes, mixed


def fading(view: View, band: Span, block: Span, size: tuple[int, int]) -> Tensor:
    """The weight of a tile at each pixel of a block: highest in its middle, falling to its edges within the image."""
    ramps = []
    for (start, end), span, length in zip((view.rows, view.columns), (band, block), size, strict=True):
        position = torch.arange(*span, device=view.probabilities.device) + 0.5
        ramp = torch.full_like(position, (end - start) / 2)
        if start > 0:
            ramp = ramp.minimum(position - start)
        if end < length:
            ramp = ramp.minimum(end - position)
        ramps.append(ramp)
    return ramps[0][:, None] * ramps[1]


def resampling(length: int, edge: Span, span: Span) -> Tensor:
    """The matrix (span, length) of the bilinear interpolation of `length` values along an edge, at a part of it."""
    interpolated = F.interpolate(torch.eye(length)[None], size=edge[1] - edge[0], mode="linear")[0].T
    return interpolated[span[0] - edge[0] : span[1] - edge[0]]


__all__ = ["SlidingWindow", "segment_with_sliding_window"]
