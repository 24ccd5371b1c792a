"""Large images in overlapping tiles, each of which the model sees at full detail.

Memory holds the probabilities of two or three rows of tiles, at the resolution of the logits; the image's own
resolution only ever exists for a block of pixels and a chunk of classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .image_processing_sed import ELEMENTS_PER_CHUNK, check_finite, highest_of_chunks


@dataclass(frozen=True)
class SlidingWindow:
    """How an image is cut.

    Args:
        tile_size: Edge of the square tiles, in pixels of the image.
        overlap: The least share of a tile that its neighbour covers too; there one fades into the other.
        global_view: Average the tiles with the whole image seen at once, which shows what tiles are too small for.

    Raises:
        ValueError: A value is out of range.
    """

    tile_size: int
    overlap: float = 0.25
    global_view: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.tile_size, int) or self.tile_size < 32:
            raise ValueError(f"sliding_window: expected a tile_size of at least 32 pixels, got {self.tile_size!r}")
        if not 0 <= self.overlap <= 0.75:
            raise ValueError(f"sliding_window: expected overlap to be from 0 to 0.75, got {self.overlap!r}")
        if not isinstance(self.global_view, bool):
            raise ValueError(f"sliding_window: expected global_view to be True or False, got {self.global_view!r}")

    @classmethod
    def of(cls, value: Any) -> "SlidingWindow | None":
        """A window from a tile size or a dict of the arguments; `None` stays."""
        if value is None or isinstance(value, cls):
            return value
        try:
            return cls(**value) if isinstance(value, dict) else cls(value)
        except TypeError as error:
            raise ValueError(
                f"sliding_window={value!r}: expected a tile size, or a dict of tile_size, overlap and global_view"
            ) from error

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Start and end of the tiles along an edge of `length` pixels, evenly spaced."""
        if length <= self.tile_size:
            return [(0, length)]
        stride = max(1, int(self.tile_size * (1 - self.overlap)))
        count = math.ceil((length - self.tile_size) / stride) + 1
        starts = [round(number * (length - self.tile_size) / (count - 1)) for number in range(count)]
        return [(start, start + self.tile_size) for start in starts]


class View(NamedTuple):
    """What the model sees in a rectangle of the image.

    Attributes:
        rows, columns: Start and end of the rectangle.
        probabilities: (K, h, w), at the resolution of the logits.
        classes: (K,) sorted classes that they are of; the others have probability 0. `None`: of all T.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    probabilities: Tensor
    classes: Tensor | None


@torch.inference_mode()
def segment_with_sliding_window(
    model: Any,
    processor: Any,
    image: Tensor,
    class_embeddings: Tensor,
    window: SlidingWindow,
    early_rejection_topk: int | None = None,
    show_progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The probability of each pixel's class, float32 (H, W), and that class, int64 (H, W), of one image in tiles.

    Args:
        model: [`SEDForSemanticSegmentation`].
        processor: [`SEDProcessor`]; it prepares each tile as if it were an image.
        image: (3, H, W), uint8.
        class_embeddings: (T, P, D).
        window: How to cut it.
        early_rejection_topk: As in the model's `forward`, for each tile.
        show_progress: Show a bar over the tiles.
    """
    height, width = image.shape[1:]
    rows, columns = window.spans(height), window.spans(width)

    def look(rows: tuple[int, int], columns: tuple[int, int]) -> View:
        tile = image[:, slice(*rows), slice(*columns)]
        outputs = model(
            processor(images=tile, return_tensors="pt")["pixel_values"].to(model.device),
            class_embeddings=class_embeddings,
            early_rejection_topk=early_rejection_topk,
        )
        check_finite(outputs.logits)
        progress.update()
        return View(rows, columns, outputs.logits[0].float().sigmoid(), outputs.logit_classes)

    total = len(rows) * len(columns) + window.global_view
    with tqdm(total=total, desc="Tiles", unit="tile", leave=False, disable=not show_progress) as progress:
        whole = look((0, height), (0, width)) if window.global_view else None
        segmentation = torch.empty(height, width, dtype=torch.long, device=model.device)
        probability = torch.empty(height, width, device=model.device)
        active: list[View] = []
        waiting = list(rows)
        for band in pairwise(sorted({edge for span in rows for edge in span})):
            while waiting and waiting[0][0] <= band[0]:
                row = waiting.pop(0)
                active += [look(row, column) for column in columns]
            active = [view for view in active if view.rows[1] > band[0]]
            for block in pairwise(sorted({edge for span in columns for edge in span})):
                views = [view for view in active if view.columns[0] <= block[0] and block[1] <= view.columns[1]]
                place = (slice(*band), slice(*block))
                scores = mixed_probabilities(views, whole, band, block, (height, width), len(class_embeddings))
                probability[place], segmentation[place] = highest_of_chunks(scores)
    return probability, segmentation


def mixed_probabilities(
    views: list[View],
    whole: View | None,
    band: tuple[int, int],
    block: tuple[int, int],
    size: tuple[int, int],
    num_classes: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some classes (t,) and their probabilities in a block of pixels (t, height, width) at a time.

    Args:
        views: Those that cover the block; where they overlap, one fades into the other.
        whole: The view of the whole image, which counts as much as the others together.
        band, block: Start and end of the block's rows and columns.
        size: Height and width of the image.
        num_classes: T.
    """
    weights = [fading(view, band, block, size) for view in views]
    total = torch.stack(weights).sum(0)
    shares = [weight / total for weight in weights]
    if whole is not None:
        views = [*views, whole]
        shares = [*(share / 2 for share in shares), torch.full_like(total, 0.5)]
    matrices = [(resampling(view, 0, band), resampling(view, 1, block)) for view in views]
    for classes in union(views, num_classes).split(max(1, ELEMENTS_PER_CHUNK // total.numel())):
        mixed = total.new_zeros(len(classes), *total.shape)
        for view, share, (vertical, horizontal) in zip(views, shares, matrices, strict=True):
            mixed += share * (vertical @ pick(view, classes) @ horizontal.T)
        yield classes, mixed


def union(views: list[View], num_classes: int) -> Tensor:
    """Sorted classes that some view has a probability for."""
    device = views[0].probabilities.device
    if any(view.classes is None for view in views):
        return torch.arange(num_classes, device=device)
    return torch.cat([view.classes for view in views if view.classes is not None]).unique()


def pick(view: View, classes: Tensor) -> Tensor:
    """The probabilities (t, h, w) of some classes, 0 of those that were rejected."""
    if view.classes is None:
        return view.probabilities[classes]
    position = torch.searchsorted(view.classes, classes).clamp(max=len(view.classes) - 1)
    is_there = view.classes[position] == classes
    return view.probabilities[position] * is_there[:, None, None]


def fading(view: View, band: tuple[int, int], block: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The weight of a tile at each pixel of a block: highest in its middle, falling to its edges within the image."""
    device = view.probabilities.device
    ramps = []
    for (start, end), (first, last), length in zip((view.rows, view.columns), (band, block), size, strict=True):
        position = torch.arange(first, last, device=device) + 0.5
        to_start = position - start if start else torch.full_like(position, torch.inf)
        to_end = end - position if end < length else torch.full_like(position, torch.inf)
        ramps.append(torch.minimum(to_start, to_end).clamp(max=(end - start) / 2))
    return ramps[0][:, None] * ramps[1]


def resampling(view: View, axis: int, span: tuple[int, int]) -> Tensor:
    """The matrix (span, h) or (span, w) of the bilinear interpolation of a view along an axis."""
    start, end = (view.rows, view.columns)[axis]
    length = view.probabilities.shape[1 + axis]
    identity = torch.eye(length, device=view.probabilities.device)
    interpolated = F.interpolate(identity[None], size=end - start, mode="linear", align_corners=False)[0].T
    return interpolated[span[0] - start : span[1] - start]


__all__ = ["SlidingWindow", "segment_with_sliding_window"]
