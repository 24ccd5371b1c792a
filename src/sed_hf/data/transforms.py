"""Training augmentation, of torchvision's transforms."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..image_processing_sed import shortest_edge_size

PADDING_VALUE = 128


def training_transform(
    shortest_edge: int | None,
    longest_edge: int,
    crop_size: int,
    color_jitter: bool,
    horizontal_flip: bool,
    ignore_index: int,
) -> v2.Transform:
    """Augmentation of a picture (`tv_tensors.Image`, uint8) and its label map (`tv_tensors.Mask`) as SED trains.

    Args:
        shortest_edge: Resize the shortest side to this many pixels; `None` does not resize.
        longest_edge: At most this many pixels for the longest side.
        crop_size: Side of the random crop; smaller pictures are padded at the right and the bottom.
        color_jitter: Jitter brightness, contrast, saturation and hue, as SSD does.
        horizontal_flip: Flip half of the pictures.
        ignore_index: Label of padded pixels.
    """
    steps: list[v2.Transform] = []
    if shortest_edge is not None:
        steps.append(ResizeShortestEdge(shortest_edge, longest_edge))
    steps += [PadToSize(crop_size, ignore_index), v2.RandomCrop(crop_size)]
    if color_jitter:
        steps += [
            v2.RandomApply([BrightnessShift(32)]),
            v2.RandomApply([v2.ColorJitter(contrast=(0.5, 1.5))]),
            v2.RandomApply([v2.ColorJitter(saturation=(0.5, 1.5))]),
            v2.RandomApply([v2.ColorJitter(hue=0.1)]),  # of a turn: 36°
        ]
    if horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)


class ResizeShortestEdge(v2.Transform):
    """Resize with the shortest side as asked, unless the longest would exceed its cap; label maps to the nearest."""

    def __init__(self, shortest_edge: int, longest_edge: int) -> None:
        super().__init__()
        self.shortest_edge = shortest_edge
        self.longest_edge = longest_edge

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize a picture or a label map (..., H, W)."""
        size = shortest_edge_size(inpt.shape[-2:], self.shortest_edge, self.longest_edge)
        return v2.functional.resize(inpt, list(size), antialias=True)


class PadToSize(v2.Transform):
    """Pad at the right and the bottom to at least a square: pictures with grey, label maps with the ignored label."""

    def __init__(self, size: int, ignore_index: int) -> None:
        super().__init__()
        self.size = size
        self.ignore_index = ignore_index

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad a picture or a label map (..., H, W)."""
        height, width = inpt.shape[-2:]
        fill = self.ignore_index if isinstance(inpt, tv_tensors.Mask) else PADDING_VALUE
        return v2.functional.pad(inpt, [0, 0, max(0, self.size - width), max(0, self.size - height)], fill=fill)


class BrightnessShift(v2.Transform):
    """Add one random number of up to `limit` grey levels to a whole picture."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the shift."""
        return {"shift": torch.empty(()).uniform_(-self.limit, self.limit)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Shift a uint8 picture (3, H, W)."""
        shifted = (inpt.float() + params["shift"]).round().clamp(0, 255).to(torch.uint8)
        return tv_tensors.wrap(shifted, like=inpt)
