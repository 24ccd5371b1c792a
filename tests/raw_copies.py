"""Small copies of the downloads, and of what Detectron2's scripts make of them, in their layouts and file formats.

Each writer takes the folder that holds all data sets and ids for the label of each image, and writes images of the same
size. Ids are those of the download, before any rule; those of `write_detectron2` are class indices.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

RawIds = NDArray[np.integer]


def write_image(path: Path, size: tuple[int, int]) -> None:
    """Write a smooth RGB image of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path, quality=95)


def write_index_image(path: Path, ids: RawIds, palette: bool = False) -> None:
    """Write ids, (height, width), as an 8 or 16-bit greyscale image, or as an 8-bit palette image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:
        image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path)


def write_pairs(images: Path, masks: Path, labels: Mapping[str, RawIds], suffix: str = ".png", **options: Any) -> None:
    """Write images and labels, of 8 bits but as TIFF."""
    for name, ids in labels.items():
        write_image(images / f"{name}.jpg", ids.shape[::-1])
        typed = ids.astype(np.uint16 if suffix == ".tif" else np.uint8)
        write_index_image(masks / f"{name}{suffix}", typed, **options)


def write_coco_stuff(data_dir: Path, labels: Mapping[str, RawIds], split: str = "val") -> None:
    root = data_dir / "coco-stuff"
    write_pairs(root / "images" / f"{split}2017", root / "stuffthingmaps" / f"{split}2017", labels)


def write_ade20k_150(data_dir: Path, labels: Mapping[str, RawIds]) -> None:
    root = data_dir / "ADEChallengeData2016"
    write_pairs(root / "images" / "validation", root / "annotations" / "validation", labels)


def write_ade20k_847(data_dir: Path, labels: Mapping[str, RawIds]) -> None:
    """RGB PNG whose red and green hold the object id, blue the instance; with the download's pickled index."""
    root = data_dir / "ADE20K_2021_17_01"
    folder = root / "images" / "ADE" / "validation" / "home_or_hotel" / "bedroom"
    for name, ids in labels.items():
        write_image(folder / f"{name}.jpg", ids.shape[::-1])
        instances = np.arange(ids.size).reshape(ids.shape) % 256
        # The red channel's last decimal digit is noise to the reader, so make it vary.
        channels = [ids // 256 * 10 + instances % 10, ids % 256, instances]
        Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(folder / f"{name}_seg.png")
        # Masks of single instances lie in a folder named like the image.
        write_index_image(folder / name / "instance_000_ADE_val.png", np.zeros((2, 2), np.uint8))
    ends_the_process = b"cos\nabort\n(tR."
    (root / "index_ade20k.pkl").write_bytes(ends_the_process)


OF_TRAINING = {"2008_000008": np.full((3, 3), 9)}


def write_pascal_context_59(data_dir: Path, labels: Mapping[str, RawIds]) -> None:
    """`trainval_merged.json`, with a run-length encoded segment for each id but 0; with a training image."""
    root = data_dir / "VOCdevkit" / "VOC2010"
    images, annotations = [], []
    for name, ids in {**OF_TRAINING, **labels}.items():
        write_image(root / "JPEGImages" / f"{name}.jpg", ids.shape[::-1])
        image = {"file_name": f"{name}.jpg", "image_id": int(name.replace("_", ""))}
        phase = "train" if name in OF_TRAINING else "val"
        images.append(image | {"height": ids.shape[0], "width": ids.shape[1], "phase": phase})
        for raw_id in np.unique(ids[ids > 0]).tolist():
            encoded = coco_mask.encode(np.asfortranarray(ids == raw_id, dtype=np.uint8))
            segmentation = encoded | {"counts": encoded["counts"].decode()}
            annotations.append({"image_id": image["image_id"], "category_id": raw_id, "segmentation": segmentation})
    merged = {"images": images, "annos_segmentation": annotations}
    (root / "trainval_merged.json").write_text(json.dumps(merged))


def write_pascal_context_459(data_dir: Path, labels: Mapping[str, RawIds]) -> None:
    """`trainval/*.mat` with 16-bit ids in the variable LabelMap; with a training image."""
    root = data_dir / "VOCdevkit" / "VOC2010"
    (root / "trainval").mkdir(parents=True)
    for name, ids in {**OF_TRAINING, **labels}.items():
        write_image(root / "JPEGImages" / f"{name}.jpg", ids.shape[::-1])
        scipy.io.savemat(root / "trainval" / f"{name}.mat", {"LabelMap": ids.astype(np.uint16)})


def write_pascal_voc(data_dir: Path, labels: Mapping[str, RawIds]) -> None:
    """PNG with a palette in SegmentationClassAug; with an image that the split lacks."""
    root = data_dir / "VOCdevkit" / "VOC2012"
    write_pairs(root / "JPEGImages", root / "SegmentationClassAug", labels, palette=True)
    write_image(root / "JPEGImages" / "2007_000027.jpg", (8, 8))
    listing = root / "ImageSets" / "Segmentation" / "val.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("\n".join(labels) + "\n")


def write_own_data(root: Path, labels: Mapping[str, RawIds], class_names: Sequence[str], split: str = "") -> None:
    """A user's folder: images, index images of 8 bits, and a list of classes."""
    write_pairs(root / "images" / split, root / "masks" / split, labels)
    (root / "classes.txt").write_text("\n".join(class_names))


WRITERS = {
    "coco_stuff_171": write_coco_stuff,
    "ade20k_150": write_ade20k_150,
    "ade20k_847": write_ade20k_847,
    "pascal_context_59": write_pascal_context_59,
    "pascal_context_459": write_pascal_context_459,
    "pascal_voc_20": write_pascal_voc,
    "pascal_voc_20b": write_pascal_voc,
}
STEMS = {  # of two images of each benchmark
    "coco_stuff_171": ("000000000139", "000000000285"),
    **dict.fromkeys(("ade20k_150", "ade20k_847"), ("ADE_val_00000001", "ADE_val_00000002")),
    **dict.fromkeys(("pascal_context_59", "pascal_context_459"), ("2008_000002", "2008_000003")),
    **dict.fromkeys(("pascal_voc_20", "pascal_voc_20b"), ("2007_000033", "2007_000042")),
}
DETECTRON2_TREES = {
    "coco_stuff_171": ("coco-stuff", "images/val2017", "annotations_detectron2/val2017", ".png"),
    "ade20k_150": ("ADEChallengeData2016", "images/validation", "annotations_detectron2/validation", ".png"),
    "ade20k_847": ("ADE20K_2021_17_01", "images_detectron2/validation", "annotations_detectron2/validation", ".tif"),
    "pascal_context_59": ("VOCdevkit/VOC2010", "JPEGImages", "annotations_detectron2/pc59_val", ".png"),
    "pascal_context_459": ("VOCdevkit/VOC2010", "JPEGImages", "annotations_detectron2/pc459_val", ".tif"),
    "pascal_voc_20": ("VOCdevkit/VOC2012", "JPEGImages", "annotations_detectron2/val", ".png"),
    "pascal_voc_20b": ("VOCdevkit/VOC2012", "JPEGImages", "annotations_detectron2_bg/val", ".png"),
}


def write_detectron2(name: str, data_dir: Path, labels: Mapping[str, RawIds]) -> None:
    """A benchmark as the scripts of SED's official repository leave it; where there are further images, with one."""
    folder, images, annotations, suffix = DETECTRON2_TREES[name]
    root = data_dir / folder
    write_pairs(root / images, root / annotations, labels, suffix)
    if images == "JPEGImages":
        write_image(root / images / "2007_000027.jpg", (8, 8))
