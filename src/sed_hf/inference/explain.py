"""What SED sees in an image, class by class: the cost map, every head, and where early rejection drops a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from ..visualization import class_statistics, default_font, draw_overlay, first_synonym, resize_labels, shortened

_HEAT_ALPHA = 0.8  # of the heat over the grey image, which shows where it is
_CELL_AREA = 200 * 150  # pixels
_LABEL_WIDTH = 270
_FONT_SIZE, _LINE = 16, 22
_GAP = 8
_INK, _FAINT, _REJECTED = (24, 24, 24), (110, 110, 110), (190, 20, 20)


@dataclass(frozen=True)
class Explanation:
    """What SED sees of T classes.

    Attributes:
        cost_map: float32 (T, h, w), cosine similarity of each location and class name, mean of all prompt templates.
        heads: float32 (T, h, w), (T, 2h, 2w), (T, 4h, 4w), (T, 8h, 8w): the probabilities of the auxiliary heads,
            before each stage, and of the last head.
        rejected_before: int64 (T,), the stage (from 1) that a class does not enter with early rejection; 0: it enters
            every one.
        segmentation: int64 (height, width), the class of each pixel.
    """

    cost_map: npt.NDArray[np.float32]
    heads: tuple[npt.NDArray[np.float32], ...]
    rejected_before: npt.NDArray[np.int64]
    segmentation: npt.NDArray[np.int64]


@torch.inference_mode()
def explain_image(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    image: Image.Image,
    class_embeddings: Tensor,
    topk: int,
) -> Explanation:
    """Segment an image and keep what led to it.

    Args:
        model: In evaluation mode.
        processor: Its processor.
        image: RGB.
        class_embeddings: (T, P, D).
        topk: The k of the early rejection to report on. Everything else is of dense decoding.

    Raises:
        NonFiniteLogitsError: The logits are not finite.
    """
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    inputs: dict[str, Any] = {"pixel_values": pixel_values, "class_embeddings": class_embeddings}
    dense = model(**inputs, early_rejection_topk=0, output_hidden_states=True)
    is_missing = ~model(**inputs, early_rejection_topk=topk).kept_classes[0]
    rejected_before = torch.where(is_missing.any(0), is_missing.int().argmax(0) + 1, 0)
    segmentation: Any
    [segmentation] = processor.post_process_semantic_segmentation(dense, target_sizes=[(image.height, image.width)])
    heads = tuple(logits[0].float().sigmoid().cpu().numpy() for logits in (*dense.aux_logits, dense.logits))
    cost_map = dense.cost_map[0].float().mean(1).cpu().numpy()
    return Explanation(cost_map, heads, rejected_before.cpu().numpy(), segmentation.cpu().numpy())


def explanation_summary(explanation: Explanation, class_names: Sequence[str], topk: int) -> dict[str, object]:
    """What the figure shows as numbers, of every class, for a JSON file."""
    shares = {entry.index: entry.share for entry in class_statistics(explanation.segmentation, class_names)}
    return {
        "topk": topk,
        "classes": [
            {
                "index": index,
                "name": name,
                "share": round(shares.get(index, 0.0), 6),
                "highest_cost": round(float(explanation.cost_map[index].max()), 6),
                "highest_probability_by_head": [round(float(head[index].max()), 6) for head in explanation.heads],
                "rejected_before_stage": int(explanation.rejected_before[index]) or None,
            }
            for index, name in enumerate(class_names)
        ],
    }


def draw_explanation(
    image: Image.Image, explanation: Explanation, class_names: Sequence[str], topk: int, max_rows: int = 12
) -> Image.Image:
    """The image and its overlay on top, then a row for each class: cost map, auxiliary heads, last head.

    Args:
        image: RGB.
        explanation: Of that image.
        class_names: The T class names.
        topk: The k of its early rejection.
        max_rows: Most classes to draw: those of the largest share first, then those of the highest probability.
    """
    num_classes = len(class_names)
    areas = np.bincount(explanation.segmentation.ravel(), minlength=num_classes)
    highest = explanation.heads[-1].reshape(num_classes, -1).max(axis=1)
    rows = np.lexsort((-highest, -areas))[:max_rows].tolist()
    columns = {"cost map": explanation.cost_map}
    columns |= {f"head before stage {stage}": head for stage, head in enumerate(explanation.heads[:-1], start=1)}
    columns["last head"] = explanation.heads[-1]

    scale = (_CELL_AREA / (image.width * image.height)) ** 0.5
    cell = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    top = _draw_top(image.resize((3 * cell[0], 3 * cell[1])), explanation.segmentation, class_names)
    row_height = max(cell[1], 4 * _LINE) + _GAP
    first_row = top.height + 2 * _GAP + 2 * _LINE + _GAP
    width = max(_GAP + _LABEL_WIDTH + len(columns) * (cell[0] + _GAP), top.width + 2 * _GAP)
    canvas = Image.new("RGB", (width, first_row + len(rows) * row_height), "white")
    canvas.paste(top, (_GAP, _GAP))
    draw = ImageDraw.Draw(canvas)
    for position, index in enumerate(rows):
        stage = int(explanation.rejected_before[index])
        fate, ink = (f"rejected before stage {stage}", _REJECTED) if stage else ("never rejected", _FAINT)
        _draw_lines(
            draw,
            (_GAP, first_row + position * row_height),
            _LABEL_WIDTH - _GAP,
            (first_synonym(class_names[index]), _INK),
            (f"{areas[index] / areas.sum():.1%} of the image", _FAINT),
            (f"highest probability {highest[index]:.2f}", _FAINT),
            (f"{fate} (k = {topk})", ink),
        )
    grey = image.convert("L").resize(cell).convert("RGB")
    for number, (heading, maps) in enumerate(columns.items()):
        left = _GAP + _LABEL_WIDTH + number * (cell[0] + _GAP)
        low, high = (float(maps[rows].min()) if number == 0 else 0.0), float(maps[rows].max())
        limits = f"{low:.2f} to {high:.2f}"
        _draw_lines(draw, (left, top.height + 2 * _GAP), cell[0], (heading, _INK), (limits, _FAINT))
        for position, index in enumerate(rows):
            heat = heat_map(maps[index], low, high).resize(cell, Image.Resampling.BILINEAR)
            canvas.paste(Image.blend(grey, heat, _HEAT_ALPHA), (left, first_row + position * row_height))
    return canvas


def heat_map(values: npt.NDArray[np.float32], low: float, high: float) -> Image.Image:
    """Values (h, w) between two limits as colours, from black over red to light yellow."""
    levels = (values - low) / max(high - low, 1e-6) * 255
    grey = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    return ImageOps.colorize(grey, black=(0, 0, 4), mid=(188, 55, 84), white=(252, 255, 164))


def _draw_top(image: Image.Image, segmentation: npt.NDArray[np.int64], class_names: Sequence[str]) -> Image.Image:
    """The image beside its overlay."""
    overlay = draw_overlay(image, resize_labels(segmentation, image.size), class_names)
    size = (image.width + _GAP + overlay.width, max(image.height, overlay.height))
    top = Image.new("RGB", size, "white")
    top.paste(image)
    top.paste(overlay, (image.width + _GAP, 0))
    return top


def _draw_lines(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, *lines: tuple[str, tuple[int, int, int]]
) -> None:
    """Write coloured lines of text, shortened to a width, below a corner."""
    font = default_font(_FONT_SIZE)
    for number, (text, color) in enumerate(lines):
        draw.text((corner[0], corner[1] + number * _LINE), shortened(text, font, width), fill=color, font=font)
