"""Writing a benchmark as Parquet files, in several processes, going on where an interrupted run stopped.

A shard gets its name only when it is complete, so the shards that are there need not be written again.
"""

import json
import math
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from io import BytesIO
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import DatasetCardData, HfApi
from tqdm import tqdm

from ..utils import atomic_path, require_file
from .benchmarks import BENCHMARKS, load_raw
from .features import SegmentationMap
from .parquet import FEATURES, METADATA_KEY, read_shard_metadata, shard_metadata, shard_name

IMAGES_PER_SHARD = 250
IMAGES_PER_ROW_GROUP = 50  # what a stream reads, and a process here holds, at a time: some 10 MB


def prepare_benchmark(
    name: str, data_dir: Path, output: Path, split: str | None = None, *, num_proc: int = 1, progress: bool = True
) -> Path:
    """Write one split of a raw benchmark as Parquet files, with labels prepared.

    Pictures are embedded as their files are, unless the benchmark caps their size; labels as PNG. Shards that an
    earlier run completed are kept. Several splits may share a folder, several benchmarks may not.

    Args:
        name, data_dir, split: As for [`load_benchmark`]; raw data only.
        output: The folder to write to; [`load_benchmark`] and `datasets.load_dataset` read it.
        num_proc: The number of processes, each of which writes a shard at a time.
        progress: Show a progress bar, counting images.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: Raw files are missing.
        ValueError: A picture or label is damaged or does not fit the other, a label holds values outside the class
            range, or the folder holds shards of other data. Complete shards are kept.
    """
    dataset = load_raw(name, data_dir, split)
    metadata = shard_metadata(name, dataset)
    _require_same_source(output, metadata)

    num_shards = math.ceil(len(dataset) / IMAGES_PER_SHARD)
    shards = {
        output / shard_name(dataset.split, index, num_shards): dataset.shard(num_shards, index, contiguous=True)
        for index in range(num_shards)
    }
    todo = {path: shard for path, shard in shards.items() if not path.exists()}
    (output / "data").mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(dataset), unit="image", desc=f"{name} {dataset.split}", disable=not progress) as bar:
        bar.update(sum(len(shard) for path, shard in shards.items() if path not in todo))
        for path in _write_shards(todo, metadata, num_proc):
            bar.update(len(todo[path]))
    with atomic_path(output / "README.md") as path:
        path.write_text(_dataset_card(output, metadata), encoding="utf-8")
    return output


def push_to_hub(folder: Path, repo_id: str) -> str:
    """Upload a prepared folder to a data set repository of the Hub, made private if it is new.

    Private because the licences of most benchmarks forbid passing their images on.

    Returns:
        The address of the commit.
    """
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id, repo_type="dataset", folder_path=folder, allow_patterns=["README.md", "data/*.parquet"]
    )
    return commit.commit_url


def _require_same_source(output: Path, metadata: dict[str, Any]) -> None:
    """Refuse to mix the shards of this run with those of another benchmark or of other raw files."""
    for shard in sorted(output.glob("data/*.parquet")):
        existing = read_shard_metadata(LocalFileSystem(), str(shard))
        of_a_split = set() if existing["split"] == metadata["split"] else {"split", "files_sha256"}
        if any(existing[key] != metadata[key] for key in metadata.keys() - of_a_split):
            raise ValueError(
                f"{shard} belongs to another benchmark, or was written from other raw files or other class names:"
                " remove it, or choose another output folder"
            )


def _write_shards(shards: dict[Path, datasets.Dataset], metadata: dict[str, Any], num_proc: int) -> Iterator[Path]:
    """Write every shard to its path, and yield each path when its shard is complete."""
    if num_proc == 1:
        for path, shard in shards.items():
            yield _write_shard(shard, path, metadata)
        return
    # Spawned, because a process forked from one with threads, as Arrow and torch start them, may hang.
    others = set(active_children())
    with ProcessPoolExecutor(num_proc, mp_context=get_context("spawn"), initializer=_end_with_parent) as executor:
        try:
            with _interrupts_kept_from_children():
                jobs = [executor.submit(_write_shard, shard, path, metadata) for path, shard in shards.items()]
            for job in as_completed(jobs):
                yield job.result()
        except BaseException as error:
            for process in set(active_children()) - others:
                process.terminate()
            executor.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise OSError(
                    f"num_proc={num_proc}: a process was killed while it wrote a shard, perhaps for want of memory;"
                    " the shards that are complete are kept"
                ) from error
            raise


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, even if that is killed."""

    def wait() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all processes, from those that are started meanwhile.

    They inherit that it is blocked, and this process ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _write_shard(examples: datasets.Dataset, path: Path, metadata: dict[str, Any]) -> Path:
    schema = FEATURES.arrow_schema
    schema = schema.with_metadata({**schema.metadata, METADATA_KEY: json.dumps(metadata).encode()})
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(examples), IMAGES_PER_ROW_GROUP):
            group = examples.select(range(start, min(start + IMAGES_PER_ROW_GROUP, len(examples))))
            rows = list(_prepared_rows(group, metadata["benchmark"]))
            if rows:  # `datasets` reads no file that begins with an empty row group
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return path


def _prepared_rows(examples: datasets.Dataset, benchmark: str) -> Iterator[dict[str, Any]]:
    skips_unlabelled = benchmark in BENCHMARKS and BENCHMARKS[benchmark].skips_unlabelled
    label_feature: SegmentationMap = examples.features["label"]
    image_files = examples.select_columns("image").cast_column("image", datasets.Image(decode=False))
    for image_file, example in zip(image_files, examples, strict=True):
        name, image, label = example["file_name"], example["image"], example["label"]
        if image.size != label.size:
            raise ValueError(
                f"{image_file['image']['path']} has {image.width}×{image.height} pixels,"
                f" but its label map {label.width}×{label.height}"
            )
        if skips_unlabelled and not label_feature.has_labelled_pixel(label):
            continue
        resized = examples.features["image"].longest_side is not None
        yield {
            "image": {
                "path": name,
                "bytes": _png(image) if resized else require_file(image_file["image"]["path"]).read_bytes(),
            },
            "label": {"path": f"{Path(name).stem}.png", "bytes": _png(label)},
            "file_name": name,
        }


def _png(image: PIL.Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _dataset_card(output: Path, metadata: dict[str, Any]) -> str:
    """The README.md that makes the folder a data set repository of the Hub."""
    splits = sorted({path.name.split("-")[0] for path in output.glob("data/*.parquet")})
    card = DatasetCardData(
        task_categories=["image-segmentation"],
        pretty_name=metadata["benchmark"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
    )
    benchmark = BENCHMARKS.get(metadata["benchmark"])
    source = f"[{benchmark.title}]({benchmark.homepage}), whose licence applies" if benchmark else "data of one's own"
    classes = "\n".join(f"{index}. {name}" for index, name in enumerate(metadata["names"]))
    background = metadata["background_index"]
    background_line = (
        "" if background is None else f" In labels {background} is background, as is any larger index in predictions."
    )
    return f"""---
{card.to_yaml()}
---
# {metadata["benchmark"]}

Prepared with sed-hf from {source}. `label` holds class indices; {metadata["ignore_index"]} marks pixels to ignore.\
{background_line}

```python
from .benchmarks import load_benchmark

dataset = load_benchmark("{metadata["benchmark"]}", FOLDER, "{splits[0]}")
```

## Classes

{classes}
"""
