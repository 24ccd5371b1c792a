"""`datasets` features for semantic segmentation: images, and label maps that know their classes.

Both decode when a row is read, and not before, as `datasets.Image` does. They are features rather than a transform of
the data set, so that `map`, `with_format`, `with_transform`, `filter` and the rest work on prepared labels. Importing
this module, as `from sed_hf.data import load_benchmark` does, lets `datasets.load_from_disk` know them.
"""

import warnings
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any, BinaryIO

import cv2
import datasets
import numpy as np
import PIL.Image
from datasets.features.features import register_feature
from numpy.typing import NDArray

from ..image_processing_sed import read_rgb
from ..utils import short_error
from .raw_labels import IGNORE_8_BIT, LABEL_FORMATS, LABEL_RULES, index_rule
from .transforms import resize_nearest


@dataclass
class SegmentationImage(datasets.Image):
    """A `datasets.Image` in RGB, read as all images are that a model is given.

    Args:
        shortest_side: The official preparation of A-847: images larger than that have their shortest side brought to so
            many pixels, bilinearly and without antialiasing, and all are compressed as JPEG. `None` does neither.
    """

    mode: str | None = "RGB"
    shortest_side: int | None = None
    _type: str = field(default="SegmentationImage", init=False, repr=False)

    def decode_example(self, value: dict[str, Any], token_per_repo_id: dict[str, Any] | None = None) -> PIL.Image.Image:
        """Read an image.

        Raises:
            OSError: The file cannot be opened.
            ValueError: It is damaged, or not an image.
        """
        image = read_rgb(_open(value))
        if self.shortest_side is None or _is_decoded(value):
            return image
        return read_rgb(BytesIO(shrunk_jpeg(image, self.shortest_side)))


@dataclass
class SegmentationMap(datasets.Image):
    """A label map: decodes to a greyscale image, of mode `"L"` or `"I;16"`, of class indices and `ignore_index`.

    Args:
        names: The T classes that a model is asked for, in the order of their indices.
        ignore_index: The value of pixels that belong to no class, and its type: 255 for 8 bits, otherwise 16.
        background_index: The label of background, where it is a class by itself: then the ground truth knows only the
            classes below it, and a prediction of this index or any larger one means background. `None` elsewhere.
        rule: The name in `raw_labels.LABEL_RULES` of how raw label files become class indices; `None` if they hold
            class indices already.
        shortest_side: As of [`SegmentationImage`], to the nearest pixel.
    """

    names: list[str] = field(default_factory=list)
    ignore_index: int = IGNORE_8_BIT
    background_index: int | None = None
    rule: str | None = None
    shortest_side: int | None = None
    _type: str = field(default="SegmentationMap", init=False, repr=False)

    @property
    def num_classes(self) -> int:
        """How many classes the ground truth knows, background included."""
        return len(self.names) if self.background_index is None else self.background_index + 1

    @property
    def class_names(self) -> list[str]:
        """The names of the `num_classes` classes of the ground truth."""
        return self.names if self.background_index is None else [*self.names[: self.background_index], "background"]

    def decode_example(self, value: dict[str, Any], token_per_repo_id: dict[str, Any] | None = None) -> PIL.Image.Image:
        """Read a label map.

        Raises:
            ValueError: The file is missing, damaged or not a label map, or holds values outside the class range.
        """
        is_prepared = self.rule is None or _is_decoded(value)
        rule = index_rule(self.num_classes, self.ignore_index) if is_prepared else LABEL_RULES[str(self.rule)]
        try:
            with _open(value) as file:
                ids = rule.read(file)
            if self.shortest_side is not None and not is_prepared:
                ids = resize_nearest(ids, shrunk_size(ids.shape, self.shortest_side))
            indices = rule.class_map(ids)
        except Exception as error:  # what a damaged file raises differs from one format's library to the next
            is_unknown = isinstance(error, PIL.UnidentifiedImageError)
            reason = f"expected {' or '.join(LABEL_FORMATS)}" if is_unknown else short_error(error)
            raise ValueError(f"cannot read the label {value['path'] or 'map'}: {reason}") from error
        return PIL.Image.fromarray(indices.astype(np.uint8 if self.ignore_index == IGNORE_8_BIT else np.uint16))

    def has_labelled_pixel(self, label: PIL.Image.Image) -> bool:
        """Whether a decoded label map holds anything but ignored pixels."""
        return bool((np.asarray(label) != self.ignore_index).any())

    def prepared(self) -> "SegmentationMap":
        """This feature for files that hold class indices already."""
        return replace(self, rule=None, shortest_side=None)


def shrunk_size(shape: tuple[int, ...], shortest_side: int) -> tuple[int, int]:
    """The (width, height) for an image of `shape` (height, width, ...) with its shortest side at most so long."""
    height, width = shape[:2]
    shortest = min(height, width)
    if shortest <= shortest_side:
        return width, height
    new_width, new_height = (
        shortest_side if edge == shortest else round(edge / shortest * shortest_side) for edge in (width, height)
    )
    return new_width, new_height


def shrunk_jpeg(image: PIL.Image.Image, shortest_side: int) -> bytes:
    """An image as the official preparation of A-847 stores it; see [`SegmentationImage`]."""
    pixels: NDArray[Any] = np.asarray(image)
    size = shrunk_size(pixels.shape, shortest_side)
    if size != image.size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    buffer = BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


def _is_decoded(value: dict[str, Any]) -> bool:
    # `datasets` encodes decoded images, such as `map` writes back, without a path. Those are prepared.
    return value["path"] is None


def _open(value: dict[str, Any]) -> BinaryIO:
    if value["bytes"] is None:
        return open(value["path"], "rb")
    file = BytesIO(value["bytes"])
    file.name = value["path"]  # for messages
    return file


with warnings.catch_warnings():
    # Registering lets `datasets` restore these features from its files; it warns that registering is experimental.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(SegmentationImage, "SegmentationImage")
    register_feature(SegmentationMap, "SegmentationMap")
