"""Picture files, decoded completely, within a limit of pixels that is checked before anything is decoded.

The limit is what Pillow refuses, 178,956,970 pixels (or two times `PIL.Image.MAX_IMAGE_PIXELS`, if a program has set
that). The environment variable `SED_HF_MAX_IMAGE_PIXELS` sets another, higher or lower.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from .utils import require_file, short_error

MAX_PIXELS_VARIABLE = "SED_HF_MAX_IMAGE_PIXELS"
UNSAFE_FORMATS = frozenset({"EPS"})  # Pillow has it drawn by Ghostscript: a program, which runs the file's own

_pillow_limit = Lock()


class TooManyPixelsError(ValueError):
    """A picture has more pixels than the limit; the message says how many are read, and how to read more.

    Attributes:
        width, height: In pixels.
    """

    def __init__(self, width: int, height: int, limit: int) -> None:
        super().__init__(
            f"{width} × {height} pixels are more than the {limit:,} that are read; to read them all the same, set the"
            f" environment variable {MAX_PIXELS_VARIABLE} to a higher number"
        )
        self.width = width
        self.height = height


def max_image_pixels() -> int | None:
    """The most pixels that a picture file may have; `None`: any number.

    Raises:
        ValueError: The environment variable holds no positive whole number.
    """
    stated = os.environ.get(MAX_PIXELS_VARIABLE)
    if stated is None:
        return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS
    if not stated.isdecimal() or int(stated) < 1:
        raise ValueError(f"{MAX_PIXELS_VARIABLE}={stated!r}: expected a whole number of pixels, of at least 1")
    return int(stated)


def check_pixels(width: int, height: int, limit: int | None = None) -> None:
    """Refuse what would have more pixels than the limit, by default that of [`max_image_pixels`].

    Raises:
        TooManyPixelsError: It would.
    """
    limit = max_image_pixels() if limit is None else limit
    if limit is not None and width * height > limit:
        raise TooManyPixelsError(width, height, limit)


@contextmanager
def open_image(
    file: Path | BinaryIO, formats: Sequence[str] | None = None, limit: int | None = None
) -> Iterator[Image.Image]:
    """Open a picture of any format that needs no other program, and close its file in the end.

    Args:
        file: The picture.
        formats: Pillow's names of the formats that are taken.
        limit: The most pixels; by default [`max_image_pixels`].

    Raises:
        TooManyPixelsError: It has more pixels.
        Exception: It is no picture; what Pillow raises depends on the format and the damage.
    """
    Image.init()  # makes all formats known
    formats = [name for name in formats or Image.OPEN if name in Image.OPEN and name not in UNSAFE_FORMATS]
    # Pillow's own limit gives way to ours while the header is read. It is one for all threads.
    with _pillow_limit, warnings.catch_warnings(action="ignore"):
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            raise UnidentifiedImageError("cannot identify image file: it is of no format that is read here") from error
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit
    with image:
        check_pixels(*image.size, limit=limit)
        yield image


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture file completely, as it is stored.

    Raises:
        OSError: There is no such file.
        ValueError: It is no picture, is damaged, or has too many pixels; the message names the file.
    """
    file = require_file(path)
    try:
        with open_image(file) as image:
            image.load()
            return image
    except Exception as error:  # on damaged files Pillow's decoders raise whatever happens to them
        raise ValueError(f"{path}: expected a picture: {short_error(error)}") from error
