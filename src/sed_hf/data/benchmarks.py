"""The benchmarks SED is trained and evaluated on, and a user's own data, as `datasets.Dataset`.

    dataset = load_benchmark("ade20k_150", "/data")
    dataset[0]["image"]                       # PIL image, RGB
    dataset[0]["label"]                       # PIL image of the same size: class indices and the ignore index
    dataset.features["label"].names           # the class names
    dataset.features["label"].ignore_index    # 255

Rules for the labels, one for each benchmark: section 9 of the specification, in `raw_labels`. Folders: `docs/data.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import datasets

from . import raw_layouts
from .features import SegmentationImage, SegmentationMap
from .parquet import read_parquet
from .raw_labels import IGNORE_8_BIT, IGNORE_16_BIT
from .raw_layouts import RawExample
from .vocabularies import load_vocabulary

OWN_DATA = "custom"
"""The name under which `load_benchmark` reads a user's own data."""

DEFAULT_SPLIT = "val"


@dataclass(frozen=True)
class BenchmarkInfo:
    """What there is to know about a benchmark without its data.

    Attributes:
        name: The name for `load_benchmark`, and that of its vocabulary.
        title: What papers call it.
        homepage: Where its download is described.
        layout: The folders and files that the unpacked download must have.
        roots: The names of the download's root folder, as paths within the folder that holds all data sets.
        list_examples: Lists the examples below the root folder.
        splits: The splits it can be read in.
        ignore_index: The label of pixels that count nowhere.
        background_index: The label of background where it is a class by itself, see [`SegmentationMap`].
        longest_side: Larger images and labels are scaled down to this many pixels; `None` keeps every size.
        skips_unlabelled: Whether images without any labelled pixel are left out.
    """

    name: str
    title: str
    homepage: str
    layout: str
    roots: tuple[str, ...]
    list_examples: Callable[[Path, str], list[RawExample]]
    splits: tuple[str, ...] = (DEFAULT_SPLIT,)
    ignore_index: int = IGNORE_8_BIT
    background_index: int | None = None
    longest_side: int | None = None
    skips_unlabelled: bool = False

    @property
    def features(self) -> datasets.Features:
        """The columns of its data sets, read from the raw download."""
        label = SegmentationMap(
            names=load_vocabulary(self.name),
            ignore_index=self.ignore_index,
            background_index=self.background_index,
            rule=self.name,
            longest_side=self.longest_side,
        )
        return _features(SegmentationImage(longest_side=self.longest_side), label)


_PASCAL_CONTEXT_HOMEPAGE = "https://www.cs.stanford.edu/~roozbeh/pascal-context/"
_PASCAL_VOC_HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
_PASCAL_VOC_LAYOUT = (
    "VOCdevkit/VOC2012/ with JPEGImages/*.jpg, SegmentationClassAug/*.png, ImageSets/Segmentation/val.txt"
)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        BenchmarkInfo(
            name="coco_stuff_171",
            title="COCO-Stuff",
            homepage="https://github.com/nightrome/cocostuff",
            layout="coco-stuff/ with images/{train2017,val2017}/*.jpg, stuffthingmaps/{train2017,val2017}/*.png",
            roots=("coco-stuff", "coco_stuff", "cocostuff", "coco"),
            list_examples=raw_layouts.list_coco_stuff,
            splits=("train", "val"),
        ),
        BenchmarkInfo(
            name="ade20k_150",
            title="A-150",
            homepage="http://sceneparsing.csail.mit.edu/",
            layout="ADEChallengeData2016/ with images/validation/*.jpg, annotations/validation/*.png",
            roots=("ADEChallengeData2016",),
            list_examples=raw_layouts.list_ade20k_150,
        ),
        BenchmarkInfo(
            name="ade20k_847",
            title="A-847",
            homepage="https://groups.csail.mit.edu/vision/datasets/ADE20K/",
            layout="ADE20K_2021_17_01/ with images/ADE/validation/**/ADE_val_*.jpg, each beside its ADE_val_*_seg.png",
            roots=("ADE20K_2021_17_01",),
            list_examples=raw_layouts.list_ade20k_847,
            ignore_index=IGNORE_16_BIT,
            longest_side=512,
        ),
        BenchmarkInfo(
            name="pascal_context_59",
            title="PC-59",
            homepage=_PASCAL_CONTEXT_HOMEPAGE,
            layout="VOCdevkit/VOC2010/ with JPEGImages/*.jpg, trainval_merged.json",
            roots=("VOCdevkit/VOC2010", "VOC2010"),
            list_examples=raw_layouts.list_pascal_context_59,
        ),
        BenchmarkInfo(
            name="pascal_context_459",
            title="PC-459",
            homepage=_PASCAL_CONTEXT_HOMEPAGE,
            layout="VOCdevkit/VOC2010/ with JPEGImages/*.jpg, trainval/*.mat",
            roots=("VOCdevkit/VOC2010", "VOC2010"),
            list_examples=raw_layouts.list_pascal_context_459,
            ignore_index=IGNORE_16_BIT,
        ),
        BenchmarkInfo(
            name="pascal_voc_20",
            title="PAS-20",
            homepage=_PASCAL_VOC_HOMEPAGE,
            layout=_PASCAL_VOC_LAYOUT,
            roots=("VOCdevkit/VOC2012", "VOC2012"),
            list_examples=raw_layouts.list_pascal_voc,
            skips_unlabelled=True,
        ),
        BenchmarkInfo(
            name="pascal_voc_20b",
            title="PAS-20b",
            homepage=_PASCAL_VOC_HOMEPAGE,
            layout=_PASCAL_VOC_LAYOUT,
            roots=("VOCdevkit/VOC2012", "VOC2012"),
            list_examples=raw_layouts.list_pascal_voc,
            background_index=20,
            skips_unlabelled=True,
        ),
    )
}


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
    """Load a benchmark from its raw download, or from the Parquet files that `scripts/prepare_dataset.py` writes.

    Each example has an `image` (RGB), a `label` (a greyscale image of class indices, of the image's size) and a
    `file_name`. All decode when they are read. `dataset.features["label"]` is a [`SegmentationMap`], which knows the
    class names and the ignore index.

    Args:
        name: One of [`BENCHMARKS`], or `"custom"` for data of your own: a folder with `images/`, `masks/` (or
            `labels/`) of the same file names, whose pixels are class indices, and `classes.txt` or `classes.json`.
        data_dir: The root folder of the data set, or the folder that contains it. For Parquet files also an address
            that fsspec understands, such as `hf://datasets/USER/REPO`.
        split: `"train"` or `"val"`; by default `"val"`. For raw data of your own the name of a folder inside `images/`
            and `masks/`; by default their files themselves.
        streaming: Return a `datasets.IterableDataset`, which reads Parquet files without copying them into the cache.

    Images of PASCAL VOC without any labelled pixel are left out of Parquet files and of streams. A `datasets.Dataset`
    of the raw download keeps them, since it would have to read every label to know them; they change no score.

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
    """Load a raw download, or raw data of a user's own; see [`load_benchmark`]."""
    data_dir = data_dir.absolute()  # the data set outlives a change of the working directory
    if name == OWN_DATA:
        return _dataset(raw_layouts.list_own_data(data_dir, split), _own_features(data_dir), split or DEFAULT_SPLIT)

    benchmark = benchmark_info(name)
    split = split or DEFAULT_SPLIT
    if split not in benchmark.splits:
        raise ValueError(f"{name} has no split {split!r}: expected {' or '.join(benchmark.splits)}")
    try:
        root = _root_folder(data_dir, benchmark.roots)
        examples = benchmark.list_examples(root, split)
        if not examples:
            raise FileNotFoundError(f"found no image of the split {split} in {root}")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: {error}. The data folder {data_dir} must be, or hold, {benchmark.layout}:"
            f" what unpacking the downloads of {benchmark.homepage} gives"
        ) from error
    return _dataset(examples, benchmark.features, split)


def _stream(dataset: datasets.Dataset, name: str) -> datasets.IterableDataset:
    # A stream is dealt out to the workers of a data loader by shards, so there must be some.
    stream = dataset.to_iterable_dataset(num_shards=min(64, len(dataset)))
    if name in BENCHMARKS and BENCHMARKS[name].skips_unlabelled:
        stream = stream.filter(dataset.features["label"].has_labelled_pixel, input_columns=["label"])
    return stream


def _root_folder(data_dir: Path, names: tuple[str, ...]) -> Path:
    nested = [data_dir / name for name in names if (data_dir / name).is_dir()]
    return nested[0] if nested else data_dir


def _own_features(data_dir: Path) -> datasets.Features:
    class_lists = [data_dir / "classes.json", data_dir / "classes.txt"]
    found = [path for path in class_lists if path.is_file()]
    if not found:
        raise FileNotFoundError(f"expected the class names in {' or '.join(map(str, class_lists))}")
    names = load_vocabulary(found[0])
    ignore_index = IGNORE_8_BIT if len(names) <= IGNORE_8_BIT else IGNORE_16_BIT
    return _features(SegmentationImage(), SegmentationMap(names=names, ignore_index=ignore_index))


def _features(image: SegmentationImage, label: SegmentationMap) -> datasets.Features:
    return datasets.Features(image=image, label=label, file_name=datasets.Value("string"))


def _dataset(examples: list[RawExample], features: datasets.Features, split: str) -> datasets.Dataset:
    columns = {
        "image": [str(example.image) for example in examples],
        "label": [_stored_label(example) for example in examples],
        "file_name": [example.image.name for example in examples],
    }
    return datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))


def _stored_label(example: RawExample) -> str | dict[str, str | bytes]:
    return example.label if example.label_bytes is None else {"path": example.label, "bytes": example.label_bytes}
