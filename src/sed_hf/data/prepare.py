"""Writing a benchmark as Parquet files, in several processes, going on where an interrupted run stopped."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import DatasetCardData, HfApi
from torch.utils.data import DataLoader, Dataset

from ..image_processing_sed import read_rgb
from ..terminal import progress_bar
from ..utils import atomic_path
from .benchmarks import BENCHMARKS, load_raw
from .features import shrunk_jpeg
from .parquet import FEATURES, FORMAT, METADATA_KEY, read_metadata

IMAGES_PER_ROW_GROUP = 50  # what a stream reads at a time: some 10 MB
CARD_MARK = "Prepared with sed-hf from "


def prepare_benchmark(
    name: str,
    data_dir: str | Path,
    output: Path,
    split: str | None = None,
    *,
    num_proc: int = 1,
    images_per_shard: int = 250,
) -> Path:
    """Write one split of a benchmark as Parquet files, with labels prepared, and return the folder.

    Images are embedded as their files are where every reader sees in them what the model is given, otherwise as PNG (of
    A-847 as JPEG); labels as PNG. Files that an earlier run completed are kept. Several splits may share a folder,
    several benchmarks may not.

    Args:
        name: As for [`load_benchmark`], like `data_dir` and `split`.
        data_dir: The files as downloaded, as Detectron2's scripts leave them, or of your own.
        output: The folder to write to; [`load_benchmark`] and `datasets.load_dataset` read it.
        split: `"train"` or `"val"`.
        num_proc: The number of processes, each of which writes a file at a time.
        images_per_shard: The number of images of a file.

    Raises:
        ValueError: An image or label is damaged or does not fit the other, a label holds values outside the class
            range, or the folder holds other data.
    """
    dataset = load_raw(name, data_dir, split)
    label = dataset.features["label"]
    metadata = {
        "format": FORMAT,
        "benchmark": name,
        "names": label.names,
        "ignore_index": label.ignore_index,
        "background_index": label.background_index,
        "split": str(dataset.split),
        "images_per_shard": images_per_shard,
        "files_sha256": sha256("\n".join(dataset["file_name"]).encode()).hexdigest(),
    }
    _require_own_files(output, metadata)
    (output / "data").mkdir(parents=True, exist_ok=True)
    shards = _Shards(dataset, output, metadata)
    todo = [index for index in range(len(shards)) if not shards.path(index).exists()]
    # PyTorch's worker processes end with this one, however that ends; those of `Dataset.map` may hang after SIGTERM.
    num_workers = min(num_proc, len(todo)) if num_proc > 1 else 0
    written = DataLoader(shards, batch_size=None, sampler=todo, num_workers=num_workers)
    for _ in progress_bar(written, name, unit="file"):
        pass
    with atomic_path(output / "README.md") as path:
        path.write_text(_dataset_card(output, metadata), encoding="utf-8")
    return output


def push_to_hub(folder: Path, repo_id: str, allowed: Sequence[str] = ("README.md", "data/*.parquet")) -> str:
    """Upload the allowed files of a folder to a data set repository of the Hub, and return the address of the commit.

    A new repository is private, because the licences of most benchmarks forbid passing their images on.
    """
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id, repo_type="dataset", folder_path=folder, allow_patterns=list(allowed)
    ).commit_url


def _require_own_files(output: Path, metadata: dict[str, Any]) -> None:
    """Refuse to mix the files of this run with others: links, other benchmarks, other images."""
    data, card = output / "data", output / "README.md"
    shards = sorted(data.glob("[!.]*.parquet"))
    for path in (data, card, *shards):
        is_own = path.is_dir() if path == data else path.is_file()
        if is_own and path == card:
            is_own = CARD_MARK in card.read_text(encoding="utf-8", errors="replace")
        if path.is_symlink() or (path.exists() and not is_own):
            raise ValueError(f"{path} was not written by scripts/prepare_dataset.py: choose another output folder")
    for shard in shards:
        found = read_metadata(LocalFileSystem(), str(shard))
        if found["split"] != metadata["split"]:
            found |= {key: metadata[key] for key in ("split", "files_sha256")}
        if found != metadata:
            raise ValueError(
                f"{shard} belongs to another benchmark, or was written from other files or other class names:"
                " remove it, or choose another output folder"
            )


@dataclass(frozen=True)
class _Shards(Dataset[None]):
    """The files of a split: reading an item writes one."""

    dataset: datasets.Dataset
    output: Path
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.metadata["images_per_shard"])

    def path(self, index: int) -> Path:
        return self.output / "data" / f"{self.metadata['split']}-{index:05d}-of-{len(self):05d}.parquet"

    def __getitem__(self, index: int) -> None:
        examples = self.dataset.shard(len(self), index, contiguous=True)
        rows = list(_rows(examples, self.metadata["benchmark"]))
        schema = FEATURES.arrow_schema
        schema = schema.with_metadata({**schema.metadata, METADATA_KEY: json.dumps(self.metadata).encode()})
        with atomic_path(self.path(index)) as path, pq.ParquetWriter(path, schema) as writer:
            if rows:  # `datasets` reads no file that begins with an empty row group
                writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=IMAGES_PER_ROW_GROUP)


def _rows(examples: datasets.Dataset, benchmark: str) -> Iterator[dict[str, Any]]:
    skips_unlabelled = benchmark in BENCHMARKS and BENCHMARKS[benchmark].skips_unlabelled
    image_feature, label_feature = examples.features["image"], examples.features["label"]
    for example in examples.cast_column("image", datasets.Image(decode=False)):
        path, name, label = Path(example["image"]["path"]), example["file_name"], example["label"]
        image, content = stored_image(path.read_bytes(), str(path), image_feature.shortest_side)
        if image.size != label.size:
            raise ValueError(
                f"{path} has {image.width}×{image.height} pixels, but its label map {label.width}×{label.height}"
            )
        if not skips_unlabelled or label_feature.has_labelled_pixel(label):
            label_file = {"path": f"{path.stem}.png", "bytes": png(label)}
            yield {"image": {"path": name, "bytes": content}, "label": label_file, "file_name": name}


def stored_image(content: bytes, name: str, shortest_side: int | None = None) -> tuple[PIL.Image.Image, bytes]:
    """An image file as the model is given it, in RGB, and the bytes that `datasets.Image(mode="RGB")` decodes to it.

    Args:
        content: The bytes of the file.
        name: Its name for errors.
        shortest_side: As of [`SegmentationImage`].
    """
    file = BytesIO(content)
    file.name = name
    image = read_rgb(file)
    if shortest_side is not None:
        content = shrunk_jpeg(image, shortest_side)
        return read_rgb(BytesIO(content)), content
    with suppress(OSError):  # other readers are less patient with the end of a file
        as_others_read_it = FEATURES["image"].decode_example({"path": None, "bytes": content})
        if image.size == as_others_read_it.size and np.array_equal(np.asarray(image), np.asarray(as_others_read_it)):
            return image, content
    return image, png(image)


def png(image: PIL.Image.Image) -> bytes:
    """The file of an image."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _dataset_card(output: Path, metadata: dict[str, Any]) -> str:
    """The README.md that makes the folder a data set repository of the Hub."""
    name, background = metadata["benchmark"], metadata["background_index"]
    splits = sorted({path.name.split("-")[0] for path in output.glob("data/[!.]*.parquet")})
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    card = DatasetCardData(
        task_categories=["image-segmentation"],
        pretty_name=name,
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    source = "data of one's own"
    if name in BENCHMARKS:
        source = f"[{BENCHMARKS[name].title}]({BENCHMARKS[name].homepage}), whose licence applies"
    of_background = "" if background is None else f" {background} is background, as is any larger index in predictions."
    return f"""---
{card.to_yaml()}
---
# {name}

{CARD_MARK}{source}. `label` holds class indices; {metadata["ignore_index"]} marks pixels to ignore.{of_background}

```python
from sed_hf.data import load_benchmark

dataset = load_benchmark("{name}", FOLDER, "{splits[0]}")
dataset.features["label"].names
```
"""
