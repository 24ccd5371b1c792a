"""Which image belongs to which label: the layouts of the benchmarks' folders.

A [`Layout`] names the folders, as a download unpacks or as the scripts leave it with which SED's official repository
prepares the data for Detectron2. Listing opens no image and no label map; examples are ordered by file name.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from ..utils import short_error

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"}
LABEL_SUFFIXES = {".png", ".tif", ".tiff"}
MMSEG_ENDING = "_labelTrainIds"  # of the label maps that mmseg writes beside COCO-Stuff's


class RawExample(NamedTuple):
    """An image and where its label map lies.

    Attributes:
        image: The image's path.
        label: The label file's path; where one file holds the labels of many images, followed by `#` and a name.
        label_bytes: This image's part of such a file; `None` if the label has a file of its own.
    """

    image: Path
    label: str
    label_bytes: bytes | None = None


def pair_all(images: Path, labels: Path, split: str) -> list[RawExample]:
    """All files of two folders, which differ in their suffix only."""
    image_paths, label_paths = _files_by_stem(images, IMAGE_SUFFIXES), _files_by_stem(labels, LABEL_SUFFIXES)
    _require_none_missing(f"a label in {labels} for each image in {images}", image_paths.keys() - label_paths.keys())
    _require_none_missing(f"an image in {images} for each label in {labels}", label_paths.keys() - image_paths.keys())
    return [RawExample(image_paths[stem], str(label_paths[stem])) for stem in sorted(image_paths)]


def pair_labelled(images: Path, labels: Path, split: str) -> list[RawExample]:
    """The images of a folder with more of them for which there is a label."""
    label_paths = _files_by_stem(labels, LABEL_SUFFIXES)
    image_paths = _named_files(images, [f"{stem}.jpg" for stem in sorted(label_paths)])
    return [RawExample(image, str(label_paths[image.stem])) for image in image_paths]


def list_ade20k_847(images: Path, labels: Path, split: str) -> list[RawExample]:
    """Scenes nest in folders, where each image lies beside its `*_seg.png`."""
    # The download's index_ade20k.pkl lists the same files; a pickle can run code, so it stays unread.
    paths = sorted(images.rglob(f"ADE_{split}_*.jpg"), key=lambda path: path.name)
    label_paths = [path.with_name(f"{path.stem}_seg.png") for path in paths]
    _require_none_missing("a label beside each image", (str(path) for path in label_paths if not path.exists()))
    return [RawExample(path, str(label)) for path, label in zip(paths, label_paths, strict=True)]


def list_pascal_context_59(images: Path, labels: Path, split: str) -> list[RawExample]:
    """One JSON file holds the run-length encoded segments of every image."""
    segments = defaultdict(list)
    label_bytes = {}
    try:
        merged = json.loads(labels.read_bytes())
        for annotation in merged["annos_segmentation"]:
            segment = {"category_id": annotation["category_id"], "segmentation": annotation["segmentation"]}
            segments[annotation["image_id"]].append(segment)
        for image in merged["images"]:
            if image["phase"] == split:
                label = {"size": [image["height"], image["width"]], "segments": segments[image["image_id"]]}
                label_bytes[image["file_name"]] = json.dumps(label).encode()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{labels} is damaged, or not PASCAL-Context's JSON file: {short_error(error)}") from error
    paths = _named_files(images, sorted(label_bytes))
    return [RawExample(path, f"{labels}#{path.stem}", label_bytes[path.name]) for path in paths]


def list_pascal_context_459(images: Path, labels: Path, split: str) -> list[RawExample]:
    """A MATLAB file for each image; this package brings the list of the split's images."""
    listed = (files("sed_hf.data") / "label_maps" / f"pascal_context_{split}_ids.txt").read_text().split()
    present = {path.name for path in labels.iterdir()}
    names = [name for name in listed if f"{name}.mat" in present]
    if 0 < len(names) < len(listed):  # the official preparation leaves these out too, without a word
        logger.warning("%s has labels of %d of the split's %d images", labels, len(names), len(listed))
    paths = _named_files(images, [f"{name}.jpg" for name in names])
    return [RawExample(path, str(labels / f"{path.stem}.mat")) for path in paths]


def list_pascal_voc(images: Path, labels: Path, split: str) -> list[RawExample]:
    """`ImageSets/Segmentation/` beside the labels lists the split's images."""
    names = (labels.parent / "ImageSets" / "Segmentation" / f"{split}.txt").read_text(encoding="utf-8").split()
    image_paths = _named_files(images, [f"{name}.jpg" for name in names])
    label_paths = _named_files(labels, [f"{name}.png" for name in names])
    return [RawExample(image, str(label)) for image, label in zip(image_paths, label_paths, strict=True)]


@dataclass(frozen=True)
class Layout:
    """Where the images and labels of a data set lie below its root folder; `{split}` stands for the split.

    Attributes:
        images: A folder.
        labels: A folder, or a file with all of them.
        list_examples: Lists the examples of `images`, `labels` and a split.
        rule: The name in `raw_labels.LABEL_RULES` of how label files become class indices; `None` if they hold them.
        shortest_side: As of [`SegmentationImage`].
    """

    images: str
    labels: str
    list_examples: Callable[[Path, Path, str], list[RawExample]] = pair_all
    rule: str | None = None
    shortest_side: int | None = None

    def paths(self, root: Path, split: str) -> tuple[Path, Path]:
        """Where the images and the labels of a split are to be found below a root folder."""
        return root / self.images.format(split=split), root / self.labels.format(split=split)

    def read(self, root: Path, split: str) -> list[RawExample]:
        """The examples of a split below a root folder.

        Raises:
            FileNotFoundError: Files or a folder are missing; the message names them.
            ValueError: A list of files or labels is damaged.
        """
        images, labels = self.paths(root, split)
        if missing := [str(path) for path in (images, labels) if not path.exists()]:
            raise FileNotFoundError(f"expected {' and '.join(missing)}")
        if not (examples := self.list_examples(images, labels, split)):
            raise FileNotFoundError(f"found no image of the split {split} in {images} that has a label in {labels}")
        return examples


def find_layout(layouts: Sequence[Layout], roots: Sequence[Path], split: str) -> tuple[Path, Layout]:
    """The first root folder and layout of which the images and labels are there, or else the first that was meant."""
    roots = [root for root in roots if root.is_dir()] or roots
    pairs = [(root, layout) for root in roots for layout in layouts]
    found = (pair for pair in pairs if all(path.exists() for path in pair[1].paths(pair[0], split)))
    return next(found, pairs[0])


def _files_by_stem(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in folder.iterdir():
        is_data = path.suffix.lower() in suffixes and not path.stem.endswith(MMSEG_ENDING)
        if not is_data or path.name.startswith("."):  # such as ._a.png of macOS
            continue
        if path.stem in paths:
            raise ValueError(f"{path} and {paths[path.stem]} have the same name: which one is meant?")
        paths[path.stem] = path
    if not paths:
        raise FileNotFoundError(f"found no file in {folder} that ends in {', '.join(sorted(suffixes))}")
    return paths


def _named_files(folder: Path, names: list[str]) -> list[Path]:
    # Listing the folder once is much faster than asking a network file system for each file.
    _require_none_missing(f"these files in {folder}", set(names) - {path.name for path in folder.iterdir()})
    return [folder / name for name in names]


def _require_none_missing(what: str, missing: Iterable[str]) -> None:
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise FileNotFoundError(f"expected {what}; missing: {', '.join(names[:3])}{more}")
