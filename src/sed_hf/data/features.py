"""`datasets` features for semantic segmentation: pictures, and label maps that know their classes.

Both decode when a row is read, and not before, as `datasets.Image` does. They are features rather than a transform of
the data set, so that `map`, `with_format`, `with_transform`, `filter` and the rest work on prepared labels.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any, BinaryIO

import datasets
import numpy as np
import PIL.Image
from datasets.features.features import register_feature
from numpy.typing import NDArray

from ..image_processing_sed import read_rgb
from ..utils import require_file, short_error
from .raw_labels import IGNORE_8_BIT, LABEL_RULES, LabelRule, index_rule


@dataclass
class SegmentationImage(datasets.Image):
    """A `datasets.Image` in RGB whose errors name the file.

    Args:
        longest_side: Larger pictures are scaled down to this many pixels on their longest side, bilinearly and without
            antialiasing; `None` keeps every size.
    """

    mode: str | None = "RGB"
    longest_side: int | None = None
    _type: str = field(default="SegmentationImage", init=False, repr=False)

    def decode_example(self, value: dict[str, Any], token_per_repo_id: dict[str, Any] | None = None) -> PIL.Image.Image:
        """Read a picture.

        Raises:
            ValueError: The file is no picture, or is damaged.
        """
        with _naming_file("image", value):
            image = read_rgb(_open(value))
        size = capped_size(image.size, self.longest_side)
        if size == image.size:
            return image
        # Unlike `Image.resize`, sampling an extent does not average over the source pixels: no antialiasing.
        extent = (0, 0, *image.size)
        return image.transform(size, PIL.Image.Transform.EXTENT, extent, PIL.Image.Resampling.BILINEAR)


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
        longest_side: Larger maps are scaled down to this many pixels on their longest side, to the nearest pixel;
            `None` keeps every size.
    """

    names: list[str] = field(default_factory=list)
    ignore_index: int = IGNORE_8_BIT
    background_index: int | None = None
    rule: str | None = None
    longest_side: int | None = None
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
            ValueError: The file is no label map, is damaged, or holds values outside the class range.
        """
        with _naming_file("label", value):
            indices = self._rule_for(value).apply(_open(value))
        size = capped_size((indices.shape[1], indices.shape[0]), self.longest_side)
        dtype = np.uint8 if self.ignore_index == IGNORE_8_BIT else np.uint16
        return PIL.Image.fromarray(_resize_nearest(indices, size).astype(dtype))

    def has_labelled_pixel(self, label: PIL.Image.Image) -> bool:
        """Whether a decoded label map holds anything but ignored pixels."""
        return bool((np.asarray(label) != self.ignore_index).any())

    def prepared(self) -> "SegmentationMap":
        """This feature for files that hold class indices already."""
        return replace(self, rule=None, longest_side=None)

    def _rule_for(self, value: dict[str, Any]) -> LabelRule:
        # `datasets` encodes decoded images, such as `map` writes back, without a path. Those are prepared.
        if self.rule is None or value["path"] is None:
            return index_rule(self.num_classes, self.ignore_index)
        return LABEL_RULES[self.rule]


def capped_size(size: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
    """The (width, height) that a picture of `size` gets when its longest side may have `longest_side` pixels."""
    if longest_side is None or max(size) <= longest_side:
        return size
    scale = longest_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize_nearest(labels: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.int32]:
    """Resize labels, (height, width), to a `size` of (width, height), rounding source positions down as OpenCV does."""
    height, width = labels.shape
    if size == (width, height):
        return labels
    rows = np.arange(size[1]) * height // size[1]
    columns = np.arange(size[0]) * width // size[0]
    return labels[rows[:, None], columns]


def _open(value: dict[str, Any]) -> BinaryIO:
    return BytesIO(require_file(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"])


@contextmanager
def _naming_file(kind: str, value: dict[str, Any]) -> Iterator[None]:
    """Say in errors which file they come from."""
    try:
        yield
    except FileNotFoundError:  # names its file already
        raise
    except Exception as error:  # what a damaged file raises differs from one format's library to the next
        raise ValueError(f"cannot read the {kind} {value['path'] or 'given as bytes'}: {short_error(error)}") from error


with warnings.catch_warnings():
    # Registering lets `datasets` restore these features from its files; it warns that registering is experimental.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(SegmentationImage, "SegmentationImage")
    register_feature(SegmentationMap, "SegmentationMap")
