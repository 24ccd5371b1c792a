"""The benchmarks SED is trained and evaluated on, and a user's own data, as `datasets.Dataset`; see docs/data.md."""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import datasets

from ..utils import IMAGE_SUFFIX, short_error, some
from .features import IGNORE_8_BIT, IGNORE_16_BIT, LABEL_RULES, SegmentationImage, SegmentationMap
from .parquet import read_parquet
from .vocabularies import load_numbered_classes, load_vocabulary

logger = logging.getLogger(__name__)

OWN_DATA = "custom"
DEFAULT_SPLIT = "val"
LABEL_SUFFIX = re.compile(r"\.(png|tif|tiff|mat)", re.IGNORECASE)

Files = dict[str, Any]  # by stem: a path, or the `path` and the `bytes` of a part of a file
Listing = tuple[Files, Files, Iterable[str]]  # images, labels, and the stems of those in the split


def _files(folder: Path, suffix: re.Pattern[str]) -> Files:
    """The data files of a folder, neither hidden ones nor those that mmseg adds to COCO-Stuff."""
    paths: Files = {}
    for path in folder.iterdir():
        is_data = suffix.fullmatch(path.suffix) and not path.stem.endswith("_labelTrainIds")
        if not is_data or path.name.startswith("."):
            continue
        if path.stem in paths:
            raise ValueError(f"{path} and {paths[path.stem]} have the same name: which one is meant?")
        paths[path.stem] = path
    return paths


def list_pairs(images: Path, labels: Path, split: str) -> Listing:
    """All files of two folders; of PASCAL's folder with the images of all tasks those that have a label."""
    image_files, label_files = _files(images, IMAGE_SUFFIX), _files(labels, LABEL_SUFFIX)
    return image_files, label_files, label_files if images.name == "JPEGImages" else image_files | label_files


def list_ade20k_847(images: Path, labels: Path, split: str) -> Listing:
    """Images in nested folders, beside each its `*_seg.png`; the pickled index, which can run code, stays unread."""
    image_files = {path.stem: path for path in images.rglob(f"ADE_{split}_*.jpg")}
    label_files = {path.stem.removesuffix("_seg"): path for path in labels.rglob(f"ADE_{split}_*_seg.png")}
    return image_files, label_files, image_files | label_files


def list_pascal_context_59(images: Path, labels: Path, split: str) -> Listing:
    """One JSON file with the run-length encoded segments of all images."""
    segments = defaultdict(list)
    label_files = {}
    try:
        merged = json.loads(labels.read_bytes())
        for annotation in merged["annos_segmentation"]:
            segment = {"category_id": annotation["category_id"], "segmentation": annotation["segmentation"]}
            segments[annotation["image_id"]].append(segment)
        for image in merged["images"]:
            if image["phase"] == split:
                label = {"size": [image["height"], image["width"]], "segments": segments[image["image_id"]]}
                stem = Path(image["file_name"]).stem
                label_files[stem] = {"path": f"{labels}#{stem}", "bytes": json.dumps(label).encode()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{labels} is damaged, or not PASCAL-Context's JSON file: {short_error(error)}") from error
    return _files(images, IMAGE_SUFFIX), label_files, label_files


def list_pascal_context_459(images: Path, labels: Path, split: str) -> Listing:
    """A MATLAB file for each image; this package brings the list of the split's images."""
    listed = (files(__package__) / "label_maps" / f"pascal_context_{split}_ids.txt").read_text().split()
    label_files = _files(labels, LABEL_SUFFIX)
    stems = [stem for stem in listed if stem in label_files]
    if len(stems) < len(listed):  # the official preparation leaves these out too
        logger.warning("%s has labels of %d of the split's %d images", labels, len(stems), len(listed))
    return _files(images, IMAGE_SUFFIX), label_files, stems


def list_pascal_voc(images: Path, labels: Path, split: str) -> Listing:
    """`ImageSets/Segmentation/` beside the labels lists the split's images."""
    listed = labels.parent / "ImageSets" / "Segmentation" / f"{split}.txt"
    return *list_pairs(images, labels, split)[:2], listed.read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class Layout:
    """Where the images and labels of a benchmark lie below its root folder; `{split}` stands for the split."""

    benchmark: str
    images: str  # a folder
    labels: str  # a folder, or a file with all of them
    rule: str | None = None  # of `LABEL_RULES`, by which label files become class indices; `None` if they hold them
    list_files: Callable[[Path, Path, str], Listing] = list_pairs  # of images, labels and a split, without reading them

    def paths(self, root: Path, split: str) -> tuple[Path, Path]:
        """Where the images and the labels of a split are below a root folder."""
        return root / self.images.format(split=split), root / self.labels.format(split=split)

    def columns(self, root: Path, split: str) -> dict[str, list[Any]]:
        """The images, labels and file names of a split, in the order of the names."""
        images, labels = self.paths(root, split)
        if missing := [str(path) for path in dict.fromkeys((images, labels)) if not path.exists()]:
            raise FileNotFoundError(f"expected {' and '.join(missing)}")
        image_files, label_files, listed = self.list_files(images, labels, split)
        stems = sorted(listed)
        if not stems:
            of_split = split and f" of the split {split}"
            raise FileNotFoundError(f"found no image{of_split} in {images} that has a label in {labels}")
        for kind, folder, found in (("images", images, image_files), ("labels (PNG or TIFF)", labels, label_files)):
            if missing := [stem for stem in stems if stem not in found]:
                raise FileNotFoundError(f"expected the {kind} in {folder}; missing: {some(missing, 3)}")
        return {
            "image": [str(image_files[stem]) for stem in stems],
            "label": [label_files[stem] for stem in stems],
            "file_name": [image_files[stem].name for stem in stems],
        }


LAYOUTS = (
    Layout("coco_stuff_171", "images/{split}2017", "stuffthingmaps/{split}2017", "coco_stuff_171"),
    Layout("coco_stuff_171", "images/{split}2017", "annotations/{split}2017", "coco_stuff_171"),
    Layout("coco_stuff_171", "{split}2017", "stuffthingmaps/{split}2017", "coco_stuff_171"),
    Layout("ade20k_150", "images/validation", "annotations/validation", "ade20k_150"),
    Layout("ade20k_847", "images/ADE/validation", "images/ADE/validation", "ade20k_847", list_ade20k_847),
    Layout("pascal_context_59", "JPEGImages", "trainval_merged.json", "pascal_context_59", list_pascal_context_59),
    Layout("pascal_context_459", "JPEGImages", "trainval", "pascal_context_459", list_pascal_context_459),
    Layout("pascal_voc_20", "JPEGImages", "SegmentationClassAug", "pascal_voc_20", list_pascal_voc),
    Layout("pascal_voc_20b", "JPEGImages", "SegmentationClassAug", "pascal_voc_20b", list_pascal_voc),
    # As Detectron2's scripts leave them.
    Layout("coco_stuff_171", "images/{split}2017", "annotations_detectron2/{split}2017"),
    Layout("coco_stuff_171", "{split}2017", "stuffthingmaps_detectron2/{split}2017"),
    Layout("ade20k_150", "images/validation", "annotations_detectron2/validation"),
    Layout("ade20k_847", "images_detectron2/validation", "annotations_detectron2/validation"),
    Layout("pascal_context_59", "JPEGImages", "annotations_detectron2/pc59_val"),
    Layout("pascal_context_459", "JPEGImages", "annotations_detectron2/pc459_val", "pascal_context_459_detectron2"),
    Layout("pascal_voc_20", "JPEGImages", "annotations_detectron2/val"),
    Layout("pascal_voc_20b", "JPEGImages", "annotations_detectron2_bg/val"),
    Layout(OWN_DATA, "images/{split}", "masks/{split}"),
    Layout(OWN_DATA, "images/{split}", "labels/{split}"),
)


@dataclass(frozen=True)
class BenchmarkInfo:
    """What there is to know about a benchmark without its data."""

    title: str  # what papers call it
    homepage: str  # the page of its download, or the file
    roots: tuple[str, ...]  # the names of its root folder, as paths within the folder that holds all data sets
    splits: tuple[str, ...] = (DEFAULT_SPLIT,)
    ignore_index: int = IGNORE_8_BIT  # the label of pixels that count nowhere
    background_index: int | None = None  # see `SegmentationMap`


_COCO = ("coco-stuff", "coco_stuff", "cocostuff", "coco")
_ADE20K = "https://groups.csail.mit.edu/vision/datasets/ADE20K/"
_CONTEXT_59 = "https://codalabuser.blob.core.windows.net/public/trainval_merged.json"
_CONTEXT_459 = "https://roozbehm.info/pascal-context/trainval.tar.gz"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
_VOC_2010, _VOC_2012 = ("VOCdevkit/VOC2010", "VOC2010"), ("VOCdevkit/VOC2012", "VOC2012")

BENCHMARKS = {
    "coco_stuff_171": BenchmarkInfo("COCO-Stuff", "https://github.com/nightrome/cocostuff", _COCO, ("train", "val")),
    "ade20k_150": BenchmarkInfo("A-150", "http://sceneparsing.csail.mit.edu/", ("ADEChallengeData2016",)),
    "ade20k_847": BenchmarkInfo("A-847", _ADE20K, ("ADE20K_2021_17_01",), ignore_index=IGNORE_16_BIT),
    "pascal_context_59": BenchmarkInfo("PC-59", _CONTEXT_59, _VOC_2010),
    "pascal_context_459": BenchmarkInfo("PC-459", _CONTEXT_459, _VOC_2010, ignore_index=IGNORE_16_BIT),
    "pascal_voc_20": BenchmarkInfo("PAS-20", _VOC, _VOC_2012),
    "pascal_voc_20b": BenchmarkInfo("PAS-20b", _VOC, _VOC_2012, background_index=20),
}


def benchmark_info(name: str) -> BenchmarkInfo:
    """The description of a benchmark."""
    if name not in BENCHMARKS:
        raise ValueError(
            f"unknown benchmark {name!r}: expected one of {', '.join(BENCHMARKS)}, or {OWN_DATA!r} for data of your own"
        )
    return BENCHMARKS[name]


def load_benchmark(
    name: str,
    data_dir: str | PathLike[str],
    split: str | None = None,
    *,
    streaming: bool = False,
    default_split: str = DEFAULT_SPLIT,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a benchmark as downloaded, as Detectron2's scripts leave it, or as `scripts/prepare_dataset.py` writes it.

    Each example has an `image` (RGB), a `label` (a greyscale image of class indices, of the image's size) and a
    `file_name`, decoded when they are read.

    Args:
        name: One of [`BENCHMARKS`], or `"custom"` for data of your own: a folder with `images/`, `masks/` (or
            `labels/`) of the same file names, whose pixels are class indices, and `classes.txt` or `classes.json`.
        data_dir: The root folder of the data set, or the folder that contains it. For Parquet files also an address
            that fsspec understands, such as `hf://datasets/USER/REPO`.
        split: `"train"` or `"val"`; for data of your own the name of a folder inside `images/` and `masks/`.
        streaming: Return a `datasets.IterableDataset`, which reads Parquet files without copying them into the cache.
        default_split: The split if none is stated. Of your own data without such a folder, the files themselves; in
            Parquet files without it, the other of `"train"` and `"val"`.

    Raises:
        ValueError: The name, the split or the class list is wrong; or, when an example is read, its files are damaged,
            or its label holds values outside the class range.
        FileNotFoundError: A file or folder is missing; the message names it, and the page to download it from.
    """
    if name != OWN_DATA:
        benchmark_info(name)
    splits = [split or default_split]
    if name == OWN_DATA and split is None:
        splits += ["train", "val"]
    dataset = read_parquet(name, data_dir, splits, streaming=streaming)
    if dataset is not None:
        return dataset
    dataset = load_raw(name, data_dir, split, default_split)
    # The parts of a stream are for the workers of a data loader.
    return dataset.to_iterable_dataset(num_shards=min(64, len(dataset))) if streaming else dataset


def load_raw(
    name: str, data_dir: str | PathLike[str], split: str | None = None, default_split: str = DEFAULT_SPLIT
) -> datasets.Dataset:
    """Load a benchmark or own data from images and labels only; see [`load_benchmark`]."""
    data_dir = Path(data_dir).absolute()  # the data set outlives a change of the working directory
    if name == OWN_DATA:
        has_splits = (data_dir / "images" / default_split).is_dir()
        folder, roots, hint = split or (default_split if has_splits else ""), [data_dir], "see docs/data.md"
    else:
        info, folder = benchmark_info(name), split or default_split
        if folder not in info.splits:
            raise ValueError(f"{name} has no split {folder!r}: expected {' or '.join(info.splits)}")
        roots = [*(data_dir / root for root in info.roots), data_dir]
        hint = f"the data folder {data_dir} must be, or hold, {info.roots[0]}: see docs/data.md and {info.homepage}"
    roots = [root for root in roots if root.is_dir()] or roots
    places = [(root, layout) for root in roots for layout in LAYOUTS if layout.benchmark == name]
    found = (place for place in places if all(path.exists() for path in place[1].paths(place[0], folder)))
    root, layout = next(found, places[0])
    try:
        columns = layout.columns(root, folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: {error}; {hint}") from error
    label = (
        _own_labels(root)
        if name == OWN_DATA
        else SegmentationMap(
            names=load_vocabulary(name),
            ignore_index=info.ignore_index,
            background_index=info.background_index,
            rule=layout.rule,
        )
    )
    image = SegmentationImage(shortest_side=LABEL_RULES[layout.rule].shortest_side if layout.rule else None)
    features = datasets.Features(image=image, label=label, file_name=datasets.Value("string"))
    return datasets.Dataset.from_dict(columns, features, split=datasets.NamedSplit(folder or DEFAULT_SPLIT))


def _own_labels(folder: Path) -> SegmentationMap:
    """The label maps of a user's own data, whose classes a file in the folder lists."""
    class_lists = [folder / "classes.json", folder / "classes.txt"]
    found = [path for path in class_lists if path.is_file()]
    if not found:
        raise FileNotFoundError(f"expected the class names in {' or '.join(map(str, class_lists))}")
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1].name} both list the classes: remove one of them")
    ids, names = zip(*load_numbered_classes(found[0]), strict=True)
    if ids != tuple(range(len(ids))):
        raise ValueError(
            f"{found[0]}: expected the ids 0 to {len(ids) - 1}, as masks hold them; got {min(ids)} to {max(ids)}"
        )
    ignore_index = IGNORE_8_BIT if len(names) <= IGNORE_8_BIT else IGNORE_16_BIT
    return SegmentationMap(names=list(names), ignore_index=ignore_index)
