"""From the raw label file of a benchmark to the index of the class at each pixel.

A [`LabelRule`] says, for one benchmark, how its label files are read and which class each raw id stands for
(the table in section 9 of the specification, one entry of [`LABEL_RULES`] each).
"""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..image_processing_sed import check_pixels, open_image

# Ignored pixels carry the largest value of the label map's type: 8 bits while the classes leave 255 free, else 16.
IGNORE_8_BIT = 255
IGNORE_16_BIT = 65535

# MATLAB's files of version 5: the types of their elements, and the classes of arrays of numbers.
MAT_HEADER_BYTES = 128
MAT_HEAD_BYTES = 4096  # of a variable: name and size, with room to spare
MAT_MATRIX, MAT_PACKED = 14, 15
MAT_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MAT_NUMERIC_CLASSES = range(6, 16)

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
    """Read the variable `LabelMap`, (height, width), of one of PASCAL-Context's MATLAB files, of version 5.

    scipy reads more kinds of them, but a damaged one may crash the process (scipy 1.17), or unpack to any size.
    """
    content = file.read()
    orders = {b"IM": "<", b"MI": ">"}
    order = orders.get(content[MAT_HEADER_BYTES - 2 : MAT_HEADER_BYTES])
    if order is None:
        raise ValueError("expected a MATLAB file of version 5")
    position = MAT_HEADER_BYTES
    while position < len(content):
        kind, element, position = _mat_element(content, position, order, is_padded=False)
        label_map = _unpacked_label_map(element, order) if kind == MAT_PACKED else _label_map(kind, element, order)
        if label_map is not None:
            return label_map
    raise ValueError("expected a variable LabelMap")


def _unpacked_label_map(packed: bytes, order: str) -> NDArray[np.integer] | None:
    """The label map in a packed variable; of other variables, and of what it cannot hold, nothing is unpacked."""
    unpacker = zlib.decompressobj()
    head = unpacker.decompress(packed, MAT_HEAD_BYTES)
    kind = int.from_bytes(head[:4], "little" if order == "<" else "big")
    shape = _label_map_shape(head[8:], order)[0] if kind == MAT_MATRIX else None
    if shape is None:
        return None
    limit = MAT_HEAD_BYTES + 8 * shape[0] * shape[1]
    content = head + unpacker.decompress(unpacker.unconsumed_tail, limit)
    if len(content) > limit:
        raise ValueError(f"LabelMap unpacks to more than the {limit:,} bytes that its size takes")
    return _label_map(*_mat_element(content, 0, order)[:2], order)


def _label_map(kind: int, element: bytes, order: str) -> NDArray[np.integer] | None:
    """The label map in an element, if it holds one."""
    shape, position = _label_map_shape(element, order) if kind == MAT_MATRIX else (None, 0)
    if shape is None:
        return None
    kind, numbers, _ = _mat_element(element, position, order)
    if kind not in MAT_NUMBERS:
        raise ValueError(f"expected numbers as LabelMap, got MATLAB's type {kind}")
    ids = np.frombuffer(numbers, order + MAT_NUMBERS[kind])
    if ids.size != shape[0] * shape[1] or (ids != np.trunc(ids)).any():  # NaN, too, is none
        raise ValueError(f"expected {shape[0]} × {shape[1]} whole numbers as LabelMap, got {ids.size} of {ids.dtype}")
    return ids.reshape(shape, order="F").astype(np.int64)


def _label_map_shape(matrix: bytes, order: str) -> tuple[tuple[int, int] | None, int]:
    """The (height, width) of a variable of the name `LabelMap`, or `None`; and where its numbers begin."""
    _, flags, position = _mat_element(matrix, 0, order)
    _, sizes, position = _mat_element(matrix, position, order)
    _, name, position = _mat_element(matrix, position, order)
    if name != b"LabelMap":
        return None, position
    shape = np.frombuffer(sizes[: len(sizes) // 4 * 4], f"{order}i4").tolist()
    matlab_class = int(np.frombuffer(flags[:4], f"{order}u4")[0]) & 0xFF if len(flags) >= 4 else 0
    if len(shape) != 2 or min(shape) < 1 or matlab_class not in MAT_NUMERIC_CLASSES:
        raise ValueError(f"expected numbers of (height, width) as LabelMap, got MATLAB's class {matlab_class}, {shape}")
    check_pixels(shape[1], shape[0])
    return (shape[0], shape[1]), position


def _mat_element(content: bytes, position: int, order: str, is_padded: bool = True) -> tuple[int, bytes, int]:
    """The type and the bytes of a data element of a MATLAB file, and where the next one begins."""
    tag = content[position : position + 8]
    if len(tag) < 8:
        raise ValueError("the file ends too early")
    kind, size = (int(number) for number in np.frombuffer(tag, f"{order}u4"))
    if kind >> 16:  # up to four bytes lie in the tag itself
        return kind & 0xFFFF, tag[4 : 4 + min(4, kind >> 16)], position + 8
    start, end = position + 8, position + 8 + size
    return kind, content[start:end], end + (-size % 8 if is_padded else 0)


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
