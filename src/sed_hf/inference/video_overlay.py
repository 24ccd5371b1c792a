"""The frames of one video drawn for people: as `draw_overlay` draws a picture, but steady from frame to frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ..visualization import (
    MAX_NAME_WIDTH,
    PANEL_COLOR,
    TEXT_COLOR,
    SettledClassColors,
    class_statistics,
    color_regions,
    first_synonym,
    font_in_proportion,
    shortened,
)

_MIN_DISPLAY_SIZE = 640  # pixels of the longer side; smaller frames are enlarged, to make room for a legend
_MAX_LEGEND_RATIO = 0.4  # longest legend relative to the picture's side along which it grows
_CLEARLY_VISIBLE = 0.005  # share of a frame; a smaller class takes no other's place in the legend
_NO_CLASS = "(no class)"
_FADED_COLOR = (150, 150, 150)  # names of classes that are out of view


class VideoOverlay:
    """Draws the frames of one video or camera: each pixel in the colour of its class, contours, and a legend.

    All frames get the same size, and a class keeps its colour and its place in the legend. If the legend has room for
    the whole vocabulary, it lists it, with the names of classes that are out of view faded. Otherwise classes enter
    when they first occur, see [`LegendPlaces`], and the last place says how many are in view without one. Percentages
    are those of the frame. Regions have no numbers: those would jump about. Frames of less than 640 pixels are
    enlarged by a whole factor.

    Args:
        size: Width and height of the frames in pixels.
        class_names: The T class names; synonyms separated by ", ".
        ignore_index: Label of pixels that have no class; they keep the frame's colours.
        alpha: Opacity of the class colours, in [0, 1].

    Attributes:
        size: Width and height of the drawn frames: even numbers, as video encoders want them.
    """

    def __init__(
        self,
        size: tuple[int, int],
        class_names: Sequence[str],
        *,
        ignore_index: int | None = None,
        alpha: float = 0.5,
    ) -> None:
        self.class_names = class_names
        self.ignore_index = ignore_index
        self.alpha = alpha
        self._zoom = math.ceil(_MIN_DISPLAY_SIZE / max(size))
        self._picture_size = (size[0] * self._zoom, size[1] * self._zoom)
        self._font = font_in_proportion(Image.new("1", self._picture_size))
        max_name_width = MAX_NAME_WIDTH * self._font.size
        self._names = [shortened(first_synonym(name), self._font, max_name_width) for name in class_names]
        self._panel = self._lay_out_panel()
        self.size = self._panel.frame_size
        self._colors = SettledClassColors(len(class_names))
        if self._panel.num_places >= len(class_names):
            # All are in the legend, so all must be told apart, whichever occurs first.
            self._places = LegendPlaces(len(class_names), range(len(class_names)))
            self._colors.settle(range(len(class_names)))
        else:
            self._places = LegendPlaces(self._panel.num_places)

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """RGB (T, 3): the colours of the classes that have occurred or stand in the legend are final."""
        return self._colors.palette

    def draw(self, frame: Image.Image, segmentation: npt.ArrayLike) -> Image.Image:
        """Draw the next frame: an RGB picture of `size`.

        Args:
            frame: RGB.
            segmentation: Class indices (height, width), integers, of the frame's size.

        Raises:
            ValueError: A label is neither a class index nor `ignore_index`, or the size is not that of the video.
        """
        statistics = class_statistics(segmentation, self.class_names, ignore_index=self.ignore_index)
        labels = np.asarray(segmentation).repeat(self._zoom, axis=0).repeat(self._zoom, axis=1)
        photo = frame.resize(self._picture_size, Image.Resampling.BICUBIC)
        if labels.shape != (photo.height, photo.width) or frame.width * self._zoom != photo.width:
            expected = tuple(side // self._zoom for side in self._picture_size)
            raise ValueError(
                f"frame has size {frame.size} and segmentation shape {np.shape(segmentation)}: expected the video's"
                f" size {expected}"
            )
        shares = {entry.index: entry.share for entry in statistics}
        self._places.update(shares)
        self._colors.settle(shares)

        canvas = Image.new("RGB", self.size, PANEL_COLOR)
        canvas.paste(color_regions(photo, labels, self.palette, self.ignore_index, self.alpha))
        self._draw_legend(ImageDraw.Draw(canvas), shares)
        return canvas

    def _lay_out_panel(self) -> _Panel:
        """Place the legend below a landscape picture or beside a portrait one, no larger than it needs to be."""
        width, height = self._picture_size
        em = self._font.size
        margin, row_height = round(em), round(1.7 * em)
        names = self._names if self.ignore_index is None else [*self._names, _NO_CLASS]
        name_width = math.ceil(max(self._font.getlength(name) for name in names))
        column_width = round(2.5 * em) + name_width + round(em) + math.ceil(self._font.getlength("100%"))

        below = width > height
        available = (width, _MAX_LEGEND_RATIO * height) if below else (_MAX_LEGEND_RATIO * width, height)
        max_columns = max(1, int(available[0] - margin) // (column_width + margin))
        max_rows = max(1, int(available[1] - 2 * margin) // row_height)

        extra = len(names) - len(self._names)
        if len(names) <= max_columns * max_rows:
            num_places, overflow = len(self._names), False
        else:
            num_places, overflow = max(1, max_columns * max_rows - extra - 1), True
        cells = num_places + extra + overflow
        if below:
            columns = min(max_columns, cells)
            rows = math.ceil(cells / columns)
        else:
            rows = min(max_rows, cells)
            columns = math.ceil(cells / rows)

        panel_width = margin + columns * (column_width + margin)
        panel_height = 2 * margin + rows * row_height
        if below:
            left, top, size = 0, height, (max(width, panel_width), height + panel_height)
        else:
            left, top, size = width, 0, (width + panel_width, max(height, panel_height))
        return _Panel(
            frame_size=(size[0] + size[0] % 2, size[1] + size[1] % 2),
            left=left + margin,
            top=top + margin,
            column_width=column_width,
            column_pitch=column_width + margin,
            row_height=row_height,
            rows=rows,
            num_places=num_places,
            has_overflow=overflow,
        )

    def _draw_legend(self, draw: ImageDraw.ImageDraw, shares: dict[int, float]) -> None:
        for place, index in enumerate(self._places.classes):
            if index is not None:
                color = tuple(self.palette[index].tolist())
                self._draw_row(draw, place, self._names[index], shares.get(index, 0.0), color)
        place = self._panel.num_places
        if self.ignore_index is not None:
            self._draw_row(draw, place, _NO_CLASS, max(0.0, 1 - sum(shares.values())), PANEL_COLOR)
            place += 1
        others = shares.keys() - set(self._places.classes)
        if self._panel.has_overflow and others:
            share = sum(shares[index] for index in others)
            self._draw_row(draw, place, f"{len(others)} more", share, None)

    def _draw_row(
        self, draw: ImageDraw.ImageDraw, place: int, name: str, share: float, color: tuple[int, ...] | None
    ) -> None:
        em, panel = self._font.size, self._panel
        column, row = divmod(place, panel.rows)
        x = panel.left + column * panel.column_pitch
        y = panel.top + row * panel.row_height + panel.row_height // 2
        if color is not None:
            half = round(0.55 * em)
            draw.rectangle((x, y - half, x + round(2 * em), y + half), fill=color, outline=TEXT_COLOR)
        in_view = share > 1e-9  # the share without a class is a difference, which rounding may leave just above 0
        text_color = TEXT_COLOR if in_view else _FADED_COLOR
        draw.text((x + round(2.5 * em), y), name, fill=text_color, font=self._font, anchor="lm")
        if in_view:
            draw.text((x + panel.column_width, y), _percentage(share), fill=TEXT_COLOR, font=self._font, anchor="rm")


class LegendPlaces:
    """Which class stands where in a legend with fewer places than there are classes.

    A class takes a free place when it first occurs, and keeps it. When none is free, a clearly visible newcomer takes
    the place of the class that has been out of view longest; or, with all in view, that of the smallest, if the
    newcomer is more than twice as large, so that two classes of about one size do not take turns.

    Args:
        num_places: Number of places.
        classes: Class indices that stand there from the start.

    Attributes:
        classes: Class index at each place; `None`: free.
    """

    def __init__(self, num_places: int, classes: Sequence[int] = ()) -> None:
        self.classes: list[int | None] = [*classes, *[None] * (num_places - len(classes))]
        self._last_seen: dict[int, int] = {}  # number of the frame in which each class was in view last
        self._num_frames = 0

    def update(self, shares: dict[int, float]) -> None:
        """Take in the next frame, with the shares of the classes in view, the largest first."""
        self._num_frames += 1
        self._last_seen.update(dict.fromkeys(shares, self._num_frames))
        for newcomer in [index for index in shares if index not in self.classes]:
            place = self._place_for(shares[newcomer], shares)
            if place is not None:
                self.classes[place] = newcomer

    def _place_for(self, share: float, shares: dict[int, float]) -> int | None:
        if None in self.classes:
            return self.classes.index(None)
        if share < _CLEARLY_VISIBLE:
            return None
        occupants = [index for index in self.classes if index is not None]
        weakest = min(occupants, key=lambda index: (self._last_seen.get(index, 0), shares.get(index, 0.0)))
        return self.classes.index(weakest) if share > 2 * shares.get(weakest, 0.0) else None


@dataclass(frozen=True)
class _Panel:
    """Where the legend's rows stand on a frame, in pixels."""

    frame_size: tuple[int, int]
    left: int
    top: int
    column_width: int
    column_pitch: int
    row_height: int
    rows: int
    num_places: int
    has_overflow: bool


def _percentage(share: float) -> str:
    """Whole percents: more digits would flicker."""
    return f"{share:.0%}" if share >= 0.01 else "<1%"
