"""Segmentations for people: one palette, one overlay, one legend, for images, the frames of videos and the demo."""

import json
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_cdt
from transformers.utils import logging

logger = logging.get_logger(__name__)
Array: TypeAlias = NDArray[Any]

MAX_LISTED = 100  # classes in the legend of an image
NO_CLASS = "(no class)"
WHITE, INK, FAINT = (255, 255, 255), (24, 24, 24), (150, 150, 150)
# Files that systems have, for letters that Pillow's own font lacks.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "unifont.otf",
    "segoeui.ttf", "msyh.ttc", "YuGothR.ttc", "malgun.ttf", "Nirmala.ttf", "PingFang.ttc", "Arial Unicode.ttf",
)  # fmt: skip


@dataclass(frozen=True)
class ClassStatistics:
    """How much of an image or video a class covers: its share of all pixels, ignored ones included, in (0, 1]."""

    index: int
    name: str
    share: float
    mean_probability: float  # NaN if no probabilities were given


class ClassTotals:
    """Areas and probabilities of classes, summed over the frames of a video."""

    def __init__(self, class_names: Sequence[str], ignore_index: int | None = None) -> None:
        self.ignored_pixels = 0
        self._class_names = class_names
        self._ignore_index = ignore_index
        self._areas = np.zeros(len(class_names), dtype=np.int64)
        self._probabilities = np.zeros(len(class_names))

    def add(self, segmentation: Array, probability: Array | float = math.nan) -> None:
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
        found = []
        for index in np.argsort(-self._areas, kind="stable")[: np.count_nonzero(self._areas)].tolist():
            share, mean = self._areas[index] / num_pixels, self._probabilities[index] / self._areas[index]
            found.append(ClassStatistics(index, self._class_names[index], float(share), float(mean)))
        return found


def class_statistics(
    segmentation: Array, class_names: Sequence[str], *, probability: Any = math.nan, ignore_index: int | None = None
) -> list[ClassStatistics]:
    """The classes of one segmentation, the largest first; arguments as of [`ClassTotals`]."""
    totals = ClassTotals(class_names, ignore_index)
    totals.add(segmentation, probability)
    return totals.statistics()


def class_colors(class_names: Sequence[str]) -> Array:
    """A colour for each class name, the same in every image, run and process: RGB (T, 3).

    A built-in vocabulary has the palette of its data set. In other lists a name with a colour word ("red triangle") has
    that colour, or a shade of it; the colour of any other name is that of ADE20K or follows from its letters, and is
    moved away from those of the names before it that look similar. The first synonym decides.
    """
    return _class_colors(tuple(map(first_synonym, class_names)))


@lru_cache(maxsize=16)
def _class_colors(names: tuple[str, ...]) -> Array:
    candidates = 17 * np.indices((16, 16, 16)).reshape(3, -1).T
    saturation, brightness = np.ptp(candidates, axis=1), candidates @ (0.3, 0.6, 0.1)
    vivid = np.flatnonzero((saturation > 100) & (brightness > 60) & (brightness < 225))
    palettes, words = _palettes(), [_color_word(name) for name in names]
    own = next((palette for palette in palettes.values() if names[: len(palette)] == tuple(palette)), {})
    colors = np.zeros((len(names), 3), dtype=np.uint8)
    taken: set[bytes] = set()
    room = np.full(len(candidates), np.inf)  # distance to the nearest colour that is taken
    known = palettes["ade20k_150"]
    # What is certain comes first: the own palette, colour words, names of ADE20K.
    certainty = [(name not in own, word is None, name not in known) for name, word in zip(names, words, strict=True)]
    for position in sorted(range(len(names)), key=certainty.__getitem__):
        name, word = names[position], words[position]
        allowed, distance = np.arange(len(candidates)), 120 if word is None else 40
        if name in own:
            wanted = own[name]
        elif word is not None:
            wanted = np.array(ImageColor.getrgb(word))
        elif name in known:
            wanted = known[name]
        else:
            allowed = vivid
            wanted = candidates[vivid[zlib.crc32(name.casefold().encode(errors="surrogatepass")) % len(vivid)]]
        cost = _distance(candidates[allowed], wanted) + 100 * np.clip(distance - room[allowed], 0, None)
        if word is not None:  # shades differ in lightness
            cost += 400 * np.linalg.norm(_hue(candidates) - _hue(wanted), axis=1)
        is_free = name in own and wanted.tobytes() not in taken
        colors[position] = wanted if is_free else candidates[allowed[np.argmin(cost)]]
        taken.add(colors[position].tobytes())
        room = np.minimum(room, _distance(candidates, colors[position]))
    colors.flags.writeable = False
    return colors


def _hue(colors: Array) -> Array:
    return (colors + 1.0) / (colors.max(axis=-1, keepdims=True) + 1.0)


def _distance(colors: Array, color: Array) -> Array:
    """How different colours look, about."""
    return np.linalg.norm((colors - color.astype(float)) * (0.8, 1.2, 0.7), axis=1)


@cache
def _palettes() -> dict[str, dict[str, Array]]:
    """The colours of the built-in vocabularies whose data sets have a palette, by first synonym."""
    data, palettes = files(__package__).joinpath("data"), {}
    for vocabulary, digits in json.loads(data.joinpath("palettes.json").read_text()).items():
        names = json.loads(data.joinpath("vocabularies", f"{vocabulary}.json").read_text())
        colors = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 3)
        palettes[vocabulary] = dict(zip(map(first_synonym, names), colors, strict=True))
    return palettes


def _color_word(name: str) -> str | None:
    """The first word of a name, or two words joined, that CSS knows as a colour."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((word for word in [*map("".join, pairwise(words)), *words] if word in ImageColor.colormap), None)


def draw_overlay(
    image: Image.Image, segmentation: Array, class_names: Sequence[str], *, ignore_index: int | None = None
) -> Image.Image:
    """An image as [`draw_regions`] draws it, and a legend of its classes, the largest first: larger than the input."""
    statistics = class_statistics(segmentation, class_names, ignore_index=ignore_index)
    listed = [entry.index for entry in statistics[:MAX_LISTED]]
    rows = legend_rows(listed, statistics, class_names, ignore_index)
    regions = draw_regions(image, segmentation, class_names, listed, ignore_index=ignore_index)
    return Legend(regions.size, [row.name for row in rows], len(rows)).draw(regions, rows)


def draw_regions(
    image: Image.Image,
    segmentation: Array,
    class_names: Sequence[str],
    numbered: Sequence[int] = (),
    *,
    ignore_index: int | None = None,
) -> Image.Image:
    """An RGB image at [`display_size`], grey under the colours of its classes, with outlined and numbered regions.

    Args:
        image: RGB.
        segmentation: Class indices (height, width), of the image's size.
        class_names: The T class names; synonyms separated by ", ".
        numbered: Class indices; the n-th class gets the number n, in its widest region if it fits.
        ignore_index: Label of pixels that have no class; they keep the image's colours.
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
    regions.paste(WHITE, mask=Image.fromarray(_contours(labels, max(1, round(min(size) / 700)))))
    em, stride = font_size(size), math.ceil(max(size) / 256)
    coarse = labels[::stride, ::stride]  # on which places of numbers are sought
    depths = _depths(coarse)
    for number, index in enumerate(numbered, start=1):
        own = np.where(coarse == index, depths, 0)
        row, column = (int(place) for place in np.unravel_index(np.argmax(own), own.shape))
        if (own[row, column] - 1) * stride > 0.6 * em:
            _draw_number(ImageDraw.Draw(regions), (column * stride, row * stride), number, em)
    return regions


def resize_labels(labels: Array, size: tuple[int, int]) -> Array:
    """Labels (height, width) at another width and height: the nearest label of each pixel."""
    return np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which an image is drawn: small ones enlarged, and no side longer than JPEG can hold."""
    scale = min(max(1, round(512 / max(size))), 65_500 / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def _contours(labels: Array, width: int) -> Array:
    """Where lines between regions of different labels run, (height, width)."""
    contours = np.zeros(labels.shape, dtype=bool)
    contours[width:] |= labels[width:] != labels[:-width]
    contours[:, width:] |= labels[:, width:] != labels[:, :-width]
    return contours


def _depths(labels: Array) -> Array:
    """The distance of each pixel from the edge of its region."""
    inside = np.pad(~_contours(labels, 1), 1)
    return distance_transform_cdt(inside, metric="chessboard")[1:-1, 1:-1]


def _draw_number(draw: ImageDraw.ImageDraw, center: tuple[float, float], number: int, em: int) -> None:
    outline = math.ceil(em / 12)  # makes the number legible on bright colours too
    font = ImageFont.load_default(em)
    draw.text(center, str(number), fill=WHITE, font=font, anchor="mm", stroke_width=outline, stroke_fill=INK)


class LegendRow(NamedTuple):
    """A row of a legend: class name, share in [0, 1], and a colour field with a number, if there are any."""

    name: str
    share: float
    color: Sequence[int] | None = None
    number: int | None = None


def legend_rows(
    listed: Sequence[int], statistics: Sequence[ClassStatistics], class_names: Sequence[str], ignore_index: int | None
) -> list[LegendRow]:
    """A row for each class index (-1: an empty one), pixels without a class, and how many other classes there are."""
    shares, colors = {entry.index: entry.share for entry in statistics}, class_colors(class_names).tolist()
    without_class = round(1 - sum(shares.values()), 6)
    rows = [
        LegendRow("", 0) if index < 0 else LegendRow(class_names[index], shares.pop(index, 0), colors[index], number)
        for number, index in enumerate(listed, start=1)
    ]
    if ignore_index is not None:
        rows.append(LegendRow(NO_CLASS, without_class, WHITE))
    if shares:
        rows.append(LegendRow(f"{len(shares)} more", sum(shares.values())))
    return rows


class Legend:
    """Rows in columns on white, below a landscape image or beside a portrait one.

    Args:
        image_size: Width and height of the image in pixels; `size` is that with the legend.
        names: Class names that rows may have; they make the columns as wide as they need to be.
        num_rows: Number of rows.
        is_steady: Leave out the numbers and digits that would jump about and flicker in a video.
    """

    def __init__(
        self, image_size: tuple[int, int], names: Iterable[str], num_rows: int, is_steady: bool = False
    ) -> None:
        width, height = image_size
        self._is_steady = is_steady
        self._em = em = font_size(image_size)
        self._row_height = round(1.7 * em)
        self._column_width = math.ceil(max(font.getlength(text) for text, font in map(self._shown, names)) + 7.5 * em)
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
                draw.rectangle((x, y - 0.65 * em, x + 2 * em, y + 0.65 * em), fill=tuple(row.color), outline=INK)
            if row.number is not None and not self._is_steady:
                _draw_number(draw, (x + em, y), row.number, em)
            text, font = self._shown(row.name)
            draw.text((x + 2.5 * em, y), text, fill=INK if row.share else FAINT, font=font, anchor="lm")
            if row.share:
                right, share = x + self._column_width - em, f"{row.share:.{0 if self._is_steady else 1}%}"
                draw.text((right, y), share, fill=INK, font=ImageFont.load_default(em), anchor="rm")
        return canvas

    def _shown(self, name: str) -> tuple[str, Any]:
        """The first synonym of a name, shortened, and its font."""
        font = font_of(first_synonym(name), self._em)
        return shortened(first_synonym(name), font, 14 * self._em), font


def first_synonym(name: str) -> str:
    """The first synonym of a class name, on one line."""
    return " ".join(name.split(", ")[0].split())


@lru_cache(maxsize=4096)
def font_of(text: str, size: int) -> Any:
    """Pillow's own font or, if that lacks a letter of the text, a font of the system that has all of them."""
    own = ImageFont.load_default(size)
    for name in (None, *FONTS):
        try:
            font: Any = own if name is None else ImageFont.truetype(name, size)
        except OSError:
            continue
        missing = bytes(font.getmask("\U0010ffff"))
        if all(bytes(font.getmask(letter)) != missing for letter in set(text) if not letter.isspace()):
            return font
    logger.warning_once(
        "Some letters of class names appear as boxes: install a font that has them, e.g. Noto Sans CJK."
    )
    return own


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, max_width: float) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    while font.getlength(text) > max_width and len(text) > 1:
        text = text[:-2] + "…"
    return text


def font_size(image_size: tuple[int, int]) -> int:
    """Pixels of text in proportion to an image."""
    return max(14, round(0.022 * math.sqrt(math.prod(image_size))))
