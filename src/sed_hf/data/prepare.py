"""Writing a benchmark as Parquet files, in several processes, going on where an interrupted run stopped."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.ExifTags
import PIL.Image
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import DatasetCardData, HfApi

from ..image_processing_sed import read_rgb
from ..terminal import progress_bar
from ..utils import write_file
from .benchmarks import BENCHMARKS, OWN_DATA, load_raw
from .features import shrunk_jpeg
from .images import read_batches
from .parquet import FEATURES, read_metadata, write_parquet

CARD_MARK = "Prepared with sed-hf from "


def splits_of(name: str, data_dir: Path, split: str | None = None) -> list[str | None]:
    """The splits that a command prepares: the one that is stated, otherwise all of own data, or the default one."""
    folders = [folder for folder in ("train", "val") if (data_dir / "images" / folder).is_dir()]
    return list(folders) if name == OWN_DATA and split is None and folders else [split]


def prepare_benchmark(
    name: str,
    data_dir: str | Path,
    output: Path,
    split: str | None = None,
    *,
    num_proc: int = 1,
    images_per_shard: int = 250,
) -> None:
    """Write one split of a benchmark, of [`load_benchmark`], as Parquet files with labels prepared.

    Images are embedded as their files are where every reader sees in them what the model is given, otherwise as PNG (of
    A-847 as JPEG); labels as PNG. Files that an earlier run completed are kept; they are refused if their labels have
    changed. Several splits may share a folder, several benchmarks may not.
    """
    dataset = load_raw(name, data_dir, split)
    label = dataset.features["label"]
    metadata = {
        "benchmark": name,
        "names": label.names,
        "ignore_index": label.ignore_index,
        "background_index": label.background_index,
        "split": str(dataset.split),
        "images_per_shard": images_per_shard,
        "files_sha256": sha256("\n".join(dataset["file_name"]).encode()).hexdigest(),
    }
    num_files = math.ceil(len(dataset) / images_per_shard)
    paths = [output / "data" / f"{dataset.split}-{index:05d}-of-{num_files:05d}.parquet" for index in range(num_files)]
    whole = [index for index, path in enumerate(paths) if path.exists()]
    parts = {paths[index]: dataset.shard(num_files, index, contiguous=True) for index in whole}
    _require_own_files(output, metadata, parts)
    todo = [[index] for index in range(num_files) if index not in whole]
    # PyTorch's worker processes end with this one, however that ends; those of `Dataset.map` may hang after SIGTERM.
    num_workers = min(num_proc, len(todo)) if num_proc > 1 else 0
    written = read_batches(todo, partial(_write_file, dataset, paths, metadata), num_workers)
    for _ in progress_bar(written, name, unit="file"):
        pass
    write_file(output / "README.md", _dataset_card(output, metadata))


def data_sha256(dataset: datasets.Dataset) -> str:
    """Hash of a data set's class names, file names and label files, and of the sizes of its image files."""
    digest = sha256(json.dumps(dataset.features["label"].names).encode())
    for column in ("image", "label"):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    for row in dataset.with_format(None):
        image, label = row["image"], row["label"]
        size = os.path.getsize(image["path"]) if image["bytes"] is None else len(image["bytes"])
        content = Path(label["path"]).read_bytes() if label["bytes"] is None else label["bytes"]
        digest.update(f"{row['file_name']} {size} {sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def push_to_hub(folder: Path, repo_id: str, allowed: Sequence[str] = ("README.md", "data/*.parquet")) -> str:
    """Upload the allowed files of a folder to a data set repository of the Hub, and return the address of the commit.

    A new repository is private, because the licences of most benchmarks forbid passing their images on.
    """
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id, repo_type="dataset", folder_path=folder, allow_patterns=list(allowed)
    ).commit_url


def _require_own_files(output: Path, metadata: dict[str, Any], parts: Mapping[Path, datasets.Dataset]) -> None:
    """Refuse to mix the files of this run with others: links, other benchmarks, other images, other masks."""
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
        digest = found.pop("data_sha256", None)  # which 0.2.0 did not write
        is_other = digest is not None and shard in parts and digest != data_sha256(parts[shard])
        if found != metadata or is_other:
            raise ValueError(
                f"{shard} belongs to another benchmark, or was written from other images, masks or class names:"
                " remove it, or choose another output folder"
            )


def _write_file(dataset: datasets.Dataset, paths: list[Path], metadata: dict[str, Any], index: int) -> None:
    """Write a split's file of this index, in a worker."""
    part = dataset.shard(len(paths), index, contiguous=True)
    write_parquet(paths[index], list(_rows(part)), {**metadata, "data_sha256": data_sha256(part)})


def _rows(examples: datasets.Dataset) -> Iterator[dict[str, Any]]:
    shortest_side = examples.features["image"].shortest_side
    for example in examples.cast_column("image", datasets.Image(decode=False)):
        path, name, label = Path(example["image"]["path"]), example["file_name"], example["label"]
        image, content = stored_image(path.read_bytes(), str(path), shortest_side)
        if image.size != label.size:
            raise ValueError(
                f"{path} has {image.width}×{image.height} pixels, but its label map {label.width}×{label.height}"
            )
        label_file = {"path": f"{path.stem}.png", "bytes": png(label)}
        yield {"image": {"path": name, "bytes": content}, "label": label_file, "file_name": name}


def stored_image(
    content: bytes, name: str, shortest_side: int | None = None, formats: Sequence[str] | None = None
) -> tuple[PIL.Image.Image, bytes]:
    """An image file as the model is given it, in RGB, and the bytes that `datasets.Image(mode="RGB")` decodes to it.

    With `formats`, of Pillow, the bytes are of one of these, and upright without EXIF.
    """
    file = BytesIO(content)
    file.name = name
    image = read_rgb(file)
    if shortest_side is not None:
        content = shrunk_jpeg(image, shortest_side)
        return read_rgb(BytesIO(content)), content
    if formats is not None:
        header = PIL.Image.open(BytesIO(content))
        if header.format not in formats or header.getexif().get(PIL.ExifTags.Base.Orientation) in range(2, 9):
            return image, png(image)
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
