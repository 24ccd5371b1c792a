"""Large images in overlapping tiles, each of which the model sees at full detail.

Memory holds the probabilities of two or three rows of tiles, at the resolution of the logits; the image's own
resolution only ever exists for a band of rows and a chunk of classes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

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


@dataclass(frozen=True)
class View:
    """What the model sees in a rectangle: probabilities (K, h, w) of K sorted classes; the others have 0."""

    rows: Span
    columns: Span
    probabilities: Tensor
    classes: Tensor

    def interpolation(self, band: Span) -> Tensor:
        """The matrix (rows of the band, h) of the bilinear interpolation along the height."""
        (top, bottom), height = self.rows, self.probabilities.shape[1]
        identity = torch.eye(height).to(self.probabilities)[None, None]
        return F.interpolate(identity, (bottom - top, height), mode="bilinear")[0, 0, band[0] - top : band[1] - top]

    def resized(self, classes: Tensor, interpolation: Tensor) -> Tensor:
        """The probabilities (t, height, width) of some of these classes at the pixels of a band of the rows."""
        rows = interpolation @ self.probabilities[torch.searchsorted(self.classes, classes)]
        size = len(interpolation), self.columns[1] - self.columns[0]
        return F.interpolate(rows[:, None], size, mode="bilinear")[:, 0]

    def fading(self, band: Span, size: tuple[int, int]) -> Tensor:
        """The weight of a tile at the pixels of a band: highest in its middle, low at its edges within the image."""
        ramps = []
        for (start, end), span, length in zip((self.rows, self.columns), (band, self.columns), size, strict=True):
            position = torch.arange(*span, device=self.probabilities.device) + 0.5
            ramp = torch.full_like(position, (end - start) / 2)
            if start > 0:
                ramp = ramp.minimum(position - start)
            if end < length:
                ramp = ramp.minimum(end - position)
            ramps.append(ramp)
        return ramps[0][:, None] * ramps[1]


@torch.inference_mode()
def segment_with_sliding_window(
    look: Callable[[list[Tensor]], Any], image: Tensor, window: SlidingWindow, show_progress: bool = False
) -> dict[str, Tensor]:
    """`segmentation`, int64 (H, W), and `probability`, float32 (H, W), of one uint8 image (3, H, W) in tiles.

    Args:
        look: From a list of one tile, RGB, uint8 (3, h, w), to the model's outputs.
        image: RGB.
        window: How to cut it.
        show_progress: Show a bar over the tiles.
    """
    height, width = image.shape[1:]
    rows, columns = window.spans(height), window.spans(width)

    def view_of(rows: Span, columns: Span) -> View:
        outputs = look([image[:, slice(*rows), slice(*columns)]])
        check_finite(outputs.logits)
        progress.update()
        classes, probabilities = outputs.logit_classes, outputs.logits[0].float().sigmoid()
        if classes is None:
            classes = torch.arange(len(probabilities), device=probabilities.device)
        return View(rows, columns, probabilities, classes)

    total = len(rows) * len(columns) + window.global_view
    with tqdm(total=total, desc="Tiles", unit="tile", leave=False, disable=not show_progress) as progress:
        whole = view_of((0, height), (0, width)) if window.global_view else None
        segmentation, probability = torch.empty(height, width, dtype=torch.long), torch.empty(height, width)
        views: list[View] = []
        for band in pairwise(sorted({edge for span in rows for edge in span})):
            while rows and rows[0][0] <= band[0]:
                row = rows.pop(0)
                views += [view_of(row, column) for column in columns]
            views = [view for view in views if view.rows[1] > band[0]]
            scores = mixed_probabilities(views, whole, band, (height, width))
            probability[slice(*band)], segmentation[slice(*band)] = highest_of_chunks(scores)
    return {"segmentation": segmentation, "probability": probability}


def mixed_probabilities(
    views: list[View], whole: View | None, band: Span, size: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some classes (t,) and their probabilities in a band of rows (t, height, width) at a time.

    The views are those that reach into the band; where they overlap, one fades into the other. The view of the whole
    image counts as much as the others together.
    """
    weights = [view.fading(band, size) for view in views]
    total = weights[0].new_zeros(band[1] - band[0], size[1])
    for view, weight in zip(views, weights, strict=True):
        total[:, slice(*view.columns)] += weight
    if whole is not None:
        views, weights, total = [*views, whole], [*weights, total], 2 * total
    interpolations = [view.interpolation(band) for view in views]
    seen = torch.cat([view.classes for view in views]).unique()
    for classes in seen.split(max(1, ELEMENTS_PER_CHUNK // total.numel())):
        mixed = total.new_zeros(len(classes), *total.shape)
        for view, weight, interpolation in zip(views, weights, interpolations, strict=True):
            [kept] = torch.isin(classes, view.classes).nonzero(as_tuple=True)
            mixed[..., slice(*view.columns)].index_add_(0, kept, weight * view.resized(classes[kept], interpolation))
        yield classes, mixed.div_(total)


__all__ = ["SlidingWindow", "segment_with_sliding_window"]
