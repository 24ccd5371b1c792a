"""Segmentations for people: one palette, one overlay, one legend, for images, the frames of videos and the demo."""

import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

Labels: TypeAlias = npt.NDArray[np.integer]
Probabilities: TypeAlias = npt.NDArray[np.floating]

# OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab) is a colour space in which the Euclidean distance of
# two colours is about how different they look; black is at a distance of 1 from white.
LINEAR_RGB_TO_CONES = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
CONES_TO_OKLAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
CLASS_DISTANCE = 0.25  # between the colours of two classes; with many classes as much of it as there is room for
SHADE_DISTANCE = 0.05  # between the shades of one colour word
MAX_LISTED = 100  # classes in the legend of an image
NO_CLASS = "(no class)"
WHITE, INK, FAINT = (255, 255, 255), (24, 24, 24), (150, 150, 150)


@dataclass(frozen=True)
class ClassStatistics:
    """How much of an image or video one class covers.

    Attributes:
        share: Fraction of all pixels, ignored ones included, in (0, 1].
        mean_probability: Mean over the pixels of the class; NaN if no probabilities were given.
    """

    index: int
    name: str
    share: float
    mean_probability: float


class ClassTotals:
    """Areas and probabilities of classes, summed over the frames of a video.

    Args:
        class_names: The T class names.
        ignore_index: Label of pixels without a class; `ignored_pixels` counts them.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int | None = None) -> None:
        self.ignored_pixels = 0
        self._class_names = class_names
        self._ignore_index = ignore_index
        self._areas = np.zeros(len(class_names), dtype=np.int64)
        self._probabilities = np.zeros(len(class_names))

    def add(self, segmentation: Labels, probability: Probabilities | float = math.nan) -> None:
        """Add a frame: class indices and the probability of each pixel's class, both (height, width)."""
        has_class = segmentation != self._ignore_index
        labels = segmentation[has_class]
        weights = np.broadcast_to(probability, segmentation.shape)[has_class]
        self.ignored_pixels += segmentation.size - labels.size
        self._areas += np.bincount(labels, minlength=len(self._areas))
        self._probabilities += np.bincount(labels, weights, minlength=len(self._areas))

    def statistics(self) -> list[ClassStatistics]:
        """The classes that occur, the largest first; classes of equal area in the order of their index."""
        num_pixels = self._areas.sum() + self.ignored_pixels
        present = np.flatnonzero(self._areas)
        present = present[np.argsort(-self._areas[present], kind="stable")]
        shares = self._areas[present] / num_pixels
        means = self._probabilities[present] / self._areas[present]
        return [
            ClassStatistics(index, self._class_names[index], share, mean)
            for index, share, mean in zip(present.tolist(), shares.tolist(), means.tolist(), strict=True)
        ]


def class_statistics(
    segmentation: Labels,
    class_names: Sequence[str],
    *,
    probability: Probabilities | float = math.nan,
    ignore_index: int | None = None,
) -> list[ClassStatistics]:
    """The classes of one segmentation, the largest first; arguments as of [`ClassTotals`]."""
    totals = ClassTotals(class_names, ignore_index)
    totals.add(segmentation, probability)
    return totals.statistics()


def class_colors(class_names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """A colour for each class name, the same in every image, run and process: RGB (T, 3).

    A name with a colour word ("red triangle", "dark green bush") has that colour; if several names share the word, they
    have shades of it. The colour of any other name follows from its letters, and is moved away from those of the names
    before it that look similar. The first synonym decides.
    """
    return _class_colors(tuple(map(first_synonym, class_names)))


@lru_cache(maxsize=16)
def _class_colors(names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    candidates, lab = _candidate_colors()
    lightness, green_red, blue_yellow = lab.T
    is_vivid = (lightness > 0.44) & (lightness < 0.92) & (np.hypot(green_red, blue_yellow) > 0.09)
    vivid = np.flatnonzero(is_vivid)
    chosen = np.zeros(len(names), dtype=np.int64)
    distance_to_chosen = np.full(len(candidates), np.inf)
    words = [_color_word(name) for name in names]
    for position in sorted(range(len(names)), key=lambda position: words[position] is None):  # colour words first
        if (word := words[position]) is not None:
            wanted = np.abs(candidates - np.array(ImageColor.getrgb(word))).sum(axis=1).argmin()
            cost = np.linalg.norm((lab - lab[wanted]) * (1, 5, 5), axis=1)  # shades differ in lightness
            min_distance = SHADE_DISTANCE
        else:
            letters = names[position].casefold().encode(errors="surrogatepass")
            wanted = vivid[zlib.crc32(letters) % len(vivid)]
            cost = np.linalg.norm(lab - lab[wanted], axis=1) + 1000 * ~is_vivid
            min_distance = CLASS_DISTANCE
        cost += 100 * np.clip(min_distance - distance_to_chosen, 0, None)
        chosen[position] = np.argmin(cost)
        distance_to_chosen = np.minimum(distance_to_chosen, np.linalg.norm(lab - lab[chosen[position]], axis=1))
    colors = candidates[chosen].astype(np.uint8)
    colors.flags.writeable = False
    return colors


def _color_word(name: str) -> str | None:
    """The first word of a name, or two words joined, that CSS knows as a colour."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((word for word in [*map("".join, pairwise(words)), *words] if word in ImageColor.colormap), None)


def _candidate_colors() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """A grid over all colours: RGB and OKLab (lightness, green to red, blue to yellow), (4096, 3)."""
    colors = 17 * np.indices((16, 16, 16)).reshape(3, -1).T
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return colors, np.cbrt(linear @ LINEAR_RGB_TO_CONES.T) @ CONES_TO_OKLAB.T


def draw_overlay(
    image: Image.Image, segmentation: Labels, class_names: Sequence[str], *, ignore_index: int | None = None
) -> Image.Image:
    """An image in the colours of its classes, with outlined and numbered regions and a legend; larger than the input.

    The legend lists the classes that occur, the largest first, 100 at most: number and colour, first synonym, share of
    the image. The rest is as [`draw_regions`] draws it, whose arguments are the same.
    """
    statistics = class_statistics(segmentation, class_names, ignore_index=ignore_index)
    listed, rest = statistics[:MAX_LISTED], statistics[MAX_LISTED:]
    colors = class_colors(class_names)
    rows = [
        LegendRow(entry.name, entry.share, tuple(colors[entry.index].tolist()), number)
        for number, entry in enumerate(listed, start=1)
    ]
    if rest:
        rows.append(LegendRow(f"{len(rest)} more", sum(entry.share for entry in rest)))
    if no_class := float(np.mean(segmentation == ignore_index)):
        rows.append(LegendRow(NO_CLASS, no_class, WHITE))
    numbered = [entry.index for entry in listed]
    regions = draw_regions(image, segmentation, class_names, numbered, ignore_index=ignore_index)
    return Legend(regions.size, [row.name for row in rows], len(rows)).draw(regions, rows)


def draw_regions(
    image: Image.Image,
    segmentation: Labels,
    class_names: Sequence[str],
    numbered: Sequence[int] = (),
    *,
    ignore_index: int | None = None,
    number_scale: float = 1.0,
) -> Image.Image:
    """An image in the colours of its classes, with outlined and numbered regions but without a legend.

    The image is grey under the colours, which its own would distort. A class's number stands inside its widest region,
    if it fits.

    Args:
        image: RGB; it is drawn at [`display_size`].
        segmentation: Class indices (height, width), of the image's size.
        class_names: The T class names; synonyms separated by ", ".
        numbered: Class indices; the n-th class gets the number n.
        ignore_index: Label of pixels that have no class; they keep the image's colours.
        number_scale: Size of the numbers relative to those of a legend.

    Raises:
        ValueError: The sizes differ.
    """
    if segmentation.shape != image.size[::-1]:
        raise ValueError(f"segmentation has shape {segmentation.shape}: expected the image's {image.size[::-1]}")
    size = display_size(image.size)
    original = image.resize(size, Image.Resampling.BICUBIC)
    labels = resize_labels(segmentation, size)
    has_class = labels != ignore_index
    colors = Image.fromarray(class_colors(class_names)[np.where(has_class, labels, 0)])
    colored = Image.blend(original.convert("L").convert("RGB"), colors, 0.5)
    regions = Image.composite(colored, original, Image.fromarray(has_class))
    contours = _contours(labels, max(1, round(min(size) / 700)))
    regions.paste(WHITE, mask=Image.fromarray(contours))
    _number_regions(regions, labels, numbered, round(number_scale * font_size(size)))
    return regions


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Labels (height, width) at another width and height: the nearest label of each pixel."""
    return np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which an image of this width and height is drawn.

    Images of less than about 512 pixels are enlarged by a whole factor, so that numbers and legend are in proportion;
    those of more than 65,500 pixels a side, which JPEG cannot hold, are reduced.
    """
    scale = min(max(1, round(512 / max(size))), 65_500 / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def _contours(labels: Labels, width: int) -> npt.NDArray[np.bool_]:
    """Where lines between regions of different labels run, (height, width)."""
    contours = np.zeros(labels.shape, dtype=bool)
    contours[width:] |= labels[width:] != labels[:-width]
    contours[:, width:] |= labels[:, width:] != labels[:, :-width]
    return contours


def _number_regions(image: Image.Image, labels: Labels, numbered: Sequence[int], em: int) -> None:
    """Write the number of each class where its region is widest, if it fits there."""
    stride = math.ceil(max(labels.shape) / 256)  # places are sought on a coarse label map
    labels = labels[::stride, ::stride]
    inside = np.pad(~_contours(labels, 1), 1)
    depths = np.zeros(labels.shape, dtype=np.int64)  # distance from the edge of the region
    while inside.any():
        depths += inside[1:-1, 1:-1]
        vertical = inside[:-2] & inside[1:-1] & inside[2:]
        inside = np.pad(vertical[:, :-2] & vertical[:, 1:-1] & vertical[:, 2:], 1)
    for number, index in enumerate(numbered, start=1):
        depths_of_class = np.where(labels == index, depths, 0)
        row, column = np.unravel_index(np.argmax(depths_of_class), labels.shape)
        if (depths_of_class[row, column] - 1) * stride > 0.6 * em:
            _draw_number(ImageDraw.Draw(image), (int(column) * stride, int(row) * stride), number, em)


def _draw_number(draw: ImageDraw.ImageDraw, center: tuple[float, float], number: int, em: int) -> None:
    outline = math.ceil(em / 12)  # makes the number legible on bright colours too
    font = ImageFont.load_default(em)
    draw.text(center, str(number), fill=WHITE, font=font, anchor="mm", stroke_width=outline, stroke_fill=INK)


class LegendRow(NamedTuple):
    """A row of a legend: first synonym, share in [0, 1], and a colour field with a number, if there are any."""

    name: str
    share: float
    color: tuple[int, ...] | None = None
    number: int | None = None


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
        self._em = em = font_size(image_size)
        self._font = ImageFont.load_default(em)
        self._row_height = round(1.7 * em)
        self._column_width = math.ceil(max(map(self._font.getlength, map(self._shown, names))) + 7.5 * em)
        is_below = width > height
        columns = max(1, (width - em) // self._column_width)
        if not is_below:
            columns = math.ceil(num_rows / max(1, (height - 2 * em) // self._row_height))
        self._rows_per_column = math.ceil(num_rows / columns)
        panel_width = em + math.ceil(num_rows / self._rows_per_column) * self._column_width
        panel_height = 2 * em + self._rows_per_column * self._row_height
        self._left, self._top = (0, height) if is_below else (width, 0)
        self.size = (max(width, self._left + panel_width), max(height, self._top + panel_height))

    def draw(self, image: Image.Image, rows: Iterable[LegendRow]) -> Image.Image:
        """The image with the rows; names of classes with a share of 0 are faint."""
        canvas = Image.new("RGB", self.size, WHITE)
        canvas.paste(image)
        draw, em = ImageDraw.Draw(canvas), self._em
        for position, row in enumerate(rows):
            column, line = divmod(position, self._rows_per_column)
            x = self._left + em + column * self._column_width
            y = self._top + em + line * self._row_height + self._row_height // 2
            if row.color is not None:
                half = round(0.65 * em)
                draw.rectangle((x, y - half, x + 2 * em, y + half), fill=row.color, outline=INK)
            if row.number is not None:
                _draw_number(draw, (x + em, y), row.number, em)
            ink = INK if row.share else FAINT
            draw.text((x + 2.5 * em, y), self._shown(row.name), fill=ink, font=self._font, anchor="lm")
            if row.share:
                share = f"{row.share:.{self._digits}%}"
                draw.text((x + self._column_width - em, y), share, fill=ink, font=self._font, anchor="rm")
        return canvas

    def _shown(self, name: str) -> str:
        return shortened(first_synonym(name), self._font, 14 * self._em)


def first_synonym(name: str) -> str:
    """The first synonym on one line, without accents: Pillow's font has only ASCII and shows boxes for the rest."""
    letters = unicodedata.normalize("NFKD", name.split(", ")[0])
    return " ".join("".join(letter for letter in letters if not unicodedata.combining(letter)).split())


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, max_width: float) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    while font.getlength(text) > max_width and len(text) > 1:
        text = text[:-2] + "…"
    return text


def font_size(image_size: tuple[int, int]) -> int:
    """Pixels of text in proportion to an image."""
    return max(14, round(0.022 * math.sqrt(math.prod(image_size))))
