"""The prepared form of a benchmark: a folder of Parquet files that the Hub and `datasets.load_dataset` read as well.

    README.md
    data/val-00000-of-00004.parquet ...

Images and labels lie in the files as they decode, labels as 8 or 16-bit PNG of class indices. Each file carries the
names of the benchmark and its classes, and the ignore index, as JSON in its schema's metadata under [`METADATA_KEY`].
"""

import json
from glob import escape
from os import PathLike, fspath
from typing import Any

import datasets
import fsspec
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from ..utils import short_error
from .features import SegmentationImage, SegmentationMap

METADATA_KEY = b"sed_hf"
FORMAT = 2  # 1 scaled the longest side of A-847 to 512 pixels

# `datasets`' own types: whoever reads the files without this package gets images too.
FEATURES = datasets.Features(
    image=datasets.Image(mode="RGB"), label=datasets.Image(), file_name=datasets.Value("string")
)


def shard_name(split: str, index: int, num_shards: int) -> str:
    """The path of a shard inside its folder, by the Hub's convention."""
    return f"data/{split}-{index:05d}-of-{num_shards:05d}.parquet"


def read_shard_metadata(filesystem: AbstractFileSystem, shard: str) -> dict[str, Any]:
    """What a shard says of the benchmark and the split that it is a part of.

    Raises:
        ValueError: The file is not a shard of a prepared benchmark, or one of an older version.
    """
    try:
        with filesystem.open(shard, "rb") as file:
            metadata = json.loads(pq.read_schema(file).metadata[METADATA_KEY])
    except (ValueError, KeyError, TypeError) as error:  # Arrow's errors are ValueErrors
        raise ValueError(f"{shard} was not written by scripts/prepare_dataset.py: {short_error(error)}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{shard} was written by another version of sed-hf: prepare the data again")
    return metadata


def read_parquet(
    benchmark: str, data_dir: str | PathLike[str], split: str, *, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset | None:
    """Read a prepared benchmark from `data_dir` or from the folder in it that has the benchmark's name.

    Returns:
        The data set, or `None` if `data_dir` is a local folder without Parquet files of the split.

    Raises:
        FileNotFoundError: A remote folder has no Parquet files of the split.
        ValueError: The files belong to another benchmark, are damaged, or some of them are missing.
    """
    filesystem, root = fsspec.core.url_to_fs(fspath(data_dir))
    for folder in (f"{root}/{benchmark}", root):
        shards = sorted(filesystem.glob(f"{escape(folder)}/data/{split}-*-of-*.parquet"))
        if shards:
            break
    else:
        if isinstance(filesystem, LocalFileSystem):
            return None
        raise FileNotFoundError(f"found no data/{split}-*.parquet in {data_dir}")

    metadata = read_shard_metadata(filesystem, shards[0])
    if metadata["benchmark"] != benchmark:
        raise ValueError(f"{folder} holds the benchmark {metadata['benchmark']}, not {benchmark}")
    num_shards = int(shards[0].rpartition("-of-")[2].removesuffix(".parquet"))
    if len(shards) != num_shards:
        raise ValueError(
            f"{folder}/data holds {len(shards)} of the {num_shards} files of the split {split}:"
            " run scripts/prepare_dataset.py again to complete it"
        )
    urls = [escape(filesystem.unstrip_protocol(shard)) for shard in shards]
    try:
        dataset = datasets.load_dataset(
            "parquet", data_files={split: urls}, split=split, features=FEATURES, streaming=streaming
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{folder}/data has a damaged file: {short_error(error.__cause__ or error)}") from error
    label = SegmentationMap(
        names=metadata["names"], ignore_index=metadata["ignore_index"], background_index=metadata["background_index"]
    )
    return dataset.cast_column("image", SegmentationImage()).cast_column("label", label)
