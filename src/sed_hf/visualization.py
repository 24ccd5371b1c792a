"""Segmentations for people: one palette, one legend, one overlay, for images, the frames of videos and the demo."""

import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

Labels: TypeAlias = npt.NDArray[np.integer]
Color: TypeAlias = tuple[int, ...]

# OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab) is a colour space in which the Euclidean distance of
# two colours is about how different they look; black is at a distance of 1 from white.
_LINEAR_RGB_TO_CONES = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
_CONES_TO_OKLAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
_DISTANCE = 0.25  # between the colours of two classes; with many classes as much of it as there is room for
_MIN_DISTANCE = 0.02  # nearer colours look the same
_SHADE_DISTANCE = 0.05  # between the shades of one colour word
_SHADE_WEIGHTS = (1, 5, 5)  # shades of a word differ in lightness rather than in hue

_DISPLAY_SIZE = 512  # pixels; smaller images are enlarged, so that image and legend are in proportion
_MAX_SIZE = 65_500  # pixels of a side that JPEG can hold; larger images are reduced
_MIN_FONT_SIZE = 14  # pixels
_FONT_SIZE_RATIO = 0.022  # font size relative to the square root of the image's area
_NUMBER_SCALES = (1.7, 1.0)  # size of the numbers on regions relative to the legend's font
_MAX_NAME_WIDTH = 14  # relative to the font size
_MAX_LISTED = 100  # classes in the legend of an image
_OPACITY = 0.5  # of the class colours
_CONTOUR_RATIO = 1 / 700  # contour width relative to the image's shorter side
_SEARCH_SIZE = 256  # longest side of the coarse label map on which the places of the numbers are sought
_WHITE, _INK, _FAINT = (255, 255, 255), (24, 24, 24), (150, 150, 150)

# Statistics ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassStatistics:
    """How much of an image or video one class covers.

    Attributes:
        index: Index of the class in the vocabulary.
        name: Name of the class, with its synonyms.
        share: Fraction of all pixels, ignored ones included, in (0, 1].
        mean_probability: Mean probability over the pixels of the class; `None` if no probabilities were given.
    """

    index: int
    name: str
    share: float
    mean_probability: float | None


class ClassTotals:
    """Areas and probabilities of classes, summed over the frames of a video.

    Args:
        class_names: The T class names.
        ignore_index: Label of pixels that have no class.

    Attributes:
        ignored_pixels: Number of pixels without a class.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int | None = None) -> None:
        self.ignored_pixels = 0
        self._class_names = class_names
        self._ignore_index = ignore_index
        self._areas = np.zeros(len(class_names), dtype=np.int64)
        self._probabilities = np.zeros(len(class_names))
        self._has_probabilities = False

    def add(self, segmentation: npt.ArrayLike, probability: npt.ArrayLike | None = None) -> None:
        """Add a frame: class indices, integers, and the probability of each pixel's class, (height, width)."""
        labels = np.asarray(segmentation)
        has_class = _has_class(labels, self._ignore_index)
        labels = labels[has_class]
        self.ignored_pixels += has_class.size - labels.size
        self._areas += np.bincount(labels, minlength=len(self._areas))
        if probability is not None:
            self._probabilities += np.bincount(labels, np.asarray(probability)[has_class], len(self._areas))
            self._has_probabilities = True

    def statistics(self) -> list[ClassStatistics]:
        """The classes that occur, the largest first; classes of equal area in the order of their index."""
        num_pixels = int(self._areas.sum()) + self.ignored_pixels
        largest_first = np.argsort(-self._areas, kind="stable")[: np.count_nonzero(self._areas)].tolist()
        return [
            ClassStatistics(
                index,
                self._class_names[index],
                float(self._areas[index] / num_pixels),
                float(self._probabilities[index] / self._areas[index]) if self._has_probabilities else None,
            )
            for index in largest_first
        ]


def class_statistics(
    segmentation: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    probability: npt.ArrayLike | None = None,
    ignore_index: int | None = None,
) -> list[ClassStatistics]:
    """The classes of one segmentation, the largest first; arguments as of [`ClassTotals`]."""
    totals = ClassTotals(class_names, ignore_index)
    totals.add(segmentation, probability)
    return totals.statistics()


def _has_class(labels: Labels, ignore_index: int | None) -> npt.NDArray[np.bool_]:
    return np.ones(labels.shape, dtype=bool) if ignore_index is None else labels != ignore_index


# Palette -------------------------------------------------------------------------------------------------------------


def class_colors(class_names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """A colour for each class name, the same in every image, run and process: RGB (T, 3).

    A name with a colour word ("red triangle", "dark green bush") has that colour; if several names share the word, they
    have shades of it. The colour of any other name follows from its letters, and is moved away from those of the names
    before it that look similar. The first synonym decides.
    """
    return _class_colors(tuple(map(first_synonym, class_names))).copy()


@lru_cache(maxsize=16)
def _class_colors(names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    candidates, lab, is_vivid = _candidate_colors()
    vivid = np.flatnonzero(is_vivid)
    chosen = np.zeros(len(names), dtype=np.int64)
    distance_to_chosen = np.full(len(candidates), np.inf, dtype=np.float32)
    min_distance = _DISTANCE
    words = [_color_word(name) for name in names]
    for position in sorted(range(len(names)), key=lambda position: words[position] is None):  # colour words first
        if (word := words[position]) is not None:
            away = (lab - _srgb_to_oklab(np.array([ImageColor.getrgb(word)]))) * _SHADE_WEIGHTS
            is_free = distance_to_chosen > _SHADE_DISTANCE
        else:
            letters = names[position].casefold().encode(errors="surrogatepass")
            away = lab - lab[vivid[zlib.crc32(letters) % len(vivid)]]
            while not (is_free := is_vivid & (distance_to_chosen > min_distance)).any():
                min_distance = 0.9 * min_distance if min_distance > _MIN_DISTANCE else -1
        chosen[position] = np.argmin(np.where(is_free, np.linalg.norm(away, axis=1), np.inf))
        distance_to_chosen = np.minimum(distance_to_chosen, np.linalg.norm(lab - lab[chosen[position]], axis=1))
    return candidates[chosen]


def _color_word(name: str) -> str | None:
    """The first word of a name, or two words joined, that CSS knows as a colour."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((word for word in [*map("".join, pairwise(words)), *words] if word in ImageColor.colormap), None)


@cache
def _candidate_colors() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """A grid over all colours, RGB (n, 3) and OKLab (n, 3), and which are neither greyish nor nearly black or white."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _srgb_to_oklab(grid)
    lightness, green_red, blue_yellow = lab.T
    return grid, lab, (lightness > 0.44) & (lightness < 0.92) & (np.hypot(green_red, blue_yellow) > 0.09)


def _srgb_to_oklab(colors: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """RGB (n, 3) → OKLab (n, 3): lightness in [0, 1], green to red, blue to yellow."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _LINEAR_RGB_TO_CONES.T)
    return (cones @ _CONES_TO_OKLAB.T).astype(np.float32)


# Overlay -------------------------------------------------------------------------------------------------------------


def draw_overlay(
    image: Image.Image,
    segmentation: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    ignore_index: int | None = None,
) -> Image.Image:
    """An image in the colours of its classes, with outlined and numbered regions and a legend.

    The legend lists the classes that occur, the largest first, 100 at most: number and colour, first synonym, share of
    the image. It stands below a landscape image and beside a portrait one, never on it. The rest is as
    [`draw_regions`] draws it, whose arguments are the same.

    Returns:
        An RGB image, larger than the input by the legend.
    """
    statistics = class_statistics(segmentation, class_names, ignore_index=ignore_index)
    listed, rest = statistics[:_MAX_LISTED], statistics[_MAX_LISTED:]
    numbered = [entry.index for entry in listed]
    regions = draw_regions(image, segmentation, class_names, numbered, ignore_index=ignore_index)
    colors = class_colors(class_names)
    rows = [
        LegendRow(entry.name, entry.share, tuple(colors[entry.index].tolist()), number)
        for number, entry in enumerate(listed, start=1)
    ]
    if rest:
        rows.append(LegendRow(f"{len(rest)} more", sum(entry.share for entry in rest)))
    no_class = LegendRow(NO_CLASS, 1 - sum(entry.share for entry in statistics), _WHITE)
    if no_class.is_in_view:
        rows.append(no_class)
    return Legend(regions.size, [row.name for row in rows], len(rows)).draw(regions, rows)


def draw_regions(
    image: Image.Image,
    segmentation: npt.ArrayLike,
    class_names: Sequence[str],
    numbered: Sequence[int] = (),
    *,
    ignore_index: int | None = None,
) -> Image.Image:
    """An image in the colours of its classes, with outlined and numbered regions but without a legend.

    The image is grey under the colours, which its own would distort. A class's number stands inside its widest region,
    if it fits. Pixels labelled `ignore_index` keep the image's colours.

    Args:
        image: Converted to RGB. Images of less than about 512 pixels are enlarged by a whole factor; those of more than
            65,500 pixels a side, which JPEG cannot hold, are reduced.
        segmentation: Class indices (height, width), integers, of the image's size.
        class_names: The T class names; synonyms separated by ", ".
        numbered: Class indices; the n-th class gets the number n.
        ignore_index: Label of pixels that have no class.

    Raises:
        ValueError: The sizes differ.
    """
    labels = np.asarray(segmentation)
    if labels.shape != (image.height, image.width):
        raise ValueError(f"segmentation has shape {labels.shape}: expected the image's {(image.height, image.width)}")
    size = display_size(image.size)
    labels = resize_labels(labels, size)
    original = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    has_class = _has_class(labels, ignore_index)
    colors = Image.fromarray(class_colors(class_names)[np.where(has_class, labels, 0)])
    colored = Image.blend(original.convert("L").convert("RGB"), colors, _OPACITY)
    regions = Image.composite(colored, original, Image.fromarray(has_class))
    regions.paste(_WHITE, mask=Image.fromarray(_contours(labels)))
    _number_regions(regions, labels, numbered)
    return regions


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which [`draw_regions`] draws an image of this width and height."""
    zoom = max(1, round(_DISPLAY_SIZE / max(size)))
    scale = min(zoom, _MAX_SIZE / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Labels (height, width) at another width and height: the nearest label of each pixel."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(reversed(size), labels.shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def _contours(labels: Labels) -> npt.NDArray[np.bool_]:
    """Where lines between regions of different labels run, (height, width)."""
    width = max(1, round(min(labels.shape) * _CONTOUR_RATIO))
    contours = np.zeros(labels.shape, dtype=bool)
    contours[width:] |= labels[width:] != labels[:-width]
    contours[:, width:] |= labels[:, width:] != labels[:, :-width]
    return contours


def _number_regions(image: Image.Image, labels: Labels, numbered: Sequence[int]) -> None:
    """Write the number of each class into its widest region, as large as fits there, if it does."""
    draw = ImageDraw.Draw(image)
    fonts = [_font(image.size, scale) for scale in _NUMBER_SCALES]
    stride = math.ceil(max(labels.shape) / _SEARCH_SIZE)
    coarse_labels = labels[::stride, ::stride]
    for number, index in enumerate(numbered, start=1):
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
    outline = math.ceil(font.size / 12)  # makes the number legible on bright colours too
    draw.text(center, str(number), fill=_WHITE, font=font, anchor="mm", stroke_width=outline, stroke_fill=_INK)


# Legend --------------------------------------------------------------------------------------------------------------

NO_CLASS = "(no class)"


@dataclass(frozen=True)
class LegendRow:
    """A row of a legend.

    Attributes:
        name: Of the class; its first synonym is shown.
        share: Of the image, in [0, 1].
        color: RGB; `None`: the row has no colour field.
        number: Number in the colour field.
    """

    name: str
    share: float
    color: Color | None = None
    number: int | None = None

    @property
    def is_in_view(self) -> bool:
        """Whether the share is above 0, but for what rounding may leave of a difference."""
        return self.share > 1e-9


class Legend:
    """Rows in columns on white, below a landscape image or beside a portrait one.

    Args:
        image_size: Width and height of the image in pixels.
        names: Class names that rows may have; they make the columns as wide as they need to be.
        num_rows: Number of rows.
        digits: Digits of percentages after the decimal point.

    Attributes:
        size: Width and height of the image with its legend.
    """

    def __init__(self, image_size: tuple[int, int], names: Iterable[str], num_rows: int, digits: int = 1) -> None:
        width, height = image_size
        self._digits = digits
        self._font = _font(image_size)
        em = self._font.size
        self._margin, self._row_height = round(em), round(1.7 * em)
        name_width = math.ceil(max(self._font.getlength(self._shown_name(name)) for name in names))
        self._column_width = round(2.5 * em) + name_width + round(em) + math.ceil(self._font.getlength("99.9%"))
        self._pitch = self._column_width + self._margin

        is_below = width > height
        if is_below:
            columns = max(1, (width - self._margin) // self._pitch)
        else:
            columns = math.ceil(num_rows / max(1, (height - 2 * self._margin) // self._row_height))
        self._rows_per_column = math.ceil(num_rows / columns)
        columns = math.ceil(num_rows / self._rows_per_column)
        panel_width = self._margin + columns * self._pitch
        panel_height = 2 * self._margin + self._rows_per_column * self._row_height
        self._left, self._top = (0, height) if is_below else (width, 0)
        self.size = (max(width, self._left + panel_width), max(height, self._top + panel_height))

    def draw(self, image: Image.Image, rows: Iterable[LegendRow | None]) -> Image.Image:
        """The image with the rows; `None` leaves a row empty, and names of classes out of view are faint."""
        canvas = Image.new("RGB", self.size, _WHITE)
        canvas.paste(image)
        draw = ImageDraw.Draw(canvas)
        font, em = self._font, self._font.size
        for position, row in enumerate(rows):
            if row is None:
                continue
            column, line = divmod(position, self._rows_per_column)
            x = self._left + self._margin + column * self._pitch
            y = self._top + self._margin + line * self._row_height + self._row_height // 2
            if row.color is not None:
                half = round(0.65 * em)
                draw.rectangle((x, y - half, x + round(2 * em), y + half), fill=row.color, outline=_INK)
            if row.number is not None:
                _draw_number(draw, (x + em, y), row.number, font)
            ink = _INK if row.is_in_view else _FAINT
            draw.text((x + round(2.5 * em), y), self._shown_name(row.name), fill=ink, font=font, anchor="lm")
            if row.is_in_view:
                share = _percentage(row.share, self._digits)
                draw.text((x + self._column_width, y), share, fill=ink, font=font, anchor="rm")
        return canvas

    def _shown_name(self, name: str) -> str:
        return shortened(first_synonym(name), self._font, _MAX_NAME_WIDTH * self._font.size)


def _percentage(share: float, digits: int) -> str:
    smallest = 10 ** -(digits + 2)
    return f"{share:.{digits}%}" if share >= smallest else f"<{smallest:.{digits}%}"


def first_synonym(name: str) -> str:
    """The first synonym on one line, without accents: Pillow's font has only ASCII and shows boxes for the rest."""
    letters = unicodedata.normalize("NFKD", name.split(", ")[0])
    return " ".join("".join(letter for letter in letters if not unicodedata.combining(letter)).split())


def shortened(text: str, font: ImageFont.FreeTypeFont, max_width: float) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(text + "…") > max_width:
        text = text[:-1]
    return text.rstrip() + "…"


def _font(image_size: tuple[int, int], scale: float = 1.0) -> ImageFont.FreeTypeFont:
    """Pillow's font in a size in proportion to an image."""
    return default_font(max(_MIN_FONT_SIZE, round(scale * _FONT_SIZE_RATIO * math.sqrt(math.prod(image_size)))))


@cache
def default_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's font."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # as whenever a size is asked for
    return font
