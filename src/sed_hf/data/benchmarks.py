"""The benchmarks SED is trained and evaluated on, and a user's own data, as `datasets.Dataset`.

    dataset = load_benchmark("ade20k_150", "/data")
    dataset[0]["image"]                       # PIL image, RGB
    dataset[0]["label"]                       # PIL image of the same size: class indices and the ignore index
    dataset.features["label"].names           # the class names
    dataset.features["label"].ignore_index    # 255

Rules for the labels: section 9 of the specification, in `raw_labels`. Folders: `docs/data.md`.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import datasets

from .features import SegmentationImage, SegmentationMap
from .parquet import read_parquet
from .raw_labels import IGNORE_8_BIT, IGNORE_16_BIT
from .raw_layouts import (
    Layout,
    RawExample,
    find_layout,
    list_ade20k_847,
    list_pascal_context_59,
    list_pascal_context_459,
    list_pascal_voc,
    pair_labelled,
)
from .vocabularies import load_numbered_classes, load_vocabulary

OWN_DATA = "custom"
"""The name under which `load_benchmark` reads a user's own data."""

DEFAULT_SPLIT = "val"


@dataclass(frozen=True)
class BenchmarkInfo:
    """What there is to know about a benchmark without its data.

    Attributes:
        name: The name for `load_benchmark`, and that of its vocabulary.
        title: What papers call it.
        homepage: The page of its download, or the file.
        roots: The names of the download's root folder, as paths within the folder that holds all data sets.
        layouts: How files lie below the root folder: as downloaded, and as Detectron2's scripts leave them.
        splits: The splits it can be read in.
        ignore_index: The label of pixels that count nowhere.
        background_index: The label of background where it is a class by itself, see [`SegmentationMap`].
        skips_unlabelled: Whether images without any labelled pixel are left out.
    """

    name: str
    title: str
    homepage: str
    roots: tuple[str, ...]
    layouts: tuple[Layout, ...]
    splits: tuple[str, ...] = (DEFAULT_SPLIT,)
    ignore_index: int = IGNORE_8_BIT
    background_index: int | None = None
    skips_unlabelled: bool = False

    def features(self, layout: Layout) -> datasets.Features:
        """The columns of its data sets, read from a layout."""
        label = SegmentationMap(
            names=load_vocabulary(self.name),
            ignore_index=self.ignore_index,
            background_index=self.background_index,
            rule=layout.rule,
            shortest_side=layout.shortest_side,
        )
        return _features(SegmentationImage(shortest_side=layout.shortest_side), label)


def _pascal_voc(name: str, title: str, detectron2_labels: str, background_index: int | None = None) -> BenchmarkInfo:
    return BenchmarkInfo(
        name,
        title,
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        roots=("VOCdevkit/VOC2012", "VOC2012"),
        layouts=(
            Layout("JPEGImages", "SegmentationClassAug", list_pascal_voc, name),
            Layout("JPEGImages", detectron2_labels, pair_labelled),
        ),
        background_index=background_index,
        skips_unlabelled=True,
    )


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        BenchmarkInfo(
            "coco_stuff_171",
            "COCO-Stuff",
            "https://github.com/nightrome/cocostuff",
            roots=("coco-stuff", "coco_stuff", "cocostuff", "coco"),
            layouts=(
                Layout("images/{split}2017", "stuffthingmaps/{split}2017", rule="coco_stuff_171"),
                Layout("images/{split}2017", "annotations/{split}2017", rule="coco_stuff_171"),
                Layout("{split}2017", "stuffthingmaps/{split}2017", rule="coco_stuff_171"),
                Layout("images/{split}2017", "annotations_detectron2/{split}2017"),
                Layout("{split}2017", "stuffthingmaps_detectron2/{split}2017"),
            ),
            splits=("train", "val"),
        ),
        BenchmarkInfo(
            "ade20k_150",
            "A-150",
            "http://sceneparsing.csail.mit.edu/",
            roots=("ADEChallengeData2016",),
            layouts=(
                Layout("images/validation", "annotations/validation", rule="ade20k_150"),
                Layout("images/validation", "annotations_detectron2/validation"),
            ),
        ),
        BenchmarkInfo(
            "ade20k_847",
            "A-847",
            "https://groups.csail.mit.edu/vision/datasets/ADE20K/",
            roots=("ADE20K_2021_17_01",),
            layouts=(
                Layout("images/ADE/validation", "images/ADE/validation", list_ade20k_847, "ade20k_847", 512),
                Layout("images_detectron2/validation", "annotations_detectron2/validation"),
            ),
            ignore_index=IGNORE_16_BIT,
        ),
        BenchmarkInfo(
            "pascal_context_59",
            "PC-59",
            "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
            roots=("VOCdevkit/VOC2010", "VOC2010"),
            layouts=(
                Layout("JPEGImages", "trainval_merged.json", list_pascal_context_59, "pascal_context_59"),
                Layout("JPEGImages", "annotations_detectron2/pc59_val", pair_labelled),
            ),
        ),
        BenchmarkInfo(
            "pascal_context_459",
            "PC-459",
            "https://roozbehm.info/pascal-context/trainval.tar.gz",
            roots=("VOCdevkit/VOC2010", "VOC2010"),
            layouts=(
                Layout("JPEGImages", "trainval", list_pascal_context_459, "pascal_context_459"),
                Layout(
                    "JPEGImages", "annotations_detectron2/pc459_val", pair_labelled, "pascal_context_459_detectron2"
                ),
            ),
            ignore_index=IGNORE_16_BIT,
        ),
        _pascal_voc("pascal_voc_20", "PAS-20", "annotations_detectron2/val"),
        _pascal_voc("pascal_voc_20b", "PAS-20b", "annotations_detectron2_bg/val", background_index=20),
    )
}

OWN_LAYOUTS = (Layout("images/{split}", "masks/{split}"), Layout("images/{split}", "labels/{split}"))


def benchmark_info(name: str) -> BenchmarkInfo:
    """The description of a benchmark.

    Raises:
        ValueError: There is no benchmark of that name.
    """
    if name not in BENCHMARKS:
        raise ValueError(
            f"unknown benchmark {name!r}: expected one of {', '.join(BENCHMARKS)}, or {OWN_DATA!r} for data of your own"
        )
    return BENCHMARKS[name]


def load_benchmark(
    name: str, data_dir: str | PathLike[str], split: str | None = None, *, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a benchmark as downloaded, as Detectron2's scripts leave it, or as `scripts/prepare_dataset.py` writes it.

    Each example has an `image` (RGB), a `label` (a greyscale image of class indices, of the image's size) and a
    `file_name`. All decode when they are read. `dataset.features["label"]` is a [`SegmentationMap`], which knows the
    class names and the ignore index.

    Args:
        name: One of [`BENCHMARKS`], or `"custom"` for data of your own: a folder with `images/`, `masks/` (or
            `labels/`) of the same file names, whose pixels are class indices, and `classes.txt` or `classes.json`.
        data_dir: The root folder of the data set, or the folder that contains it. For Parquet files also an address
            that fsspec understands, such as `hf://datasets/USER/REPO`.
        split: `"train"` or `"val"`; by default `"val"`. For data of your own the name of a folder inside `images/`
            and `masks/`; by default their files themselves.
        streaming: Return a `datasets.IterableDataset`, which reads Parquet files without copying them into the cache.

    Images of PASCAL VOC without any labelled pixel are left out of Parquet files and of streams. A `datasets.Dataset`
    of the download keeps them, since it would have to read every label to know them; they change no score.

    Raises:
        ValueError: The name, the split or the class list is wrong; or, when an example is read, its files are damaged,
            or its label holds values outside the class range.
        FileNotFoundError: A file or folder is missing; the message names it, and the page to download it from.
    """
    if name != OWN_DATA:
        benchmark_info(name)
    dataset = read_parquet(name, data_dir, split or DEFAULT_SPLIT, streaming=streaming)
    if dataset is None:
        dataset = load_raw(name, Path(data_dir), split)
        dataset = _stream(dataset, name) if streaming else dataset
    if name in BENCHMARKS:
        dataset.info.description = f"{BENCHMARKS[name].title}, prepared for SED as `{name}`."
        dataset.info.homepage = BENCHMARKS[name].homepage
    return dataset


def load_raw(name: str, data_dir: Path, split: str | None = None) -> datasets.Dataset:
    """Load a benchmark from its images and labels, or a user's own data; see [`load_benchmark`]."""
    data_dir = data_dir.absolute()  # the data set outlives a change of the working directory
    if name == OWN_DATA:
        root, layout = find_layout(OWN_LAYOUTS, [data_dir], split or "")
        return _dataset(layout.read(root, split or ""), _own_features(root), split or DEFAULT_SPLIT)

    benchmark = benchmark_info(name)
    split = split or DEFAULT_SPLIT
    if split not in benchmark.splits:
        raise ValueError(f"{name} has no split {split!r}: expected {' or '.join(benchmark.splits)}")
    roots = [*(data_dir / root for root in benchmark.roots), data_dir]
    root, layout = find_layout(benchmark.layouts, roots, split)
    try:
        examples = layout.read(root, split)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: {error}. The data folder {data_dir} must be, or hold, {benchmark.roots[0]}:"
            f" see docs/data.md and {benchmark.homepage}"
        ) from error
    return _dataset(examples, benchmark.features(layout), split)


def _stream(dataset: datasets.Dataset, name: str) -> datasets.IterableDataset:
    # A stream is dealt out to the workers of a data loader by shards, so there must be some.
    stream = dataset.to_iterable_dataset(num_shards=min(64, len(dataset)))
    if name in BENCHMARKS and BENCHMARKS[name].skips_unlabelled:
        stream = stream.filter(dataset.features["label"].has_labelled_pixel, input_columns=["label"])
    return stream


def _own_features(data_dir: Path) -> datasets.Features:
    class_lists = [data_dir / "classes.json", data_dir / "classes.txt"]
    found = [path for path in class_lists if path.is_file()]
    if not found:
        raise FileNotFoundError(f"expected the class names in {' or '.join(map(str, class_lists))}")
    ids, names = zip(*load_numbered_classes(found[0]), strict=True)
    if ids != tuple(range(len(ids))):
        raise ValueError(
            f"{found[0]}: expected the ids 0 to {len(ids) - 1}, as masks hold them; got {min(ids)} to {max(ids)}"
        )
    ignore_index = IGNORE_8_BIT if len(names) <= IGNORE_8_BIT else IGNORE_16_BIT
    return _features(SegmentationImage(), SegmentationMap(names=list(names), ignore_index=ignore_index))


def _features(image: SegmentationImage, label: SegmentationMap) -> datasets.Features:
    return datasets.Features(image=image, label=label, file_name=datasets.Value("string"))


def _dataset(examples: list[RawExample], features: datasets.Features, split: str) -> datasets.Dataset:
    columns = {
        "image": [str(example.image) for example in examples],
        "label": [{"path": example.label, "bytes": example.label_bytes} for example in examples],
        "file_name": [example.image.name for example in examples],
    }
    return datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))
