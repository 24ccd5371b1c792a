"""Large pictures in overlapping tiles, each of which the model sees at full detail.

Memory holds the probabilities of two or three rows of tiles, at the resolution of the logits; the picture's own
resolution only ever exists for a block of pixels and a chunk of classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

ELEMENTS_PER_CHUNK = 2**22


@dataclass(frozen=True)
class SlidingWindow:
    """How a picture is cut.

    Args:
        tile_size: Edge of the square tiles, in pixels of the picture.
        overlap: The least share of a tile that its neighbour covers too; there one fades into the other.
        global_view: Average the tiles with the whole picture seen at once, which shows what tiles are too small for.

    Raises:
        ValueError: A value out of range.
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
        """From a tile size, or a dict of the arguments; `None` stays."""
        if value is None or isinstance(value, cls):
            return value
        try:
            return cls(**value) if isinstance(value, dict) else cls(value)
        except TypeError as error:
            raise ValueError(
                f"sliding_window={value!r}: expected a tile size, or a dict of tile_size, overlap and global_view"
            ) from error

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Start and end of the tiles along an edge of so many pixels, evenly spaced."""
        if length <= self.tile_size:
            return [(0, length)]
        stride = max(1, int(self.tile_size * (1 - self.overlap)))
        count = math.ceil((length - self.tile_size) / stride) + 1
        starts = [round(number * (length - self.tile_size) / (count - 1)) for number in range(count)]
        return [(start, start + self.tile_size) for start in starts]


class View(NamedTuple):
    """What the model sees in a rectangle of the picture.

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
    picture: Tensor,
    class_embeddings: Tensor,
    window: SlidingWindow,
    *,
    early_rejection_topk: int | None = None,
    threshold: float | None = None,
    ignore_index: int | None = None,
    batch_size: int = 1,
    show_progress: bool = False,
) -> dict[str, Tensor]:
    """Segment one picture, tile by tile.

    Args:
        model: [`SEDForSemanticSegmentation`].
        processor: [`SEDProcessor`]; it prepares each tile as if it were a picture.
        picture: (3, height, width), uint8.
        class_embeddings: (T, P, D).
        window: How to cut it. Of a picture that one tile covers, the result is that without a window.
        early_rejection_topk: As in the model's `forward`, for each tile.
        threshold: Pixels whose best probability is lower get `ignore_index`.
        ignore_index: Defaults to that of the image processor.
        batch_size: Tiles at a time.
        show_progress: Show a bar over the tiles, if there are several.

    Returns:
        `segmentation`, int64 (height, width), and `probability` of the winning class, float32 (height, width).

    Raises:
        ValueError: `threshold` is no probability, or `ignore_index` is also the number of a class.
    """
    ignore_index = processor.image_processor.ignore_index if ignore_index is None else ignore_index
    if threshold is not None:
        check_threshold(threshold, ignore_index, len(class_embeddings))
    height, width = picture.shape[1:]
    rows, columns = window.spans(height), window.spans(width)
    if len(rows) == len(columns) == 1:
        outputs = model(
            processor(images=picture, return_tensors="pt")["pixel_values"].to(model.device),
            class_embeddings=class_embeddings,
            early_rejection_topk=early_rejection_topk,
        )
        return processor.post_process_semantic_segmentation(
            outputs, [(height, width)], threshold, ignore_index, return_probabilities=True
        )[0]
    segmentation = torch.empty(height, width, dtype=torch.long, device=model.device)
    probability = torch.empty(height, width, device=model.device)

    def look(rectangles: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> list[View]:
        views = []
        for first in range(0, len(rectangles), batch_size):
            batch = rectangles[first : first + batch_size]
            tiles = [picture[:, top:bottom, left:right] for (top, bottom), (left, right) in batch]
            outputs = model(
                processor(images=tiles, return_tensors="pt")["pixel_values"].to(model.device),
                class_embeddings=class_embeddings,
                early_rejection_topk=early_rejection_topk,
            )
            probabilities = outputs.logits.float().sigmoid()
            views += [
                View(*place, seen, outputs.logit_classes) for place, seen in zip(batch, probabilities, strict=True)
            ]
            progress.update(len(batch))
        return views

    total = len(rows) * len(columns) + window.global_view
    with tqdm(total=total, desc="Tiles", unit="tile", leave=False, disable=not show_progress) as progress:
        background = look([((0, height), (0, width))])[0] if window.global_view else None
        active: list[View] = []
        waiting = list(rows)
        for band in pairwise(sorted({edge for span in rows for edge in span})):
            while waiting and waiting[0][0] <= band[0]:
                row = waiting.pop(0)
                active += look([(row, column) for column in columns])
            active = [view for view in active if view.rows[1] > band[0]]
            for block in pairwise(sorted({edge for span in columns for edge in span})):
                views = [view for view in active if view.columns[0] <= block[0] and block[1] <= view.columns[1]]
                place = (slice(*band), slice(*block))
                probability[place], segmentation[place] = most_probable_class(
                    views, background, band, block, (height, width), len(class_embeddings)
                )
    if threshold is not None:
        segmentation.masked_fill_(probability < threshold, ignore_index)
    return {"segmentation": segmentation, "probability": probability}


def check_threshold(threshold: float, ignore_index: int, num_classes: int) -> None:
    """Refuse what `post_process_semantic_segmentation` refuses, before any tile is decoded."""
    if not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):
        raise ValueError(f"threshold={threshold!r}: expected a probability from 0 to 1")
    if 0 <= ignore_index < num_classes:
        raise ValueError(f"ignore_index={ignore_index} is also one of the {num_classes} classes; pass e.g. 65535")


def most_probable_class(
    views: list[View],
    background: View | None,
    band: tuple[int, int],
    block: tuple[int, int],
    size: tuple[int, int],
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """The highest probability at each pixel of a block, and its class.

    Args:
        views: Those that cover the block; where they overlap, one fades into the other.
        background: The view of the whole picture, which counts as much as the others together.
        band, block: Start and end of the block's rows and columns.
        size: Height and width of the picture.
        num_classes: T.
    """
    weights = [fading(view, band, block, size) for view in views]
    total = torch.stack(weights).sum(0)
    shares = [weight / total for weight in weights]
    if background is not None:
        views = [*views, background]
        shares = [*(share / 2 for share in shares), torch.full_like(total, 0.5)]
    resampled = [
        (view, share, resampling(view, 0, band), resampling(view, 1, block))
        for view, share in zip(views, shares, strict=True)
    ]
    best = total.new_full(total.shape, -1.0)
    best_class = torch.zeros(total.shape, dtype=torch.long, device=total.device)
    for classes in union(views, num_classes).split(max(1, ELEMENTS_PER_CHUNK // total.numel())):
        mixed = total.new_zeros(len(classes), *total.shape)
        for view, share, vertical, horizontal in resampled:
            mixed += share * (vertical @ pick(view, classes) @ horizontal.T)
        value, index = mixed.max(dim=0)
        is_better = value > best
        best = torch.where(is_better, value, best)
        best_class = torch.where(is_better, classes[index], best_class)
    return best, best_class


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
    """The weight of a tile at each pixel of a block: highest in its middle, falling to its edges within the picture."""
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
