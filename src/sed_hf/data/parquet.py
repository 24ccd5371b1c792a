"""The prepared form of a benchmark: Parquet files that the Hub and `datasets.load_dataset` read as well.

Each file's schema carries, as JSON under [`METADATA_KEY`], what the file is a part of.
"""

import json
from collections.abc import Sequence
from glob import escape
from itertools import product
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from ..utils import atomic_path, short_error
from .features import SegmentationImage, SegmentationMap

METADATA_KEY = b"sed_hf"
FORMAT = 2  # 1 scaled the longest side of A-847 to 512 pixels
IMAGES_PER_ROW_GROUP = 50  # what a stream reads at a time: some 10 MB

# `datasets`' own types: whoever reads the files without this package gets images too.
FEATURES = datasets.Features(
    image=datasets.Image(mode="RGB"), label=datasets.Image(), file_name=datasets.Value("string")
)


def write_parquet(path: Path, rows: list[dict[str, Any]], metadata: dict[str, Any], **more_features: Any) -> None:
    """Write a file of rows, whose columns are [`FEATURES`] and more."""
    schema = datasets.Features({**FEATURES, **more_features}).arrow_schema
    content = json.dumps({"format": FORMAT, **metadata}).encode()
    schema = schema.with_metadata({**schema.metadata, METADATA_KEY: content})
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        if rows:  # `datasets` reads no file that begins with an empty row group
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=IMAGES_PER_ROW_GROUP)


def read_metadata(filesystem: AbstractFileSystem, path: str) -> dict[str, Any]:
    """What a file says of the benchmark and the split that it is a part of."""
    try:
        with filesystem.open(path, "rb") as file:
            metadata = json.loads(pq.read_schema(file).metadata[METADATA_KEY])
    except (ValueError, KeyError, TypeError) as error:  # Arrow's errors are ValueErrors
        raise ValueError(f"{path} was not written by scripts/prepare_dataset.py: {short_error(error)}") from error
    if metadata.pop("format", None) != FORMAT:
        raise ValueError(f"{path} was written by another version of sed-hf: prepare the data again")
    return metadata


def read_parquet(
    benchmark: str, data_dir: str | PathLike[str], splits: Sequence[str], *, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset | None:
    """The first split that is there of a benchmark in `data_dir` or its folder of the benchmark's name.

    `None` where a local one holds none.
    """
    filesystem, root = fsspec.core.url_to_fs(fspath(data_dir))
    for split, folder in product(splits, (f"{root}/{benchmark}", root)):
        if paths := sorted(filesystem.glob(f"{escape(folder)}/data/{split}-*-of-*.parquet")):
            break
    else:
        if isinstance(filesystem, LocalFileSystem):
            return None
        raise FileNotFoundError(f"found no data/{splits[0]}-*.parquet in {data_dir}")

    metadata = read_metadata(filesystem, paths[0])
    if metadata["benchmark"] != benchmark:
        raise ValueError(f"{folder} holds the benchmark {metadata['benchmark']}, not {benchmark}")
    num_files = int(paths[0].rpartition("-of-")[2].removesuffix(".parquet"))
    if len(paths) != num_files:
        raise ValueError(
            f"{folder}/data holds {len(paths)} of the {num_files} files of the split {split}:"
            " run scripts/prepare_dataset.py again to complete it"
        )
    urls = [escape(filesystem.unstrip_protocol(path)) for path in paths]
    dataset = datasets.load_dataset(
        "parquet",
        data_files={split: urls},
        split=split,
        features=FEATURES,
        columns=list(FEATURES),
        streaming=streaming,
    )
    label = SegmentationMap(**{key: metadata[key] for key in ("names", "ignore_index", "background_index")})
    return dataset.cast_column("image", SegmentationImage()).cast_column("label", label)
