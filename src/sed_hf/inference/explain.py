"""What SED sees in an image, class by class: the cost map, every head, and where early rejection drops a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from ..visualization import INK, class_statistics, draw_overlay, first_synonym, resize_labels, shortened

CELL_AREA = 200 * 150  # pixels
LABEL_WIDTH = 270
LINE = 20  # height of a line of text
GAP = 8


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

    class_names: Sequence[str]
    topk: int
    cost_map: npt.NDArray[np.float32]
    heads: tuple[npt.NDArray[np.float32], ...]
    rejected_before: npt.NDArray[np.int64]
    segmentation: npt.NDArray[np.int64]


@torch.inference_mode()
def explain_image(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    image: Image.Image,
    class_names: Sequence[str],
    class_embeddings: Tensor,
    topk: int,
) -> Explanation:
    """Segment an RGB image and keep what led to it.

    `class_embeddings` are (T, P, D). `topk` is of the early rejection to report on; all else is of dense decoding.
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
    return Explanation(class_names, topk, cost_map, heads, rejected_before.cpu().numpy(), segmentation.cpu().numpy())


def explanation_summary(explanation: Explanation) -> dict[str, object]:
    """What the figure shows as numbers, of every class, for a JSON file."""
    statistics = class_statistics(explanation.segmentation, explanation.class_names)
    shares = {entry.index: entry.share for entry in statistics}
    return {
        "topk": explanation.topk,
        "classes": [
            {
                "index": index,
                "name": name,
                "share": round(shares.get(index, 0.0), 6),
                "highest_cost": round(float(explanation.cost_map[index].max()), 6),
                "highest_probability_by_head": [round(float(head[index].max()), 6) for head in explanation.heads],
                "rejected_before_stage": int(explanation.rejected_before[index]) or None,
            }
            for index, name in enumerate(explanation.class_names)
        ],
    }


def draw_explanation(image: Image.Image, explanation: Explanation, max_rows: int = 12) -> Image.Image:
    """The RGB image and its overlay on top, then a row for each class: cost map, auxiliary heads, last head.

    At most `max_rows` classes are drawn: those of the largest share first, then those of the highest probability.
    """
    *auxiliary_heads, last_head = explanation.heads
    areas = np.bincount(explanation.segmentation.ravel(), minlength=len(last_head))
    highest = last_head.max(axis=(1, 2))
    rows = np.lexsort((-highest, -areas))[:max_rows].tolist()
    columns = {"cost map": explanation.cost_map}
    columns |= {f"head before stage {stage}": head for stage, head in enumerate(auxiliary_heads, start=1)}
    columns["last head"] = last_head

    scale = (CELL_AREA / (image.width * image.height)) ** 0.5
    cell = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    large = image.resize((3 * cell[0], 3 * cell[1]))
    overlay = draw_overlay(large, resize_labels(explanation.segmentation, large.size), explanation.class_names)
    row_height = max(cell[1], 4 * LINE) + GAP
    headings_top = max(large.height, overlay.height) + 2 * GAP
    first_row = headings_top + 2 * LINE + GAP
    width = max(LABEL_WIDTH + len(columns) * (cell[0] + GAP), large.width + overlay.width + 2 * GAP) + GAP
    figure = Image.new("RGB", (width, first_row + len(rows) * row_height), "white")
    figure.paste(large, (GAP, GAP))
    figure.paste(overlay, (large.width + 2 * GAP, GAP))

    for position, index in enumerate(rows):
        stage = explanation.rejected_before[index]
        _write(
            figure,
            (GAP, first_row + position * row_height),
            LABEL_WIDTH - GAP,
            first_synonym(explanation.class_names[index]),
            f"{areas[index] / areas.sum():.1%} of the image",
            f"highest probability {highest[index]:.2f}",
            f"{f'rejected before stage {stage}' if stage else 'never rejected'} (k = {explanation.topk})",
        )
    grey = image.convert("L").resize(cell).convert("RGB")
    for number, (heading, maps) in enumerate(columns.items()):
        left = LABEL_WIDTH + GAP + number * (cell[0] + GAP)
        low, high = (float(maps[rows].min()) if number == 0 else 0.0), float(maps[rows].max())
        _write(figure, (left, headings_top), cell[0], heading, f"{low:.2f} to {high:.2f}")
        for position, index in enumerate(rows):
            heat = heat_map(maps[index], low, high).resize(cell, Image.Resampling.BILINEAR)
            figure.paste(Image.blend(grey, heat, 0.8), (left, first_row + position * row_height))
    return figure


def heat_map(values: npt.NDArray[np.float32], low: float, high: float) -> Image.Image:
    """Values (h, w) between two limits as colours, from black over red to light yellow."""
    levels = (values - low) / max(high - low, 1e-6) * 255
    grey = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    return ImageOps.colorize(grey, black=(0, 0, 4), mid=(188, 55, 84), white=(252, 255, 164))


def _write(figure: Image.Image, corner: tuple[int, int], width: int, *lines: str) -> None:
    """Write lines of text, shortened to a width, below a corner."""
    font = ImageFont.load_default(16)
    text = "\n".join(shortened(line, font, width) for line in lines)
    ImageDraw.Draw(figure).text(corner, text, fill=INK, font=font)
