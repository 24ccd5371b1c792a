"""Which picture belongs to which label in the raw downloads: one function for each official folder layout.

Every function takes the root folder of the unpacked download and the split, opens no picture and no label map, and
returns the examples ordered by file name. It raises `FileNotFoundError` naming the files or the folder that it misses.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from ..utils import require_file, short_error

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
LABEL_SUFFIXES = {".png", ".tif", ".tiff"}
ADE20K_FOLDERS = {"val": "validation"}


class RawExample(NamedTuple):
    """A picture and where its label map lies.

    Attributes:
        image: The picture's path.
        label: The label file's path; where one file holds the labels of many pictures, followed by `#` and a name.
        label_bytes: This picture's part of such a file; `None` if the label has a file of its own.
    """

    image: Path
    label: str
    label_bytes: bytes | None = None


def list_coco_stuff(root: Path, split: str) -> list[RawExample]:
    """`images/` and `stuffthingmaps/`, each with `train2017/` and `val2017/`."""
    images = _first_existing(root / "images" / f"{split}2017", root / f"{split}2017")
    labels = _first_existing(
        root / "stuffthingmaps" / f"{split}2017",
        root / "stuffthingmaps_trainval2017" / f"{split}2017",
        root / "annotations" / f"{split}2017",
    )
    return _pair_by_stem(images, labels)


def list_ade20k_150(root: Path, split: str) -> list[RawExample]:
    """`images/` and `annotations/`, each with `validation/`."""
    return _pair_by_stem(root / "images" / ADE20K_FOLDERS[split], root / "annotations" / ADE20K_FOLDERS[split])


def list_ade20k_847(root: Path, split: str) -> list[RawExample]:
    """`images/ADE/validation/`, where scenes nest in folders and each picture lies beside its `*_seg.png`."""
    # The download's index_ade20k.pkl lists the same files; a pickle can run code, so it stays unread.
    folder = _existing(root / "images" / "ADE" / ADE20K_FOLDERS[split])
    images = sorted(folder.rglob(f"ADE_{split}_*.jpg"), key=lambda path: path.name)
    if not images:
        raise FileNotFoundError(f"found no ADE_{split}_*.jpg in {folder}")
    return [RawExample(image, str(_existing(image.with_name(f"{image.stem}_seg.png")))) for image in images]


def list_pascal_context_59(root: Path, split: str) -> list[RawExample]:
    """`JPEGImages/`, and `trainval_merged.json` with the run-length encoded segments of every picture."""
    path = _existing(root / "trainval_merged.json")
    merged = _read_json(path)
    segments = defaultdict(list)
    try:
        for annotation in merged["annos_segmentation"]:
            segment = {"category_id": annotation["category_id"], "segmentation": annotation["segmentation"]}
            segments[annotation["image_id"]].append(segment)
        images = {image["file_name"]: image for image in merged["images"] if image["phase"] == split}
        labels = {
            name: {"size": [image["height"], image["width"]], "segments": segments[image["image_id"]]}
            for name, image in images.items()
        }
        names = sorted(images)
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a file_name is no text")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has not the form of PASCAL-Context's annotations: {short_error(error)}") from error
    return [
        RawExample(image_path, f"{path}#{image_path.stem}", json.dumps(labels[image_path.name]).encode())
        for image_path in _named_files(root / "JPEGImages", names)
    ]


def list_pascal_context_459(root: Path, split: str) -> list[RawExample]:
    """`JPEGImages/` and `trainval/*.mat`; this package brings the list of the split's pictures."""
    listed = (files("sed_hf.data") / "label_maps" / f"pascal_context_{split}_ids.txt").read_text().split()
    present = {path.stem for path in _existing(root / "trainval").glob("*.mat")}
    names = [name for name in listed if name in present]
    if not names:
        raise FileNotFoundError(f"expected the .mat files of the split {split} in {root / 'trainval'}")
    if len(names) < len(listed):  # the official preparation leaves these out too, without a word
        logger.warning("%s has labels of %d of the split's %d images", root / "trainval", len(names), len(listed))
    return _pair_by_name(names, root / "JPEGImages", root / "trainval", ".mat")


def list_pascal_voc(root: Path, split: str) -> list[RawExample]:
    """`JPEGImages/` and `SegmentationClassAug/`; `ImageSets/Segmentation/` lists the split's pictures."""
    listing = require_file(_existing(root / "ImageSets" / "Segmentation" / f"{split}.txt"))
    try:
        names = listing.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{listing} is no list of file names: {error.reason}") from error
    return _pair_by_name(names, root / "JPEGImages", root / "SegmentationClassAug", ".png")


def list_own_data(root: Path, split: str | None) -> list[RawExample]:
    """`images/` and `masks/` (or `labels/`), with a folder for each split in them unless `split` is `None`."""
    folder = split or "."
    return _pair_by_stem(root / "images" / folder, _first_existing(root / "masks" / folder, root / "labels" / folder))


def _pair_by_stem(images: Path, labels: Path) -> list[RawExample]:
    """Pair all files of two folders that differ in their suffix only."""
    image_paths = _files_by_stem(images, IMAGE_SUFFIXES)
    label_paths = _files_by_stem(labels, LABEL_SUFFIXES)
    _require_none_missing(f"a label in {labels} for each picture in {images}", image_paths.keys() - label_paths.keys())
    _require_none_missing(f"a picture in {images} for each label in {labels}", label_paths.keys() - image_paths.keys())
    return [RawExample(image_paths[stem], str(label_paths[stem])) for stem in sorted(image_paths)]


def _pair_by_name(names: list[str], images: Path, labels: Path, label_suffix: str) -> list[RawExample]:
    """Pair the listed files of two folders that hold other files as well."""
    image_paths = _named_files(images, [f"{name}.jpg" for name in names])
    label_paths = _named_files(labels, [f"{name}{label_suffix}" for name in names])
    return [RawExample(image, str(label)) for image, label in zip(image_paths, label_paths, strict=True)]


def _files_by_stem(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in _existing(folder).iterdir():
        if path.suffix.lower() not in suffixes:
            continue
        if path.stem in paths:
            raise ValueError(f"{path} and {paths[path.stem]} have the same name: which one is meant?")
        paths[path.stem] = path
    if not paths:
        raise FileNotFoundError(f"found no file in {folder} that ends in {', '.join(sorted(suffixes))}")
    return paths


def _named_files(folder: Path, names: list[str]) -> list[Path]:
    # Listing the folder once is much faster than asking a network file system for each file.
    present = {path.name for path in _existing(folder).iterdir()}
    _require_none_missing(f"these files in {folder}", set(names) - present)
    return [folder / name for name in names]


def _require_none_missing(what: str, missing: Iterable[str]) -> None:
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        shown = ", ".join(f"{name:.80}" for name in names[:3])
        raise FileNotFoundError(f"expected {what}; missing: {shown}{more}")


def _first_existing(*folders: Path) -> Path:
    for folder in folders:
        if folder.exists():
            return folder
    raise FileNotFoundError(f"expected the folder {' or '.join(map(str, folders))}")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"expected {path}")
    return path


def _read_json(path: Path) -> Any:
    try:
        return json.loads(require_file(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON, or was not downloaded completely: {short_error(error)}") from error
