"""Small copies of the raw downloads, in their official folder layouts and file formats.

Each writer takes the folder that holds all data sets and raw ids for the label of each picture, and writes pictures of
the same size. Ids are those of the download, before any rule.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

RawIds = NDArray[np.integer]


def write_picture(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Write a smooth random RGB picture of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path, quality=95)


def write_index_image(path: Path, ids: RawIds, *, palette: bool = False) -> None:
    """Write ids, (height, width), as an 8 or 16-bit greyscale image, or as an 8-bit palette image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)


def write_coco_stuff(data_dir: Path, labels: Mapping[str, RawIds], split: str = "val") -> None:
    """COCO-Stuff: 8-bit greyscale PNG."""
    root = data_dir / "coco-stuff"
    for name, ids in labels.items():
        write_picture(root / "images" / f"{split}2017" / f"{name}.jpg", _size(ids))
        write_index_image(root / "stuffthingmaps" / f"{split}2017" / f"{name}.png", ids.astype(np.uint8))


def write_ade20k_150(data_dir: Path, labels: Mapping[str, RawIds]) -> None:
    """ADEChallengeData2016: 8-bit greyscale PNG."""
    root = data_dir / "ADEChallengeData2016"
    for name, ids in labels.items():
        write_picture(root / "images" / "validation" / f"{name}.jpg", _size(ids))
        write_index_image(root / "annotations" / "validation" / f"{name}.png", ids.astype(np.uint8))


def write_ade20k_847(data_dir: Path, labels: Mapping[str, RawIds], *, index: bool = False) -> None:
    """ADE20K_2021_17_01: RGB PNG whose red and green hold the object id, blue the instance; a pickled index or none."""
    root = data_dir / "ADE20K_2021_17_01"
    folder = Path("images") / "ADE" / "validation" / "home_or_hotel" / "bedroom"
    for name, ids in labels.items():
        write_picture(root / folder / f"{name}.jpg", _size(ids))
        instances = np.arange(ids.size).reshape(ids.shape) % 256
        # The red channel's last decimal digit is noise to the reader, so make it vary.
        channels = [ids // 256 * 10 + instances % 10, ids % 256, instances]
        Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(root / folder / f"{name}_seg.png")
        # Masks of single instances lie in a folder named like the picture.
        write_index_image(root / folder / name / "instance_000_ADE_val.png", np.zeros((2, 2), np.uint8))
    if index:
        listing = {"filename": [f"{name}.jpg" for name in labels], "folder": [str(root.name / folder)] * len(labels)}
        (root / "index_ade20k.pkl").write_bytes(pickle.dumps(listing))


def write_pascal_context_59(data_dir: Path, labels: Mapping[str, RawIds], *, compressed: bool = True) -> None:
    """PASCAL-Context: trainval_merged.json, a run-length encoded segment for each id but 0. With a training picture."""
    root = data_dir / "VOCdevkit" / "VOC2010"
    training = {"2008_000008": np.full((3, 3), 9)}
    images, annotations = [], []
    for name, ids in {**training, **labels}.items():
        write_picture(root / "JPEGImages" / f"{name}.jpg", _size(ids))
        image_id = int(name.replace("_", ""))
        height, width = ids.shape
        phase = "train" if name in training else "val"
        images.append(
            {"file_name": f"{name}.jpg", "image_id": image_id, "height": height, "width": width, "phase": phase}
        )
        for raw_id in np.unique(ids[ids > 0]).tolist():
            segmentation = run_lengths(ids == raw_id, compressed)
            annotations.append({"image_id": image_id, "category_id": raw_id, "segmentation": segmentation})
    merged = {"images": images, "annos_segmentation": annotations}
    (root / "trainval_merged.json").write_text(json.dumps(merged))


def write_pascal_context_459(data_dir: Path, labels: Mapping[str, RawIds]) -> None:
    """PASCAL-Context's trainval/*.mat with 16-bit ids in the variable LabelMap; with a training picture."""
    root = data_dir / "VOCdevkit" / "VOC2010"
    (root / "trainval").mkdir(parents=True)
    training = {"2008_000008": np.full((3, 3), 9)}
    for name, ids in {**training, **labels}.items():
        write_picture(root / "JPEGImages" / f"{name}.jpg", _size(ids))
        scipy.io.savemat(root / "trainval" / f"{name}.mat", {"LabelMap": ids.astype(np.uint16)})


def write_pascal_voc(data_dir: Path, labels: Mapping[str, RawIds], *, palette: bool = True) -> None:
    """PASCAL VOC 2012: 8-bit PNG with or without a palette in SegmentationClassAug; with a picture the split lacks."""
    root = data_dir / "VOCdevkit" / "VOC2012"
    for name, ids in labels.items():
        write_picture(root / "JPEGImages" / f"{name}.jpg", _size(ids))
        write_index_image(root / "SegmentationClassAug" / f"{name}.png", ids.astype(np.uint8), palette=palette)
    write_picture(root / "JPEGImages" / "2007_000027.jpg", (8, 8))
    listing = root / "ImageSets" / "Segmentation" / "val.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("\n".join(labels) + "\n")


def write_own_data(
    root: Path, labels: Mapping[str, RawIds], class_names: list[str], *, suffix: str = ".png", split: str = ""
) -> None:
    """A user's folder: pictures, index images in the type of `labels`, and a list of classes."""
    for name, ids in labels.items():
        write_picture(root / "images" / split / f"{name}.jpg", _size(ids))
        write_index_image(root / "masks" / split / f"{name}{suffix}", ids)
    (root / "classes.txt").write_text("\n".join(class_names))


def _size(ids: RawIds) -> tuple[int, int]:
    return ids.shape[1], ids.shape[0]


def run_lengths(segment: NDArray[np.bool_], compressed: bool) -> dict[str, object]:
    """COCO's run-length encoding of a segment: counts as a string, or as the list of run lengths down the columns."""
    if compressed:
        encoded = coco_mask.encode(np.asfortranarray(segment.astype(np.uint8)))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    pixels = np.concatenate([[False], segment.ravel(order="F")])
    ends = np.flatnonzero(np.diff(pixels.astype(np.int8), append=[2]))
    return {"size": list(segment.shape), "counts": np.diff(ends, prepend=0).tolist()}
