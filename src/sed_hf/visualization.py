"""Pictures of a segmentation for people: class colours, an overlay on the photo, and a legend."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

# OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab) is a colour space in which the Euclidean distance of
# two colours is about how different they look; black is at a distance of 1 from white.
_LINEAR_RGB_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_CONES_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_CONFUSABLE_DISTANCE = 0.15  # nearer colours are hard to tell apart once they are blended with a photo
_NEIGHBOUR_DISTANCE = 0.25  # at least this between the colours of adjacent class indices
_PALETTE_SIZE = 8192  # about what the candidates can give with neighbours kept apart
_RESERVE_SIZE = 256  # the colours among which a class that would be confused with another finds a new one

_DISPLAY_SIZE = 512  # pixels; smaller pictures are enlarged, so that picture and legend are in proportion
_MIN_FONT_SIZE = 14  # pixels
_FONT_SIZE_RATIO = 0.022  # font size relative to the square root of the picture's area
MAX_NAME_WIDTH = 14  # relative to the font size
_CONTOUR_RATIO = 1 / 700  # contour width relative to the picture's shorter side
_SEARCH_SIZE = 256  # longest side of the coarse label map on which the places of the numbers are sought
PANEL_COLOR = (255, 255, 255)
TEXT_COLOR = (24, 24, 24)
_CONTOUR_COLOR = (255, 255, 255)
_NUMBER_COLOR = (255, 255, 255)
_NUMBER_OUTLINE_COLOR = (24, 24, 24)  # makes the numbers legible on bright colours too


@dataclass(frozen=True)
class ClassStatistics:
    """How much of a picture one class covers.

    Attributes:
        index: Index of the class in the vocabulary.
        name: Name of the class, with its synonyms.
        share: Fraction of all pixels of the picture, ignored ones included, in (0, 1].
        mean_probability: Mean probability over the pixels of the class; `None` if no probabilities were given.
    """

    index: int
    name: str
    share: float
    mean_probability: float | None


def class_statistics(
    segmentation: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    probability: npt.ArrayLike | None = None,
    ignore_index: int | None = None,
) -> list[ClassStatistics]:
    """The classes that occur in a segmentation, the largest first; classes of equal area in the order of their index.

    Args:
        segmentation: Class indices (height, width), integers.
        class_names: The T class names.
        probability: Probability of each pixel's class (height, width), in [0, 1].
        ignore_index: Label of pixels that have no class.

    Raises:
        ValueError: A label is neither a class index nor `ignore_index`, or the shapes differ.
    """
    labels = _checked_labels(segmentation, len(class_names), ignore_index)
    has_class = _has_class(labels, ignore_index)
    areas = np.bincount(labels[has_class], minlength=len(class_names))
    occurring = np.argsort(-areas, kind="stable")[: np.count_nonzero(areas)].tolist()

    means: dict[int, float] = {}
    if probability is not None:
        probabilities = np.asarray(probability)
        if probabilities.shape != labels.shape:
            raise ValueError(f"probability has shape {probabilities.shape}: expected the segmentation's {labels.shape}")
        sums = np.bincount(labels[has_class], weights=probabilities[has_class], minlength=len(class_names))
        means = {index: float(sums[index] / areas[index]) for index in occurring}

    return [
        ClassStatistics(index, class_names[index], float(areas[index] / labels.size), means.get(index))
        for index in occurring
    ]


def class_palette(num_classes: int) -> npt.NDArray[np.uint8]:
    """One colour for each class: RGB (T, 3).

    Each colour is the one that looks most different from all colours before it, chosen among those that are neither
    greyish nor nearly black or white. So a short vocabulary has very different colours, a class keeps its colour when
    the vocabulary grows, and adjacent indices never look alike. After 8192 classes the colours repeat.

    Raises:
        ValueError: `num_classes` is negative.
    """
    if num_classes < 0:
        raise ValueError(f"num_classes={num_classes}: expected at least 0")
    # Rounding up to a power of two leaves few different sizes to compute and to cache.
    size = min(1 << num_classes.bit_length(), _PALETTE_SIZE)
    return _spread_colors(size)[np.arange(num_classes) % size]


def class_colors(indices: Sequence[int], num_classes: int) -> npt.NDArray[np.uint8]:
    """Colours for the n classes that occur together in one picture, as distinct as possible: RGB (n, 3).

    A class has its colour of [`class_palette`] in every picture, with one exception: of two classes in the picture
    whose colours a person would confuse, the one that comes later in `indices` gets a colour that nothing else in the
    picture resembles.

    Args:
        indices: Class indices, the most important first.
        num_classes: Size T of the vocabulary.
    """
    colors = class_palette(num_classes)[list(indices)]
    lab = _srgb_to_oklab(colors)
    kept: list[int] = []
    confusable: list[int] = []
    for position, color in enumerate(lab):
        distinct = _distance_to_nearest(color[None], lab[kept])[0] > _CONFUSABLE_DISTANCE
        (kept if distinct else confusable).append(position)

    for position in confusable:
        colors[position], lab[position] = _most_distinct_color(lab[kept])
        kept.append(position)
    return colors


class SettledClassColors:
    """Colours of the classes of one video: a class keeps for ever the colour that it has when it first occurs.

    That is its colour of [`class_palette`], unless a person would confuse it with a class that occurred earlier in the
    video: then it is one that no class before it resembles.

    Args:
        num_classes: Size T of the vocabulary.

    Attributes:
        palette: RGB (T, 3), uint8; of classes that have not occurred, the colours are provisional.
    """

    def __init__(self, num_classes: int) -> None:
        self.palette = class_palette(num_classes)
        self._lab = _srgb_to_oklab(self.palette)
        self._settled: dict[int, None] = {}  # an ordered set

    def settle(self, indices: Iterable[int]) -> None:
        """Fix the colours of the classes that occur now, the most important first."""
        for index in indices:
            if index in self._settled:
                continue
            settled = self._lab[list(self._settled)]
            if _distance_to_nearest(self._lab[index, None], settled)[0] <= _CONFUSABLE_DISTANCE:
                self.palette[index], self._lab[index] = _most_distinct_color(settled)
            self._settled[index] = None


def draw_overlay(
    image: Image.Image,
    segmentation: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    ignore_index: int | None = None,
    alpha: float = 0.5,
) -> Image.Image:
    """Colour each pixel of a photo by its class, outline and number the regions, and add a legend.

    The legend lists the classes that occur, the largest first: number and colour, first synonym, share of the picture.
    It stands below a landscape picture and beside a portrait one, never on it. A class's number also stands inside its
    widest region, if it fits. The photo is grey under the colours, which its own would distort. Pictures of less than
    about 512 pixels are first enlarged by a whole factor. Pixels labelled `ignore_index` keep the photo's colours.

    Args:
        image: The photo; converted to RGB.
        segmentation: Class indices (height, width), integers, of the photo's size.
        class_names: The T class names; synonyms separated by ", ".
        ignore_index: Label of pixels that have no class.
        alpha: Opacity of the class colours, in [0, 1].

    Returns:
        An RGB picture, larger than the photo by the legend.

    Raises:
        ValueError: The sizes differ, a label is neither a class index nor `ignore_index`, or `alpha` is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: expected a value in [0, 1]")
    statistics = class_statistics(segmentation, class_names, ignore_index=ignore_index)
    occurring = [entry.index for entry in statistics]
    picture = draw_regions(image, segmentation, occurring, len(class_names), ignore_index=ignore_index, alpha=alpha)
    has_class = _has_class(np.asarray(segmentation), ignore_index)
    colors = class_colors(occurring, len(class_names))
    rows = [
        _LegendRow(first_synonym(entry.name), entry.share, tuple(color.tolist()))
        for entry, color in zip(statistics, colors, strict=True)
    ]
    if not has_class.all():
        rows.append(_LegendRow("(no class)", 1 - float(has_class.mean()), None))
    return _add_legend(picture, rows, font_in_proportion(picture))


def draw_regions(
    image: Image.Image,
    segmentation: npt.ArrayLike,
    listed: Sequence[int],
    num_classes: int,
    *,
    ignore_index: int | None = None,
    alpha: float = 0.5,
    font_scale: float = 1.0,
) -> Image.Image:
    """The picture of [`draw_overlay`] without its legend, for pages that have one of their own.

    Args:
        image: The photo; converted to RGB.
        segmentation: Class indices (height, width), integers, of the photo's size.
        listed: The classes of the legend in its order, among them all that occur: the n-th has the number n.
        num_classes: Size T of the vocabulary.
        ignore_index: Label of pixels that have no class.
        alpha: Opacity of the class colours, in [0, 1].
        font_scale: Size of the numbers relative to those of [`draw_overlay`]; where they do not fit, they are as there.

    Returns:
        An RGB picture of the photo's size, or a multiple of it.

    Raises:
        ValueError: The sizes differ, or a label is neither a class index nor `ignore_index`.
    """
    labels = _checked_labels(segmentation, num_classes, ignore_index)
    if labels.shape != (image.height, image.width):
        raise ValueError(f"segmentation has shape {labels.shape}: expected the picture's {(image.height, image.width)}")
    zoom = max(1, round(_DISPLAY_SIZE / max(image.size)))
    photo = image.convert("RGB").resize((image.width * zoom, image.height * zoom), Image.Resampling.BICUBIC)
    labels = labels.repeat(zoom, axis=0).repeat(zoom, axis=1)

    palette = np.zeros((num_classes, 3), dtype=np.uint8)
    palette[list(listed)] = class_colors(listed, num_classes)
    picture = color_regions(photo, labels, palette, ignore_index, alpha)
    fonts = [font_in_proportion(photo, font_scale), font_in_proportion(photo)]
    _number_regions(picture, labels, listed, fonts)
    return picture


def _checked_labels(segmentation: npt.ArrayLike, num_classes: int, ignore_index: int | None) -> npt.NDArray[np.integer]:
    labels = np.asarray(segmentation)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"segmentation has shape {labels.shape} and type {labels.dtype}: expected integers (height, width)"
        )
    unknown = labels[((labels < 0) | (labels >= num_classes)) & _has_class(labels, ignore_index)]
    if unknown.size:
        raise ValueError(
            f"segmentation holds the label {unknown[0]}: expected indices of {num_classes} classes"
            f" or ignore_index={ignore_index}"
        )
    return labels


def _has_class(labels: npt.NDArray[np.integer], ignore_index: int | None) -> npt.NDArray[np.bool_]:
    return np.ones(labels.shape, dtype=bool) if ignore_index is None else labels != ignore_index


# --- colours ---


def _srgb_to_oklab(colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """RGB (n, 3) → OKLab (n, 3): lightness in [0, 1], green to red, blue to yellow."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _LINEAR_RGB_TO_CONES.T)
    return (cones @ _CONES_TO_OKLAB.T).astype(np.float32)


@cache
def _candidate_colors() -> npt.NDArray[np.uint8]:
    """The colours a class may have, RGB (n, 3): a grid over sRGB without those that get lost on photo or paper."""
    levels = np.linspace(0, 255, 24).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, green_red, blue_yellow = _srgb_to_oklab(grid).T
    return grid[(lightness > 0.44) & (lightness < 0.92) & (np.hypot(green_red, blue_yellow) > 0.09)]


@cache
def _spread_colors(num_colors: int) -> npt.NDArray[np.uint8]:
    """The first colours of the candidates in farthest-point order, RGB (num_colors, 3)."""
    candidates = _candidate_colors()
    lab = _srgb_to_oklab(candidates)
    distance_to_chosen = np.full(len(lab), np.inf, dtype=np.float32)
    chosen = [0]
    while len(chosen) < num_colors:
        distance_to_last = np.linalg.norm(lab - lab[chosen[-1]], axis=1)
        distance_to_chosen = np.minimum(distance_to_chosen, distance_to_last)
        chosen.append(int(np.argmax(np.where(distance_to_last > _NEIGHBOUR_DISTANCE, distance_to_chosen, 0))))
    return candidates[chosen]


def _most_distinct_color(lab: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The colour of the reserve that least resembles any of the colours given (n, 3), as RGB (3,) and OKLab (3,)."""
    reserve = class_palette(_RESERVE_SIZE)
    reserve_lab = _srgb_to_oklab(reserve)
    most_distinct = np.argmax(_distance_to_nearest(reserve_lab, lab))
    return reserve[most_distinct], reserve_lab[most_distinct]


def _distance_to_nearest(lab: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Distance from each colour (n, 3) to the nearest of the others (m, 3): (n,); infinite without others."""
    return np.linalg.norm(lab[:, None] - others[None], axis=-1).min(axis=1, initial=np.inf)


# --- regions ---


def font_in_proportion(picture: Image.Image, scale: float = 1.0) -> ImageFont.FreeTypeFont:
    size = max(_MIN_FONT_SIZE, round(scale * _FONT_SIZE_RATIO * math.sqrt(picture.width * picture.height)))
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # it is, whenever a size is asked for
    return font


def color_regions(
    photo: Image.Image,
    labels: npt.NDArray[np.integer],
    palette: npt.NDArray[np.uint8],
    ignore_index: int | None,
    alpha: float,
) -> Image.Image:
    """The photo with the palette's colours (T, 3) blended in where there is a class, and contours between regions."""
    has_class = _has_class(labels, ignore_index)
    colors = Image.fromarray(palette[np.where(has_class, labels, 0)])
    colored = Image.blend(photo.convert("L").convert("RGB"), colors, alpha)
    picture = Image.composite(colored, photo, Image.fromarray(has_class))
    width = max(1, round(min(photo.size) * _CONTOUR_RATIO))
    picture.paste(_CONTOUR_COLOR, mask=Image.fromarray(_contours(labels, width)))
    return picture


def _contours(labels: npt.NDArray[np.integer], width: int) -> npt.NDArray[np.bool_]:
    """Where lines of `width` pixels between regions of different labels run, (height, width)."""
    contours = np.zeros(labels.shape, dtype=bool)
    contours[width:] |= labels[width:] != labels[:-width]
    contours[:, width:] |= labels[:, width:] != labels[:, :-width]
    return contours


def _number_regions(
    picture: Image.Image,
    labels: npt.NDArray[np.integer],
    listed: Sequence[int],
    fonts: Sequence[ImageFont.FreeTypeFont],
) -> None:
    """Write the rank of each class, from 1, into its widest region, in the first of the fonts that fits, if any."""
    draw = ImageDraw.Draw(picture)
    stride = math.ceil(max(labels.shape) / _SEARCH_SIZE)
    coarse_labels = labels[::stride, ::stride]
    for number, index in enumerate(listed, start=1):
        row, column, depth = _innermost_cell(coarse_labels == index)
        fitting = [font for font in fonts if (depth - 1) * stride > 0.6 * font.size]
        if fitting:
            _draw_number(draw, (column * stride, row * stride), number, fitting[0])


def _innermost_cell(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """Row, column and depth of the cell that survives the most erosions of a mask (height, width); depth 0: none."""
    depths = np.zeros(mask.shape, dtype=np.int32)
    remaining = np.pad(mask, 1)
    while remaining.any():
        depths += remaining[1:-1, 1:-1]
        vertical = remaining[:-2] & remaining[1:-1] & remaining[2:]
        remaining = np.pad(vertical[:, :-2] & vertical[:, 1:-1] & vertical[:, 2:], 1)
    row, column = np.unravel_index(np.argmax(depths), depths.shape)
    return int(row), int(column), int(depths[row, column])


def _draw_number(
    draw: ImageDraw.ImageDraw, center: tuple[float, float], number: int, font: ImageFont.FreeTypeFont
) -> None:
    draw.text(
        center,
        str(number),
        fill=_NUMBER_COLOR,
        font=font,
        anchor="mm",
        stroke_width=math.ceil(font.size / 12),
        stroke_fill=_NUMBER_OUTLINE_COLOR,
    )


# --- legend ---


@dataclass(frozen=True)
class _LegendRow:
    name: str
    share: float
    color: tuple[int, ...] | None  # None: pixels without a class, which have no colour and no number


def first_synonym(name: str) -> str:
    """The first synonym on one line, without accents: Pillow's font knows ASCII alone and shows boxes for the rest."""
    letters = unicodedata.normalize("NFKD", name.split(", ")[0])
    return " ".join("".join(letter for letter in letters if not unicodedata.combining(letter)).split())


def _percentage(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "<0.1%"


def shortened(text: str, font: ImageFont.FreeTypeFont, max_width: float) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(text + "…") > max_width:
        text = text[:-1]
    return text.rstrip() + "…"


def _add_legend(picture: Image.Image, rows: Sequence[_LegendRow], font: ImageFont.FreeTypeFont) -> Image.Image:
    """The picture on a larger canvas, with the rows in columns below it (landscape) or beside it (portrait)."""
    names = [shortened(row.name, font, MAX_NAME_WIDTH * font.size) for row in rows]
    percentages = [_percentage(row.share) for row in rows]
    margin, gap = round(font.size), round(0.5 * font.size)
    swatch_width, swatch_height, row_height = round(2 * font.size), round(1.3 * font.size), round(1.7 * font.size)
    name_width = math.ceil(max(font.getlength(name) for name in names))
    percentage_width = math.ceil(max(font.getlength(percentage) for percentage in percentages))
    column_width = swatch_width + gap + name_width + 2 * gap + percentage_width

    below = picture.width > picture.height
    if below:
        columns = max(1, (picture.width - margin) // (column_width + margin))
    else:
        columns = math.ceil(len(rows) * row_height / max(row_height, picture.height - 2 * margin))
    rows_per_column = math.ceil(len(rows) / columns)
    columns = math.ceil(len(rows) / rows_per_column)  # the last columns may be empty

    panel_width = margin + columns * (column_width + margin)
    panel_height = margin + rows_per_column * row_height + margin
    if below:
        left, top = 0, picture.height
        size = (max(picture.width, panel_width), picture.height + panel_height)
    else:
        left, top = picture.width, 0
        size = (picture.width + panel_width, max(picture.height, panel_height))
    canvas = Image.new("RGB", size, PANEL_COLOR)
    canvas.paste(picture)

    draw = ImageDraw.Draw(canvas)
    for position, (row, name, percentage) in enumerate(zip(rows, names, percentages, strict=True)):
        column, row_in_column = divmod(position, rows_per_column)
        x = left + margin + column * (column_width + margin)
        y = top + margin + row_in_column * row_height + row_height // 2
        swatch = (x, y - swatch_height // 2, x + swatch_width, y + swatch_height // 2)
        draw.rectangle(swatch, fill=row.color, outline=TEXT_COLOR)
        if row.color is not None:
            _draw_number(draw, (x + swatch_width / 2, y), position + 1, font)
        draw.text((x + swatch_width + gap, y), name, fill=TEXT_COLOR, font=font, anchor="lm")
        draw.text((x + column_width, y), percentage, fill=TEXT_COLOR, font=font, anchor="rm")
    return canvas
