"""The images of any data set: of a folder, Parquet files, WebDataset shards or the Hub; and reading in processes."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader, Dataset

from ..utils import HUB_NAME, IMAGE_SUFFIX, some

logger = logging.getLogger(__name__)

BUILDERS = {"parquet": "parquet", "tar": "webdataset"}  # of `datasets`, by ending
# What a data set of the Hub may be read from: none of its rows can ask for a file of this machine.
HUB_FILE = re.compile(r"(zip://[^:]*::)?hf://")
MAX_WORKERS = 4


@dataclass(frozen=True)
class ImageSource:
    """Iterates over names and images: the bytes of a file, its path, or `None` where a row holds no image.

    Attributes:
        images: A list of relative paths in `root`, or a stream of rows.
        num_images: `None` if that is not known before the end.
        identity: Hash of the file names; of a data set on the Hub with its revision.
    """

    images: list[str] | datasets.IterableDataset
    num_images: int | None
    identity: str
    root: Path | None = None
    column: str | None = None

    def __iter__(self) -> Iterator[tuple[str, bytes | Path | str | None]]:
        if isinstance(self.images, list):
            for name in self.images:
                yield name, (self.root or Path()) / name
            return
        for row in self.images:
            image = row[self.column]
            image = image if isinstance(image, dict) else {"bytes": image}
            path, content = image.get("path") or "", image.get("bytes")
            if content is None and path and (self.root or HUB_FILE.match(path)):
                content = Path(path) if self.root else path
            yield path, content


def open_images(data: str | Path, split: str = "train", column: str | None = None) -> ImageSource:
    """Open the images of a folder, with its folders, of Parquet files, of WebDataset shards, or of the Hub (streamed).

    By default their column is the only one that holds images, or the one called "image".
    """
    root = Path(data)
    if not root.exists():
        name = str(data).removeprefix("hf://datasets/")
        if not HUB_NAME.fullmatch(name):
            raise FileNotFoundError(f"{data}: no such folder; expected one, a file, or OWNER/NAME on the Hub")
        builder = datasets.load_dataset_builder(name)
        return _open_stream(builder, split, column, list(map(str, (builder.config.data_files or {}).get(split, []))))
    kinds: dict[str, list[str]] = {"image": [], **{kind: [] for kind in BUILDERS}}
    others: Counter[str] = Counter()
    for file in [root.name] if root.is_file() else _files(root):
        suffix = Path(file).suffix.lower()
        kind = "image" if IMAGE_SUFFIX.fullmatch(suffix) else suffix.removeprefix(".")
        if kind in kinds:
            kinds[kind].append(file)
        else:
            others[suffix or "without ending"] += 1
    root = root.parent if root.is_file() else root
    found = [kind for kind, files in kinds.items() if files]
    if len(found) != 1:
        message = f"{data}: expected images, Parquet or tar files, of one kind; got {' and '.join(found) or 'none'}"
        raise ValueError(message) if found else FileNotFoundError(message)
    if others:
        names = some(f"{count} {suffix}" for suffix, count in others.items())
        logger.warning("%s: %d files are left out, by their names (%s)", data, others.total(), names)
    files = kinds[found[0]]
    if found == ["image"]:
        return ImageSource(files, len(files), _hash(files), root)
    paths = [escape(str(root / file)) for file in files]
    builder = datasets.load_dataset_builder(BUILDERS[found[0]], data_files={"train": paths})
    return _open_stream(builder, "train", column, files, root)


def _files(folder: Path) -> list[str]:
    """The files of a folder and its folders, linked ones too, but for hidden ones, in the order of their names.

    Each folder is read once, by the first name that leads to it.
    """
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        is_new = os.path.realpath(parent) not in seen
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if is_new and name[0] != ".")
        names = [name for name in names if is_new and name[0] != "."]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in names]
    return sorted(found)


def _open_stream(
    builder: datasets.DatasetBuilder, split: str, column: str | None, files: list[str], root: Path | None = None
) -> ImageSource:
    stream = builder.as_streaming_dataset(split=split)
    features = stream._resolve_features().features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    takes = [*images, *(name for name, feature in features.items() if feature == datasets.Value("binary"))]
    if column is None:
        column = "image" if "image" in images else images[0] if len(images) == 1 else None
    if column not in takes:
        columns = ", ".join(f"{name} ({getattr(feature, 'dtype', feature)})" for name, feature in features.items())
        raise ValueError(f"expected one column of images (--image-column), got {column}; there are {columns:.300}")
    stream = stream.select_columns([column])
    if column in images:
        stream = stream.cast_column(column, datasets.Image(decode=False))
    num_images = (builder.info.splits or {}).get(split)
    return ImageSource(stream, num_images and num_images.num_examples, _hash(files), root, column)


def _hash(names: list[str]) -> str:
    return sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def read_batches(
    batches: Iterable[list[Any]], read: Callable[[Any], Any], num_workers: int | None = None
) -> DataLoader:
    """For each batch of rows, which may be a stream, the list of what `read` makes of them, in worker processes.

    By default there are up to 4 workers; with 0, this process reads.
    """
    return DataLoader(
        _Reading(read),
        batch_sampler=batches,
        num_workers=min(MAX_WORKERS, os.cpu_count() or 1) if num_workers is None else num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # without one, the loader would draw from training's random state
    )


@dataclass(frozen=True)
class _Reading(Dataset[Any]):
    """Takes rows themselves as the indices of a data loader."""

    read: Callable[[Any], Any]

    def __getitem__(self, row: Any) -> Any:
        return self.read(row)
