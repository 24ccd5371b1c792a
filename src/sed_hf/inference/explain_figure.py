"""A picture of an [`Explanation`]: a row for each class, from the cost map to the last head."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ..visualization import class_statistics, draw_overlay, first_synonym, shortened
from .explain import Explanation

# From black over purple and orange to light yellow, of evenly rising lightness: (position, red, green, blue).
_HEAT = np.array([[0, 0, 0, 4], [0.25, 87, 16, 110], [0.5, 188, 55, 84], [0.75, 249, 142, 9], [1, 252, 255, 164]])
_HEAT_ALPHA = 0.8  # of the heat over the grey picture, which shows where it is
_CELL_AREA = 200 * 150  # pixels
_LABEL_WIDTH = 270
_FONT_SIZE = 16
_GAP = 8
_TEXT_COLOR = (24, 24, 24)
_FAINT_COLOR = (110, 110, 110)
_REJECTED_COLOR = (190, 20, 20)


def draw_explanation(
    picture: Image.Image, explanation: Explanation, class_names: Sequence[str], topk: int, max_rows: int = 12
) -> Image.Image:
    """Draw what SED sees.

    Args:
        picture: RGB.
        explanation: Of that picture.
        class_names: The T class names.
        topk: The k of its early rejection.
        max_rows: Most classes to draw: those of the largest share first, then those of the highest probability.

    Returns:
        RGB: the picture and its segmentation on top, then a row for each class.
    """
    rows = rows_to_draw(explanation, max_rows)
    columns = [explanation.cost_map, *explanation.heads]
    headings = ["cost map", *(f"head before stage {stage}" for stage in range(1, len(explanation.heads))), "last head"]
    scales = [(float(maps[rows].min()), float(maps[rows].max())) for maps in columns[:1]]
    scales += [(0.0, float(maps[rows].max())) for maps in columns[1:]]

    scale = (_CELL_AREA / (picture.width * picture.height)) ** 0.5
    cell = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    top = draw_top(picture, explanation, class_names, 2 * cell[1])
    font = ImageFont.load_default(_FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)  # it is, whenever a size is asked for
    line = round(1.4 * _FONT_SIZE)
    row_height = max(cell[1], 4 * line) + _GAP
    width = max(_GAP + _LABEL_WIDTH + len(columns) * (cell[0] + _GAP), top.width + 2 * _GAP)
    first_row = top.height + 2 * _GAP + 2 * line + _GAP
    canvas = Image.new("RGB", (width, first_row + len(rows) * row_height), (255, 255, 255))
    canvas.paste(top, (_GAP, _GAP))
    draw = ImageDraw.Draw(canvas)
    lefts = [_GAP + _LABEL_WIDTH + number * (cell[0] + _GAP) for number in range(len(columns))]
    for left, heading, (low, high) in zip(lefts, headings, scales, strict=True):
        y = top.height + 2 * _GAP
        draw.text((left, y), shortened(heading, font, cell[0]), fill=_TEXT_COLOR, font=font)
        draw.text((left, y + line), f"{low:.2f} to {high:.2f}", fill=_FAINT_COLOR, font=font)

    grey = picture.convert("L").convert("RGB").resize(cell)
    for number, index in enumerate(rows):
        y = first_row + number * row_height
        for position, (text, color) in enumerate(describe(explanation, index, class_names[index], topk)):
            text = shortened(text, font, _LABEL_WIDTH - _GAP)
            draw.text((_GAP, y + position * line), text, fill=color, font=font)
        for left, maps, limits in zip(lefts, columns, scales, strict=True):
            heat = heat_map(maps[index], limits).resize(cell, Image.Resampling.BILINEAR)
            canvas.paste(Image.blend(grey, heat, _HEAT_ALPHA), (left, y))
    return canvas


def rows_to_draw(explanation: Explanation, max_rows: int) -> list[int]:
    """The classes to draw: by their share of the picture, then by their highest probability."""
    num_classes = len(explanation.cost_map)
    areas = np.bincount(explanation.segmentation.ravel(), minlength=num_classes)
    highest = explanation.heads[-1].reshape(num_classes, -1).max(axis=1)
    return np.lexsort((-highest, -areas))[:max_rows].tolist()


def draw_top(picture: Image.Image, explanation: Explanation, class_names: Sequence[str], height: int) -> Image.Image:
    """The picture beside its segmentation with a legend, each of the same height."""
    overlay = draw_overlay(picture, explanation.segmentation, class_names)
    parts = [part.resize((max(1, round(part.width * height / part.height)), height)) for part in (picture, overlay)]
    top = Image.new("RGB", (sum(part.width for part in parts) + _GAP, height), (255, 255, 255))
    top.paste(parts[0], (0, 0))
    top.paste(parts[1], (parts[0].width + _GAP, 0))
    return top


def describe(
    explanation: Explanation, index: int, class_name: str, topk: int
) -> list[tuple[str, tuple[int, int, int]]]:
    """Lines of text on a class, with their colours."""
    share = float((explanation.segmentation == index).mean())
    rejected = int(explanation.rejected_before[index])
    fate = f"rejected before stage {rejected} (k = {topk})" if rejected else f"never rejected (k = {topk})"
    return [
        (first_synonym(class_name), _TEXT_COLOR),
        (f"{share:.1%} of the picture", _FAINT_COLOR),
        (f"highest probability {explanation.heads[-1][index].max():.2f}", _FAINT_COLOR),
        (fate, _REJECTED_COLOR if rejected else _FAINT_COLOR),
    ]


def heat_map(values: npt.NDArray[np.float32], limits: tuple[float, float]) -> Image.Image:
    """Values (h, w) between two limits as colours."""
    low, high = limits
    positions = (values - low) / max(high - low, 1e-6)
    channels = [np.interp(positions, _HEAT[:, 0], _HEAT[:, channel]) for channel in (1, 2, 3)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def summarize(explanation: Explanation, class_names: Sequence[str], topk: int) -> dict[str, object]:
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
