"""What a visitor of the demo sends: an image and class names, within limits that bound time and memory."""

import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..data.vocabularies import load_vocabulary
from ..image_processing_sed import MAX_PIXELS_VARIABLE, TooManyPixelsError, max_image_pixels, read_rgb
from ..processing_sed import SYNONYM_SEPARATOR, clean_text, synonyms_of, without_comma

MAX_MEGAPIXELS = 25
MAX_IMAGE_SIZE = 1024  # pixels; larger images are made smaller, to what the page shows
MAX_CLASS_NAMES = 1000  # that are typed, synonyms included; the built-in vocabularies have up to 847
MAX_NAME_CHARACTERS = 200
QUOTED_CHARACTERS = 40  # of a long name, in messages

OWN_CLASSES = "the classes typed below"
# Those that browsers and cameras make. Pillow reads more, some of them by starting other programs.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")


class InputError(ValueError):
    """What was sent cannot be used; the message is a sentence for the visitor."""


def read_upload(path: Path) -> Image.Image:
    """Read an uploaded image as RGB, the right way up, with at most `MAX_IMAGE_SIZE` pixels a side.

    Raises:
        InputError: It has more pixels than [`max_upload_pixels`], is not an image, is damaged, or is gone.
    """
    try:
        image = read_rgb(path, IMAGE_FORMATS, max_upload_pixels())
    except TooManyPixelsError as error:
        raise InputError(
            f"The image has more than the {max_upload_pixels() / 1e6:g} megapixels that are taken here. Please make it"
            " smaller."
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"{path.name} is no longer kept here. Please drop it again.") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path.name} is not an image that can be read here. Please send PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read completely: the file seems to be damaged.") from error
    image.thumbnail((MAX_IMAGE_SIZE, MAX_IMAGE_SIZE))
    return image


def max_upload_pixels() -> int:
    """The most pixels of an uploaded image: `MAX_MEGAPIXELS`, unless the variable for all images is set."""
    stated = max_image_pixels() if MAX_PIXELS_VARIABLE in os.environ else None
    return stated or MAX_MEGAPIXELS * 1_000_000


def read_class_names(text: str, vocabulary: str) -> list[str]:
    """The T class names: those of a built-in vocabulary, or those typed, one a line.

    Raises:
        InputError: Nothing is typed, too much is, a name is too long or empty, or there are two of a name.
    """
    return parse_class_names(text) if vocabulary == OWN_CLASSES else load_vocabulary(vocabulary)


def parse_class_names(text: str) -> list[str]:
    """The class names in a text, one a line, without empty lines.

    Raises:
        InputError: There is none, there are more than `MAX_CLASS_NAMES`, a name is too long or empty, or twice there.
    """
    class_names = [name for line in text.splitlines() if (name := without_comma(line))]
    if not class_names:
        raise InputError("Please type at least one class name, each on a line of its own.")
    num_names = sum(name.count(SYNONYM_SEPARATOR) + 1 for name in class_names)
    if num_names > MAX_CLASS_NAMES:
        raise InputError(
            f"There are {num_names:,} class names, counting synonyms. At most {MAX_CLASS_NAMES:,} are taken here:"
            " please remove some."
        )
    seen: dict[tuple[str, ...], str] = {}
    for name in class_names:
        synonyms = [synonym.strip() for synonym in name.split(SYNONYM_SEPARATOR)]
        if max(map(len, synonyms)) > MAX_NAME_CHARACTERS:
            raise InputError(
                f"The class name {quoted(name)} is too long. At most {MAX_NAME_CHARACTERS} characters are taken here."
            )
        if not all(map(clean_text, synonyms)):
            raise InputError(f"In {quoted(name)} a synonym is empty. Please put one comma between two synonyms.")
        same = seen.setdefault(synonyms_of(name), name)
        if same is not name:
            raise InputError(f"{quoted(name)} is the same class name as {quoted(same)}. Please remove one of them.")
    return class_names


def quoted(name: str) -> str:
    """A name for messages, shortened."""
    return f"“{name if len(name) <= QUOTED_CHARACTERS else name[:QUOTED_CHARACTERS] + '…'}”"
