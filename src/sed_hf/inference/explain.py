"""What SED sees in an image, class by class: the cost map, every head, and where early rejection drops a class."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from ..utils import atomic_path, write_file
from ..visualization import INK, draw_overlay, first_synonym, font_of, resize_labels, shortened

CELL = (200, 150)  # pixels, at most
LABEL_WIDTH, LINE, GAP = 270, 20, 8


@dataclass(frozen=True)
class Explanation:
    """What SED sees of T classes.

    Attributes:
        cost_map: float32 (T, h, w), cosine similarity of each location and class name, mean of all prompt templates.
        heads: float32 (T, h, w) to (T, 8h, 8w), the probabilities before each stage and of the last head.
        rejected_before: int64 (T,), the stage (from 1) that a class does not enter with early rejection; 0: none.
        segmentation: int64 (height, width), the class of each pixel.
    """

    class_names: Sequence[str]
    topk: int
    cost_map: npt.NDArray[np.float32]
    heads: tuple[npt.NDArray[np.float32], ...]
    rejected_before: npt.NDArray[np.int64]
    segmentation: npt.NDArray[np.int64]

    def shares(self) -> npt.NDArray[np.float64]:
        """The share of each class of the image, (T,)."""
        return np.bincount(self.segmentation.ravel(), minlength=len(self.class_names)) / self.segmentation.size


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


def write_explanation(figure: Path, image: Image.Image, explanation: Explanation, max_rows: int) -> None:
    """Write the figure (PNG) and, beside it, the same numbers of all classes (JSON)."""
    shares = explanation.shares()
    with atomic_path(figure) as path:
        draw_explanation(image, explanation, max_rows).save(path, format="PNG")
    classes = [
        {
            "index": index,
            "name": name,
            "share": float(shares[index]),
            "highest_cost": float(explanation.cost_map[index].max()),
            "highest_probability_by_head": [float(head[index].max()) for head in explanation.heads],
            "rejected_before_stage": int(explanation.rejected_before[index]) or None,
        }
        for index, name in enumerate(explanation.class_names)
    ]
    content = {"topk": explanation.topk, "classes": classes}
    write_file(figure.with_suffix(".json"), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def draw_explanation(image: Image.Image, explanation: Explanation, max_rows: int = 12) -> Image.Image:
    """The RGB image and its overlay on top, then a row for each class: cost map, auxiliary heads, last head.

    At most `max_rows` classes are drawn: those of the largest share first, then those of the highest probability.
    """
    names, shares, stages = explanation.class_names, explanation.shares(), explanation.rejected_before
    highest = explanation.heads[-1].max(axis=(1, 2))
    drawn = np.lexsort((-highest, -shares))[:max_rows]
    headings = ["cost map", *(f"head before stage {stage}" for stage in range(1, len(explanation.heads))), "last head"]

    grey = ImageOps.contain(image.convert("L").convert("RGB"), CELL)
    large = image.resize((3 * grey.width, 3 * grey.height))
    overlay = draw_overlay(large, resize_labels(explanation.segmentation, large.size), names)
    width = max(LABEL_WIDTH + len(headings) * (grey.width + GAP), large.width + overlay.width + 2 * GAP) + GAP
    first_row, row_height = overlay.height + 2 * LINE + 3 * GAP, max(grey.height, 4 * LINE) + GAP
    figure = Image.new("RGB", (width, first_row + len(drawn) * row_height), "white")
    figure.paste(large, (GAP, GAP))
    figure.paste(overlay, (large.width + 2 * GAP, GAP))
    for row, index in enumerate(drawn):
        rejection = f"rejected before stage {stages[index]}" if stages[index] else "never rejected"
        share, probability = f"{shares[index]:.1%} of the image", f"highest probability {highest[index]:.2f}"
        lines = [first_synonym(names[index]), share, probability, f"{rejection} (k = {explanation.topk})"]
        write(figure, (GAP, first_row + row * row_height), LABEL_WIDTH - GAP, lines)
    for column, (heading, maps) in enumerate(zip(headings, (explanation.cost_map, *explanation.heads), strict=True)):
        left = LABEL_WIDTH + GAP + column * (grey.width + GAP)
        low, high = float(maps[drawn].min()) if column == 0 else 0.0, float(maps[drawn].max())
        write(figure, (left, overlay.height + 2 * GAP), grey.width, [heading, f"{low:.2f} to {high:.2f}"])
        for row, index in enumerate(drawn):
            heat = heat_map(maps[index], low, high).resize(grey.size, Image.Resampling.BILINEAR)
            figure.paste(Image.blend(grey, heat, 0.8), (left, first_row + row * row_height))
    return figure


def heat_map(values: npt.NDArray[np.float32], low: float, high: float) -> Image.Image:
    """Values (h, w) between two limits as colours, from black over red to light yellow."""
    levels = (values - low) / max(high - low, 1e-6) * 255
    grey = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    return ImageOps.colorize(grey, black=(0, 0, 4), mid=(188, 55, 84), white=(252, 255, 164))


def write(figure: Image.Image, corner: tuple[int, int], width: int, lines: Sequence[str]) -> None:
    """Write lines of text, shortened to a width, below a corner."""
    for number, line in enumerate(lines):
        font = font_of(line, 16)
        text, place = shortened(line, font, width), (corner[0], corner[1] + number * LINE)
        ImageDraw.Draw(figure).text(place, text, fill=INK, font=font)
