"""`datasets` features that decode images to RGB and label files to class indices when a row is read."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from typing import Any, BinaryIO

import cv2
import datasets
import numpy as np
import PIL.Image
import scipy.io
from datasets.features.features import register_feature
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..image_processing_sed import open_image, read_rgb, to_labels
from ..utils import short_error
from .transforms import resize_nearest

# Ignored pixels have the largest value of the label map's type: 8 bits while the classes leave 255 free, else 16.
IGNORE_8_BIT, IGNORE_16_BIT = 255, 65535
LABEL_FORMATS = ("PNG", "TIFF")

Ids = NDArray[Any]  # of integers, (height, width)


def read_index_image(file: BinaryIO) -> Ids:
    """The ids that a greyscale or palette image stores, which are not always the levels that it shows."""
    with open_image(file, LABEL_FORMATS) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise ValueError(f"expected one channel of class ids, got an image of mode {image.mode}")
        return to_labels(image)


def read_ade20k_objects(file: BinaryIO) -> Ids:
    """The object ids in the red and green channels of ADE20K's `*_seg.png`."""
    with open_image(file, LABEL_FORMATS) as image:
        red, green, _ = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.int32), -1, 0)
    return red // 10 * 256 + green


def read_mat_label_map(file: BinaryIO) -> Ids:
    """The variable `LabelMap` of one of PASCAL-Context's MATLAB files."""
    return scipy.io.loadmat(file, variable_names=["LabelMap"])["LabelMap"].astype(np.int64)


def read_rle_annotations(file: BinaryIO) -> Ids:
    """The ids of one image's segments, each painted over those before.

    Expects JSON: `{"size": [height, width], "segments": [{"category_id": int, "segmentation": RLE}]}`, with COCO's RLE.
    """
    annotations = json.load(file)
    ids = np.zeros(annotations["size"], dtype=np.int32)
    for segment in annotations["segments"]:
        ids[coco_mask.decode(segment["segmentation"]).astype(bool)] = segment["category_id"]
    return ids


@dataclass(frozen=True)
class LabelRule:
    """How label files become class indices."""

    read: Callable[[BinaryIO], Ids]
    classes: Mapping[int, int]  # the class index, or the ignored label, of each id
    others: int | None = None  # the same for all other ids; `None` if such an id is an error
    shortest_side: int | None = None  # larger label maps are resized to this, see `SegmentationImage`

    def class_indices(self, file: BinaryIO) -> Ids:
        """The class index of each pixel."""
        ids = self.read(file)
        if self.shortest_side is not None:
            ids = resize_nearest(ids, shrunk_size(ids.shape, self.shortest_side))
        unknown = -1
        table = np.full(max(self.classes) + 2, unknown if self.others is None else self.others, dtype=np.int32)
        table[list(self.classes)] = list(self.classes.values())
        # Negative ids, which only 32-bit images can hold, become large ones: all end in the table's last entry.
        indices = table[np.minimum(ids.astype(np.uint32), table.size - 1)]
        if (wrong := np.unique(ids[indices == unknown])).size:
            *_, before, last = sorted(self.classes)
            expected = f"0 to {last}" if last == before + 1 else f"0 to {before}, {last}"
            got = ", ".join(map(str, wrong[:3])) + (" and more" if wrong.size > 3 else "")
            raise ValueError(f"label values outside the class range: {got} (expected {expected})")
        return indices


def _counted_from_one(num_classes: int, zero: int) -> dict[int, int]:
    return {0: zero} | {index + 1: index for index in range(num_classes)}


_PUBLISHED = {
    name: {int(raw_id): index for raw_id, index in table.items()}
    for name, table in json.loads(
        (files(__package__) / "label_maps" / "raw_label_to_train_id.json").read_text()
    ).items()
}

LABEL_RULES = {
    "coco_stuff_171": LabelRule(read_index_image, _PUBLISHED["coco_stuff_171"], others=IGNORE_8_BIT),
    "ade20k_150": LabelRule(read_index_image, _counted_from_one(150, zero=IGNORE_8_BIT)),
    "ade20k_847": LabelRule(read_ade20k_objects, _PUBLISHED["ade20k_847"], others=IGNORE_16_BIT, shortest_side=512),
    "pascal_context_59": LabelRule(read_rle_annotations, _PUBLISHED["pascal_context_59"], others=IGNORE_8_BIT),
    "pascal_context_459": LabelRule(read_mat_label_map, _counted_from_one(459, IGNORE_16_BIT), others=IGNORE_16_BIT),
    # As Detectron2's script leaves it: class indices, and beyond them ids that have no class.
    "pascal_context_459_detectron2": LabelRule(read_index_image, {i: i for i in range(459)}, others=IGNORE_16_BIT),
    "pascal_voc_20": LabelRule(read_index_image, _counted_from_one(20, zero=IGNORE_8_BIT) | {255: IGNORE_8_BIT}),
    # Background, id 0, is a class of its own here, behind the 20 objects.
    "pascal_voc_20b": LabelRule(read_index_image, _counted_from_one(20, zero=20) | {255: IGNORE_8_BIT}),
}


@dataclass
class SegmentationImage(datasets.Image):
    """A `datasets.Image` in RGB, read as all images that a model is given.

    With `shortest_side`, as the official preparation of A-847 stores it: the shortest side of larger images is brought
    to this many pixels, bilinearly and without antialiasing, and all images are compressed as JPEG.
    """

    mode: str | None = "RGB"
    shortest_side: int | None = None
    _type: str = field(default="SegmentationImage", init=False, repr=False)

    def decode_example(self, value: dict[str, Any], token_per_repo_id: dict[str, Any] | None = None) -> PIL.Image.Image:
        """The image in RGB."""
        with _open(value) as file:
            image = read_rgb(file)
        if self.shortest_side is None or value["path"] is None:  # `map` writes decoded images back without a path
            return image
        return read_rgb(BytesIO(shrunk_jpeg(image, self.shortest_side)))


@dataclass
class SegmentationMap(datasets.Image):
    """A label map: decodes to a greyscale image, of mode `"L"` or `"I;16"`, of class indices and `ignore_index`.

    With `background_index` the ground truth holds only the classes below it and background, which a prediction of this
    index or any larger one means.
    """

    names: list[str] = field(default_factory=list)  # that a model is asked for, in the order of their indices
    ignore_index: int = IGNORE_8_BIT
    background_index: int | None = None
    rule: str | None = None  # of `LABEL_RULES`; `None` for label files that hold class indices
    _type: str = field(default="SegmentationMap", init=False, repr=False)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes of the ground truth, background included."""
        return self.names if self.background_index is None else [*self.names[: self.background_index], "background"]

    def decode_example(self, value: dict[str, Any], token_per_repo_id: dict[str, Any] | None = None) -> PIL.Image.Image:
        """The label map; a `ValueError` names a file that is damaged, or holds values outside the class range."""
        rule = LABEL_RULES[self.rule] if self.rule and value["path"] is not None else None  # as for images
        if rule is None:
            classes = {index: index for index in range(len(self.class_names))}
            rule = LabelRule(read_index_image, classes | {self.ignore_index: self.ignore_index})
        try:
            with _open(value) as file:
                indices = rule.class_indices(file)
            return PIL.Image.fromarray(indices.astype(np.uint8 if self.ignore_index == IGNORE_8_BIT else np.uint16))
        except Exception as error:  # what a damaged file raises differs from one format's library to the next
            raise ValueError(f"cannot read the label {value['path'] or 'map'}: {short_error(error)}") from error


def _open(value: dict[str, Any]) -> BinaryIO:
    if value["bytes"] is None:
        return open(value["path"], "rb")
    file = BytesIO(value["bytes"])
    file.name = value["path"]  # for messages
    return file


def shrunk_size(shape: tuple[int, ...], shortest_side: int) -> tuple[int, int]:
    """The (width, height) for an image of (height, width, ...) with its shortest side at most this long."""
    height, width = shape[:2]
    shortest = max(shortest_side, min(height, width))
    return round(width / shortest * shortest_side), round(height / shortest * shortest_side)


def shrunk_jpeg(image: PIL.Image.Image, shortest_side: int) -> bytes:
    """An image as the official preparation of A-847 stores it."""
    size = shrunk_size((image.height, image.width), shortest_side)
    pixels = cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_LINEAR)
    buffer = BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


with warnings.catch_warnings():
    # `load_from_disk` then restores these features; `datasets` warns that registering is experimental.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(SegmentationImage, "SegmentationImage")
    register_feature(SegmentationMap, "SegmentationMap")
