"""Formats of labelled data sets: Parquet, COCO, YOLO, and a folder of indexed PNG."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import cv2
import datasets
import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.spatial import KDTree
from torch import Tensor

from ..data.parquet import write_parquet
from ..data.prepare import png
from ..utils import write_file
from ..visualization import ClassStatistics, class_colors
from .segmenter import unused_label
from .writers import label_map

VOID_COLOR = (224, 224, 192)  # of pixels without a class, as in PASCAL VOC; white may be the colour of a class
LabelMap: TypeAlias = NDArray[np.integer]
Classes: TypeAlias = Sequence[ClassStatistics]  # that occur in an image, the largest first


@dataclass
class PreparedImage:
    """An image that a worker has read: its place in the data set, its file as it is stored, and the model's input."""

    position: int
    source: str  # its name in the data set, or ""
    content: bytes
    size: tuple[int, int]  # height and width
    pixel_values: Tensor

    @property
    def name(self) -> str:
        """A file name that no other image has: the position, and what the source is called."""
        kind = str(Image.open(BytesIO(self.content)).format).lower()
        ending = {"jpeg": "jpg", "mpo": "jpg", "jpeg2000": "jp2"}.get(kind, kind)
        stem = re.sub(r"[^\w-]+", "_", os.path.splitext(self.source)[0])[-80:].strip("_")
        return f"{self.position:08d}{'-' if stem else ''}{stem}.{ending}"


@dataclass
class LabelFormat:
    """Writes labelled images below a folder. A shard is written by one process, as often as it takes."""

    output: Path
    class_names: Sequence[str]
    split: str
    files: ClassVar[tuple[str, ...]]  # of the data set, as patterns
    # Of Pillow. What has another format, or is turned by EXIF, is stored as PNG: not all readers would show it so.
    image_formats: ClassVar[tuple[str, ...] | None] = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP")

    def write_image(self, image: PreparedImage, segmentation: LabelMap, classes: Classes) -> Any:
        """Write the files of an image, if it has some of its own, and return what its shard needs to know of it."""
        raise NotImplementedError

    def write_shard(self, index: int, records: list[Any]) -> None:
        """Write the file of a shard, if the format has one, from what `write_image` has returned."""

    def finish(self, num_shards: int) -> None:
        """Write what is about all shards; another time it changes nothing."""


class ParquetFormat(LabelFormat):
    """What `load_benchmark("custom")` and `datasets` read: `data/SPLIT-INDEX-of-NUMBER.parquet`."""

    files = ("data/*.parquet",)
    image_formats = None  # `datasets` reads all of them, and turns them

    def write_image(self, image: PreparedImage, segmentation: LabelMap, classes: Classes) -> Any:
        """The row of an image."""
        label = png(label_map(segmentation, len(self.class_names)))
        return {
            "image": {"path": image.source, "bytes": image.content},
            "label": {"path": f"{Path(image.name).stem}.png", "bytes": label},
            "file_name": image.name,
            "classes": [entry.index for entry in classes],
            "scores": [score(entry) for entry in classes],
        }

    def write_shard(self, index: int, records: list[Any]) -> None:
        """Write a file, which gets its last name when the number of files is known."""
        classes = datasets.List(datasets.ClassLabel(names=list(self.class_names)))
        metadata = {
            "benchmark": "custom",
            "names": list(self.class_names),
            "ignore_index": unused_label(len(self.class_names)),
            "background_index": None,
            "split": self.split,
        }
        file = self.output / f"data/{self.split}-{index:05d}.parquet"
        write_parquet(file, records, metadata, classes=classes, scores=datasets.List(datasets.Value("float32")))

    def finish(self, num_shards: int) -> None:
        """Name the files as one set."""
        for index in range(num_shards):
            file = self.output / f"data/{self.split}-{index:05d}.parquet"
            if file.exists():
                file.rename(file.with_stem(f"{file.stem}-of-{num_shards:05d}"))


class PNGFormat(LabelFormat):
    """Own data as `load_benchmark("custom")` reads it: `images/`, `masks/` with a palette, and `classes.json`."""

    files = ("images/*", "masks/*", "classes.json")

    def write_image(self, image: PreparedImage, segmentation: LabelMap, classes: Classes) -> Any:
        """Write image and mask; a mask of more than 255 classes is grey, of 16 bits."""
        mask = label_map(segmentation, len(self.class_names))
        if mask.mode == "L":
            palette = np.full((256, 3), VOID_COLOR, dtype=np.uint8)
            palette[: len(self.class_names)] = class_colors(self.class_names)
            mask.putpalette(palette.tobytes())
        write_file(self.output / f"images/{image.name}", image.content)
        write_file(self.output / f"masks/{Path(image.name).stem}.png", png(mask))

    def finish(self, num_shards: int) -> None:
        """Write the class names."""
        write_file(self.output / "classes.json", json.dumps(list(self.class_names), indent=1, ensure_ascii=False))


class YOLOFormat(LabelFormat):
    """Segments as polygons: `images/`, `labels/` and `data.yaml`."""

    files = ("images/*", "labels/*", "data.yaml")

    def write_image(self, image: PreparedImage, segmentation: LabelMap, classes: Classes) -> Any:
        """Write image and labels: a line for each region of a class, with coordinates as shares of the size."""
        lines = []
        for entry in sorted(classes, key=lambda entry: entry.index):
            for polygon in polygons(segmentation == entry.index):
                coordinates = (polygon / image.size[::-1]).ravel().tolist()
                lines.append(f"{entry.index} {' '.join(f'{value:.6f}' for value in coordinates)}\n")
        write_file(self.output / f"images/{image.name}", image.content)
        write_file(self.output / f"labels/{Path(image.name).stem}.txt", "".join(lines))

    def finish(self, num_shards: int) -> None:
        """Write the class names; training and validation name the same images."""
        content = {"train": "images", "val": "images", "names": dict(enumerate(self.class_names))}
        write_file(self.output / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


class COCOFormat(LabelFormat):
    """COCO's object detection format: `images/` and `annotations.json`, in which ids count from 1."""

    files = ("images/*", "annotations.json")

    def write_image(self, image: PreparedImage, segmentation: LabelMap, classes: Classes) -> Any:
        """Write the image, and return its entry and its annotations, one for each class, as run lengths."""
        write_file(self.output / f"images/{image.name}", image.content)
        image_id, (height, width) = image.position + 1, image.size
        annotations = []
        for entry in sorted(classes, key=lambda entry: entry.index):
            rle = coco_mask.encode(np.asfortranarray(segmentation == entry.index, dtype=np.uint8))
            annotation = {
                "image_id": image_id,
                "category_id": entry.index + 1,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "area": int(coco_mask.area(rle)),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "iscrowd": 0,
                "score": score(entry),
            }
            annotations.append(annotation)
        facts = {"id": image_id, "file_name": image.name, "height": height, "width": width, "source": image.source}
        return {"image": facts, "annotations": annotations}

    def write_shard(self, index: int, records: list[Any]) -> None:
        """Write what `finish` joins."""
        write_file(self.output / f"annotations/{index:05d}.json", json.dumps(records, ensure_ascii=False))

    def finish(self, num_shards: int) -> None:
        """Join the annotations of all shards."""
        shards = [self.output / f"annotations/{index:05d}.json" for index in range(num_shards)]
        records = [record for shard in shards for record in json.loads(shard.read_bytes())]
        annotations = [annotation for record in records for annotation in record["annotations"]]
        content = {
            "categories": [{"id": index, "name": name} for index, name in enumerate(self.class_names, start=1)],
            "images": [record["image"] for record in records],
            "annotations": [{"id": number, **each} for number, each in enumerate(annotations, start=1)],
        }
        write_file(self.output / "annotations.json", json.dumps(content, ensure_ascii=False) + "\n")


FORMATS = {"parquet": ParquetFormat, "coco": COCOFormat, "yolo": YOLOFormat, "png": PNGFormat}


def score(entry: ClassStatistics) -> float:
    """The mean probability of a class in an image, in as many digits as mean something."""
    return round(entry.mean_probability, 4)


def polygons(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The outlines (N, 2), x and y in pixels, of the regions of a mask, with bridges to their holes.

    They run a quarter of a pixel inside of the pixels' edges: so both a reader that takes the pixels whose centre is
    inside and one that cuts off the digits and fills, outline included, draw the same mask.
    """
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for contour, (_, _, hole, parent) in zip(contours, hierarchy[0] if contours else (), strict=True):
        if parent >= 0:
            continue
        outline = contour[:, 0]
        while hole >= 0:
            inner = contours[hole][:, 0]
            distances, nearest = KDTree(outline).query(inner)
            start = int(np.argmin(distances))
            cut = int(nearest[start])
            ring = np.concatenate([inner[start:], inner[: start + 1]])
            outline = np.concatenate([outline[: cut + 1], ring, outline[cut:]])
            hole = hierarchy[0][hole][0]
        outlines.append((outline + 0.5) / 2)
    return outlines
