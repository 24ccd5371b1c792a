"""The prepared form of a benchmark: a folder of Parquet files that the Hub and `datasets.load_dataset` read as well.

    README.md
    data/val-00000-of-00004.parquet ...

Images and labels lie in the files as they decode, labels as 8 or 16-bit PNG of class indices. Each file carries the
names of the benchmark and its classes, and the ignore index, as JSON in its schema's metadata under [`METADATA_KEY`].
"""

import json
from collections.abc import Iterator
from glob import escape
from hashlib import sha256
from os import PathLike, fspath
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from ..utils import require_file, short_error
from .features import SegmentationImage, SegmentationMap
from .raw_labels import IGNORE_8_BIT, IGNORE_16_BIT

METADATA_KEY = b"sed_hf"
ROWS_AT_A_TIME = 50  # of a stream: some 10 MB

# `datasets`' own types: whoever reads the files without this package gets images too.
FEATURES = datasets.Features(
    image=datasets.Image(mode="RGB"), label=datasets.Image(), file_name=datasets.Value("string")
)


METADATA_TYPES: dict[str, tuple[type, ...]] = {
    "benchmark": (str,),
    "names": (list,),
    "ignore_index": (int,),
    "background_index": (int, type(None)),
    "split": (str,),
    "files_sha256": (str,),
}


def shard_name(split: str, index: int, num_shards: int) -> str:
    """The path of a shard inside its folder, by the Hub's convention."""
    return f"data/{split}-{index:05d}-of-{num_shards:05d}.parquet"


def shard_metadata(benchmark: str, dataset: datasets.Dataset) -> dict[str, Any]:
    """What each shard says of the raw split that it is a part of."""
    label: SegmentationMap = dataset.features["label"]
    return {
        "benchmark": benchmark,
        "names": label.names,
        "ignore_index": label.ignore_index,
        "background_index": label.background_index,
        "split": str(dataset.split),
        "files_sha256": sha256("\n".join(dataset["file_name"]).encode()).hexdigest(),
    }


def read_shard_metadata(filesystem: AbstractFileSystem, shard: str) -> dict[str, Any]:
    """What a shard says of the raw split that it is a part of: the counterpart of [`shard_metadata`].

    Raises:
        ValueError: The file is no shard of a prepared benchmark.
    """
    if isinstance(filesystem, LocalFileSystem):
        require_file(shard)
    try:
        with filesystem.open(shard, "rb") as file:
            schema = pq.read_schema(file)
        if METADATA_KEY not in (schema.metadata or {}):
            raise ValueError("it does not name its classes")
        if not schema.remove_metadata().equals(FEATURES.arrow_schema.remove_metadata()):
            raise ValueError(f"expected the columns {', '.join(FEATURES)} of pictures, labels and names")
        return _checked_metadata(json.loads(schema.metadata[METADATA_KEY]))
    except (OSError, ValueError, TypeError, NotImplementedError, RecursionError, pa.ArrowException) as error:
        raise ValueError(f"{shard} was not written by scripts/prepare_dataset.py: {short_error(error)}") from error


def _checked_metadata(metadata: Any) -> dict[str, Any]:
    """The metadata, if it is what [`shard_metadata`] gives."""
    if not isinstance(metadata, dict) or set(metadata) != METADATA_TYPES.keys():
        raise ValueError(f"its metadata: expected {', '.join(METADATA_TYPES)}")
    for key, types in METADATA_TYPES.items():
        if type(metadata[key]) not in types:
            raise ValueError(f"its metadata: {key} is {metadata[key]!r:.80}")
    names = metadata["names"]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("its metadata: expected class names")
    if metadata["ignore_index"] not in (IGNORE_8_BIT, IGNORE_16_BIT) or len(names) > metadata["ignore_index"]:
        raise ValueError(f"its metadata: ignore_index is {metadata['ignore_index']} of {len(names)} classes")
    if metadata["background_index"] is not None and not 0 <= metadata["background_index"] <= len(names):
        raise ValueError(f"its metadata: background_index is {metadata['background_index']}")
    return metadata


def read_parquet(
    benchmark: str, data_dir: str | PathLike[str], split: str, *, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset | None:
    """Read a prepared benchmark from `data_dir` or from the folder in it that has the benchmark's name.

    Returns:
        The data set, or `None` if `data_dir` is a local folder without Parquet files of the split.

    Raises:
        FileNotFoundError: A remote folder has no Parquet files of the split.
        ValueError: The files belong to another benchmark, or some of them are missing.
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
    stated = shards[0].rpartition("-of-")[2].removesuffix(".parquet")
    num_shards = int(stated) if stated.isdecimal() else 0
    if len(shards) != num_shards:
        raise ValueError(
            f"{folder}/data holds {len(shards)} of the {num_shards} files of the split {split}:"
            " run scripts/prepare_dataset.py again to complete it"
        )

    urls = [filesystem.unstrip_protocol(shard) for shard in shards]
    dataset = _stream(urls, split) if streaming else _load(urls, split)
    label = SegmentationMap(
        names=metadata["names"], ignore_index=metadata["ignore_index"], background_index=metadata["background_index"]
    )
    return dataset.cast_column("image", SegmentationImage()).cast_column("label", label)


def _load(urls: list[str], split: str) -> datasets.Dataset:
    """All rows, in the cache of `datasets`."""
    try:
        files = {split: [escape(url) for url in urls]}
        dataset = datasets.load_dataset("parquet", data_files=files, split=split, features=FEATURES)
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{urls[0]} or a file beside it is damaged: {short_error(error.__cause__ or error)}"
        ) from error
    for column in ("image", "label"):
        _require_contents(dataset.data.column(column), urls[0])
    return dataset


def _stream(urls: list[str], split: str) -> datasets.IterableDataset:
    """The rows as they are read."""
    return datasets.IterableDataset.from_generator(
        _read_rows, features=FEATURES, gen_kwargs={"urls": urls}, split=datasets.NamedSplit(split)
    )


def _read_rows(urls: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of some shards.

    Raises:
        ValueError: One is damaged; the message names it.
    """
    for url in urls:
        try:
            with fsspec.open(url, "rb") as file:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_AT_A_TIME):
                    for column in ("image", "label"):
                        _require_contents(batch.column(column), url)
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{url} is damaged: {short_error(error)}") from error


def _require_contents(pictures: pa.Array | pa.ChunkedArray, url: str) -> None:
    """Refuse rows that name a file in place of holding a picture: it would be one of the reader's own."""
    if pc.any(pc.is_null(pc.struct_field(pictures, "bytes"))).as_py():
        raise ValueError(f"{url} or a file beside it has rows without a picture or a label")
