"""From the raw label file of a benchmark to the index of the class at each pixel.

A [`LabelRule`] says, for one benchmark, how its label files are read and which class each raw id stands for
(the table in section 9 of the specification, one entry of [`LABEL_RULES`] each).
"""

import json
import reprlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import BinaryIO, Literal

import numpy as np
import scipy.io
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sed_hf.image_files import check_pixels, open_image

# Ignored pixels carry the largest value of the label map's type: 8 bits while the classes leave 255 free, else 16.
IGNORE_8_BIT = 255
IGNORE_16_BIT = 65535

# Of MATLAB's files, version 5.
BYTES_OF_MAT_FILE_HEADER = 128
BYTES_OF_MAT_HEADERS = 4096  # of a variable, with room to spare
BYTES_PER_LABEL = 16
PACKED_VARIABLE = 15

_UNKNOWN = -1
_INDEX_MODES = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L"}


def read_index_image(file: BinaryIO) -> NDArray[np.integer]:
    """Read a greyscale (8, 16 or 32 bits) or palette image whose pixel values are the ids, (height, width)."""
    with open_image(file) as image:
        if image.mode not in _INDEX_MODES:
            raise ValueError(f"expected one channel of class ids, got an image of mode {image.mode}")
        ids = np.asarray(image)
    return ids.astype(np.uint8) if ids.dtype == np.bool_ else ids


def read_ade20k_objects(file: BinaryIO) -> NDArray[np.integer]:
    """Read the object ids, (height, width), that the red and green channels of ADE20K's `*_seg.png` encode."""
    with open_image(file) as image:
        red, green, _ = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.int32), -1, 0)
    return red // 10 * 256 + green


def read_mat_label_map(file: BinaryIO) -> NDArray[np.integer]:
    """Read the variable `LabelMap`, (height, width), of one of PASCAL-Context's MATLAB files."""
    variables = {name: shape for name, shape, _ in scipy.io.whosmat(file)}
    shape = variables.get("LabelMap")
    if shape is None or len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"expected a variable LabelMap of (height, width), got {reprlib.repr(variables)}")
    check_pixels(shape[1], shape[0])
    _check_unpacked_size(file, BYTES_PER_LABEL * shape[0] * shape[1] + BYTES_OF_MAT_HEADERS)
    file.seek(0)
    ids = scipy.io.loadmat(file, variable_names=["LabelMap"])["LabelMap"]
    if ids.dtype.kind not in "uif" or (ids != np.trunc(ids)).any():  # NaN, too, is none
        raise ValueError(f"expected whole numbers as LabelMap, got {ids.dtype}")
    return ids.astype(np.int64)


def _check_unpacked_size(file: BinaryIO, limit: int) -> None:
    """Refuse a MATLAB file of which a packed variable unpacks to more than `limit` bytes; scipy would take any."""
    file.seek(BYTES_OF_MAT_FILE_HEADER)
    while len(tag := file.read(8)) == 8:
        order: Literal["little", "big"] = "little" if int.from_bytes(tag[:4], "little") < 2**16 else "big"
        kind, size = int.from_bytes(tag[:4], order), int.from_bytes(tag[4:], order)
        content = file.read(size)
        if kind == PACKED_VARIABLE:
            unpacker = zlib.decompressobj()
            is_label_map = b"LabelMap" in unpacker.decompress(content, BYTES_OF_MAT_HEADERS)
            if is_label_map and len(unpacker.decompress(unpacker.unconsumed_tail, limit)) == limit:
                raise ValueError(f"LabelMap unpacks to more than the {limit:,} bytes that its size takes")


def read_rle_annotations(file: BinaryIO) -> NDArray[np.integer]:
    """Paint the run-length encoded segments of one image over each other in their order, (height, width).

    Expects JSON: `{"size": [height, width], "segments": [{"category_id": int, "segmentation": RLE}]}` with COCO's RLE
    (compressed or plain counts), as `raw_layouts.list_pascal_context_59` cuts it out of `trainval_merged.json`.
    """
    annotations = json.load(file)
    height, width = annotations["size"]
    if not all(type(edge) is int and edge > 0 for edge in (height, width)):
        raise ValueError(f"expected a size of whole numbers above 0, got {[height, width]!r:.80}")
    check_pixels(width, height)
    ids = np.zeros((height, width), dtype=np.int32)
    for segment in annotations["segments"]:
        category, rle = segment["category_id"], segment["segmentation"]
        if type(category) is not int or not 0 <= category < 2**31:
            raise ValueError(f"expected a whole number as category_id, got {category!r:.80}")
        if rle["size"] != [height, width]:
            raise ValueError(f"expected a segment of size {[height, width]}, got {rle['size']!r:.80}")
        if isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, height, width)
        ids[coco_mask.decode(rle).astype(bool)] = category
    return ids


@dataclass(frozen=True)
class LabelRule:
    """How the label files of a set become class indices.

    Attributes:
        read: Reads a label file into its raw ids, (height, width).
        class_indices: The class index, or the ignore index, of each raw id.
        others: The index of every raw id that `class_indices` does not list; `None` if such an id is an error.
    """

    read: Callable[[BinaryIO], NDArray[np.integer]]
    class_indices: Mapping[int, int]
    others: int | None = None

    def apply(self, file: BinaryIO) -> NDArray[np.int32]:
        """Read a label file into class indices, (height, width).

        Raises:
            ValueError: The file holds ids that stand for no class.
        """
        ids = self.read(file)
        if ids.ndim != 2:
            raise ValueError(f"expected (height, width), got an array of {ids.shape}")
        # Negative ids, which only 32-bit images can hold, become large ones: both end in the table's last entry.
        indices = self._table[np.minimum(ids.astype(np.uint32), self._table.size - 1)]
        unknown = ids[indices == _UNKNOWN]
        if unknown.size:
            raise ValueError(
                f"label values outside the class range: {_as_ranges(np.unique(unknown).tolist())}"
                f" (expected {_as_ranges(self.class_indices)})"
            )
        return indices

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        """The index of each raw id, (largest listed id + 2,); the last entry is that of all larger ids."""
        table = np.full(max(self.class_indices) + 2, _UNKNOWN if self.others is None else self.others, dtype=np.int32)
        table[list(self.class_indices)] = list(self.class_indices.values())
        return table


@cache
def index_rule(num_classes: int, ignore_index: int) -> LabelRule:
    """The rule of index images whose values are class indices already."""
    return LabelRule(read_index_image, {**{i: i for i in range(num_classes)}, ignore_index: ignore_index})


def _as_ranges(ids: Iterable[int]) -> str:
    """Write sorted ids the short way: 0, 1, 2, 255 as "0 to 2, 255"."""
    ranges: list[list[int]] = []
    for id_ in sorted(ids):
        if ranges and id_ == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], id_]
        else:
            ranges.append([id_])
    return ", ".join(" to ".join(map(str, range_)) for range_ in ranges)


def _published_class_indices(benchmark: str) -> dict[int, int]:
    """The class index of each raw id, for the benchmarks whose ids follow no formula."""
    tables = json.loads((files("sed_hf.data") / "label_maps" / "raw_label_to_train_id.json").read_text())
    return {int(raw_id): index for raw_id, index in tables[benchmark].items()}


def _counted_from_one(num_classes: int, zero: int) -> dict[int, int]:
    """Raw id 1 is class 0 and so on; `zero` is the index of raw id 0."""
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
    "pascal_voc_20": LabelRule(read_index_image, _counted_from_one(20, zero=IGNORE_8_BIT) | {255: IGNORE_8_BIT}),
    # Background, raw id 0, is a class of its own here, behind the 20 objects.
    "pascal_voc_20b": LabelRule(read_index_image, _counted_from_one(20, zero=20) | {255: IGNORE_8_BIT}),
}
