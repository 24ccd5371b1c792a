"""From the label file of a benchmark to the index of the class at each pixel.

A [`LabelRule`] says how label files are read and which class each id in them stands for (section 9 of the
specification), one entry of [`LABEL_RULES`] for each benchmark's download.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from itertools import count
from typing import Any, BinaryIO

import numpy as np
import scipy.io
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..image_processing_sed import open_image, to_labels

# Ignored pixels carry the largest value of the label map's type: 8 bits while the classes leave 255 free, else 16.
IGNORE_8_BIT = 255
IGNORE_16_BIT = 65535

LABEL_FORMATS = ("PNG", "TIFF")

Ids = NDArray[Any]  # of integers, (height, width)

_UNKNOWN = -1


def read_index_image(file: BinaryIO) -> Ids:
    """The ids that a greyscale (1 to 32 bits) or palette image stores, which are not always the levels that it shows.

    Raises:
        ValueError: It has several channels.
    """
    with open_image(file, LABEL_FORMATS) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise ValueError(f"expected one channel of class ids, got an image of mode {image.mode}")
        return to_labels(image)


def read_ade20k_objects(file: BinaryIO) -> Ids:
    """The object ids that the red and green channels of ADE20K's `*_seg.png` encode."""
    with open_image(file, LABEL_FORMATS) as image:
        red, green, _ = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.int32), -1, 0)
    return red // 10 * 256 + green


def read_mat_label_map(file: BinaryIO) -> Ids:
    """The variable `LabelMap` of one of PASCAL-Context's MATLAB files.

    Raises:
        ValueError: There is none, or it does not hold whole numbers.
    """
    ids = scipy.io.loadmat(file, variable_names=["LabelMap"]).get("LabelMap")
    if ids is None or ids.dtype.kind not in "iuf" or (ids % 1 != 0).any():
        raise ValueError("expected whole numbers as the variable LabelMap")
    return ids.astype(np.int64)


def read_rle_annotations(file: BinaryIO) -> Ids:
    """The ids of run-length encoded segments of one image, painted over each other in their order.

    Expects JSON: `{"size": [height, width], "segments": [{"category_id": int, "segmentation": RLE}]}` with COCO's RLE
    (compressed or plain counts), as `raw_layouts.list_pascal_context_59` cuts it out of `trainval_merged.json`.
    """
    annotations = json.load(file)
    height, width = annotations["size"]
    ids = np.zeros((height, width), dtype=np.int32)
    for segment in annotations["segments"]:
        rle = segment["segmentation"]
        if isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, height, width)
        ids[coco_mask.decode(rle).astype(bool)] = segment["category_id"]
    return ids


@dataclass(frozen=True)
class LabelRule:
    """How the label files of a set become class indices.

    Attributes:
        read: Reads a label file into its ids.
        class_indices: The class index, or the ignore index, of each id.
        others: The index of every id that `class_indices` does not list; `None` if such an id is an error.
    """

    read: Callable[[BinaryIO], Ids]
    class_indices: Mapping[int, int]
    others: int | None = None

    def class_map(self, ids: Ids) -> NDArray[np.int32]:
        """The class indices of ids, (height, width).

        Raises:
            ValueError: There are ids that stand for no class, or `ids` has other axes.
        """
        if ids.ndim != 2:
            raise ValueError(f"expected (height, width), got an array of {ids.shape}")
        # Negative ids, which only 32-bit images can hold, become large ones: both end in the table's last entry.
        indices = self._table[np.minimum(ids.astype(np.uint32), self._table.size - 1)]
        unknown = np.unique(ids[indices == _UNKNOWN]).tolist()
        if unknown:
            more = " and more" if len(unknown) > 3 else ""
            raise ValueError(
                f"label values outside the class range: {', '.join(map(str, unknown[:3]))}{more}"
                f" (expected {self._expected_ids()})"
            )
        return indices

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        """The index of each id, (largest listed id + 2,); the last entry is that of all larger ids."""
        table = np.full(max(self.class_indices) + 2, _UNKNOWN if self.others is None else self.others, dtype=np.int32)
        table[list(self.class_indices)] = list(self.class_indices.values())
        return table

    def _expected_ids(self) -> str:
        gap = next(id_ for id_ in count() if id_ not in self.class_indices)
        return ", ".join([f"0 to {gap - 1}", *(str(id_) for id_ in sorted(self.class_indices) if id_ > gap)])


@cache
def index_rule(num_classes: int, ignore_index: int) -> LabelRule:
    """The rule of index images whose values are class indices already."""
    return LabelRule(read_index_image, {**{i: i for i in range(num_classes)}, ignore_index: ignore_index})


def _published_class_indices(benchmark: str) -> dict[int, int]:
    """The class index of each id, for the benchmarks whose ids follow no formula."""
    tables = json.loads((files("sed_hf.data") / "label_maps" / "raw_label_to_train_id.json").read_text())
    return {int(raw_id): index for raw_id, index in tables[benchmark].items()}


def _counted_from_one(num_classes: int, zero: int) -> dict[int, int]:
    """Id 1 is class 0 and so on; `zero` is the index of id 0."""
    return {0: zero} | {index + 1: index for index in range(num_classes)}


LABEL_RULES = {
    "coco_stuff_171": LabelRule(read_index_image, _published_class_indices("coco_stuff_171"), others=IGNORE_8_BIT),
    "ade20k_150": LabelRule(read_index_image, _counted_from_one(150, zero=IGNORE_8_BIT)),
    "ade20k_847": LabelRule(read_ade20k_objects, _published_class_indices("ade20k_847"), others=IGNORE_16_BIT),
    "pascal_context_59": LabelRule(
        read_rle_annotations, _published_class_indices("pascal_context_59"), others=IGNORE_8_BIT
    ),
    "pascal_context_459": LabelRule(
        read_mat_label_map, _counted_from_one(459, zero=IGNORE_16_BIT), others=IGNORE_16_BIT
    ),
    # As Detectron2's script leaves it: class indices, and beyond them ids that have no class.
    "pascal_context_459_detectron2": LabelRule(read_index_image, {i: i for i in range(459)}, others=IGNORE_16_BIT),
    "pascal_voc_20": LabelRule(read_index_image, _counted_from_one(20, zero=IGNORE_8_BIT) | {255: IGNORE_8_BIT}),
    # Background, id 0, is a class of its own here, behind the 20 objects.
    "pascal_voc_20b": LabelRule(read_index_image, _counted_from_one(20, zero=20) | {255: IGNORE_8_BIT}),
}
