"""Labels for whole data sets, in shards that processes and nodes share, and that a later run completes."""

import json
import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import fsspec
from accelerate import PartialState
from huggingface_hub import DatasetCardData
from PIL import Image

from ..data import prepare
from ..data.images import ImageSource, open_images, read_batches
from ..data.vocabularies import load_vocabulary
from ..hub.load import check_model_source, load
from ..image_processing_sed import NonFiniteLogitsError, SEDImageProcessor
from ..processing_sed import validate_class_names
from ..terminal import progress_bar, say
from ..utils import atomic_path, short_error, some, write_file
from ..visualization import ClassTotals, draw_overlay
from .class_embeddings import ClassEmbeddingCache, encode_classes
from .label_formats import FORMATS, LabelFormat, PreparedImage
from .segmenter import Segmenter, competing_names, hint_at_synonyms, unused_label
from .writers import model_settings, require_same_settings

MAX_IN_FLIGHT = 4  # batches that the model has seen, and that are not written yet
PREVIEW_SIZE = 480  # pixels

Row: TypeAlias = tuple[int, str, bytes | Path | str | None]  # position, name, and what the file holds or where it is


class Unreadable(NamedTuple):
    """An image that cannot be read."""

    position: int
    source: str
    reason: str


class Counts(NamedTuple):
    """How many images of a data set have labels, and how many were skipped."""

    labelled: int
    skipped: int


def label_dataset(
    data: str | Path,
    vocabulary: str | Path | Sequence[str],
    output: str | Path,
    *,
    model: str = "sed-b",
    topk: int | None = None,
    threshold: float | None = None,
    everything_else: str | None = None,
    format: str = "parquet",
    split: str = "train",
    image_column: str | None = None,
    dtype: str = "float32",
    batch_size: int = 1,
    num_workers: int | None = None,
    shard_size: int = 250,
    preview: int | None = None,
    push_to_hub: str | None = None,
) -> Counts:
    """Label every pixel of every image of a data set, and write a data set of images and labels.

    All processes that accelerate knows must call this: process r of n takes the shards r, r + n, ... The result does
    not depend on their number. Finished shards are kept: a later call goes on with those that are missing. Images that
    cannot be read are listed in `skipped.jsonl`.

    Args:
        data: Folder of images, Parquet files or WebDataset shards, or OWNER/NAME of a data set on the Hub.
        vocabulary: Class names, or as [`load_vocabulary`] takes it.
        output: The folder to write to. One of other settings is refused.
        model: As of [`sed_hf.load`].
        topk: Early rejection; 0 keeps every class, `None` is the model's own setting.
        threshold: Pixels whose best probability is lower get no class.
        everything_else: A vocabulary whose names compete with yours; together they are one more class.
        format: "parquet", "coco", "yolo" or "png".
        split: What the data are called in the result, and what is read of a data set on the Hub.
        image_column: The column of the images, if there are several and none is called "image".
        batch_size: Images at a time on each process.
        num_workers: Processes that read images, for each process. By default up to 4.
        shard_size: Images of a shard.
        preview: Only segment so many images, and write a sheet of them, `preview.jpg`.
        push_to_hub: Upload the result to this data set repository of the Hub.

    Raises:
        ValueError: The folder holds labels of other settings, or the data have no clear column of images.
    """
    state, output = PartialState(), Path(output)
    names = load_vocabulary(vocabulary) if isinstance(vocabulary, str | Path) else vocabulary
    class_names = validate_class_names(names, "vocabulary")
    if state.is_main_process:
        hint_at_synonyms(class_names, everything_else)
    others = competing_names(class_names, everything_else)
    unused_label(len(class_names) + bool(others))  # refuses what no label map can hold
    check_model_source(model)
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: expected {', '.join(FORMATS)}")
    images = open_images(data, split, image_column)
    if Path(data).is_dir() and output.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"{output} is in the folder of the images {data}: choose another output folder")
    with state.main_process_first():
        network, processor = load(model, state.device, dtype)
        of_model = model_settings(network, processor, model, topk)
        encoder = of_model["text_encoder_sha256"]
        encode = partial(encode_classes, network, processor, cache=ClassEmbeddingCache(), encoder=encoder)
        embeddings, competing = encode(class_names), encode(others) if others else None
    segmenter = Segmenter(network, processor, class_names, embeddings, topk, threshold, None, competing)
    output.mkdir(parents=True, exist_ok=True)
    if preview is not None:
        path = output / "preview.jpg"
        return write_preview(path, images, segmenter, preview) if state.is_main_process else Counts(0, 0)

    settings = {
        **of_model,
        "threshold": threshold,
        "everything_else": everything_else,
        "competing_names": others,
        "vocabulary": list(segmenter.class_names),
        "format": format,
        "split": split,
        "data_sha256": images.identity,
        "shard_size": shard_size,
        "batch_size": batch_size,
    }
    with state.main_process_first():
        claim(output, settings)
    writer = FORMATS[format](output, segmenter.class_names, split)
    shards = Shards(output / "shards", images, shard_size, batch_size)
    if not (output / "README.md").exists():
        label_shards(shards, segmenter, writer, num_workers)
    state.wait_for_everyone()
    labelled, pixels, skipped = shards.summary()
    if state.is_main_process:
        writer.finish(len(shards.finished()))
        write_card(output, settings, labelled, pixels, skipped)
        if push_to_hub is not None:
            prepare.push_to_hub(output, push_to_hub, ["README.md", "skipped.jsonl", *writer.files])
    state.wait_for_everyone()
    return Counts(labelled, len(skipped))


def claim(output: Path, settings: dict[str, Any]) -> None:
    """Write the settings to a folder that is new or empty; refuse one of other settings, or of other files."""
    path = output / "settings.json"
    if path.exists():
        require_same_settings(json.loads(path.read_bytes()), settings, path)
    elif others := [file.name for file in output.iterdir() if file.name[0] != "." and file.name != "preview.jpg"]:
        raise ValueError(f"{output} holds other files ({some(others, 3)}): choose a new or empty output folder")
    else:
        write_file(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")


@dataclass
class Shards:
    """The shards of a data set, and for each that is finished a JSON file, which is written last."""

    folder: Path
    images: ImageSource
    size: int
    batch_size: int

    def path(self, index: int) -> Path:
        """The file that says that a shard is finished, and what its images were."""
        return self.folder / f"{index:05d}.json"

    def finished(self) -> list[Path]:
        """The files of the shards that are finished, in their order."""
        return sorted(self.folder.glob("[!.]*.json"), key=lambda path: int(path.stem))

    def batches(self, rank: int, num_processes: int) -> Iterator[list[Row]]:
        """The images of the shards that a process has still to do; a batch is of one shard."""
        rows = ((position, *image) for position, image in enumerate(self.images))
        for index, shard in groupby(rows, lambda row: row[0] // self.size):
            if index % num_processes == rank and not self.path(index).exists():
                while batch := list(islice(shard, self.batch_size)):
                    yield batch

    def summary(self) -> tuple[int, Counter[str], list[dict[str, Any]]]:
        """Labelled images, the pixels of each class index and of "none", and the images that cannot be read."""
        labelled, pixels, skipped = 0, Counter[str](), []
        for path in self.finished():
            shard = json.loads(path.read_bytes())
            labelled += shard["labelled"]
            pixels.update(shard["pixels"])
            skipped += shard["skipped"]
        return labelled, pixels, skipped


def label_shards(shards: Shards, segmenter: Segmenter, writer: LabelFormat, num_workers: int | None) -> None:
    """Label this process's share; while the model segments a batch, those before are post-processed and written."""
    state, total = PartialState(), shards.images.num_images
    done = len(shards.finished()) * shards.size
    read = partial(read_image, segmenter.processor.image_processor, writer.image_formats)
    loader = read_batches(shards.batches(state.process_index, state.num_processes), read, num_workers)
    in_flight: deque[Future] = deque()
    bar = progress_bar(None, "Labelling", total=total, initial=done, unit="image", disable=not state.is_main_process)
    with bar, ThreadPoolExecutor(2) as pool:
        for index, batches in groupby(loader, lambda batch: batch[0].position // shards.size):
            written, skipped = [], []
            for batch in batches:
                skipped += [image for image in batch if isinstance(image, Unreadable)]
                if images := [image for image in batch if isinstance(image, PreparedImage)]:
                    while len(in_flight) >= MAX_IN_FLIGHT:
                        in_flight.popleft().result()
                    outputs = segmenter.forward([image.pixel_values for image in images])
                    written.append(pool.submit(write_images, segmenter, writer, outputs, images))
                    in_flight.append(written[-1])
                step = len(batch) * state.num_processes
                bar.update(step if total is None else min(step, total - bar.n))
            in_flight.append(pool.submit(write_shard, shards.path(index), index, writer, written, skipped))
        for future in in_flight:
            future.result()


def read_image(
    image_processor: SEDImageProcessor, formats: Sequence[str] | None, row: Row
) -> PreparedImage | Unreadable:
    """An image with its file and the model's input, in a worker."""
    position, source, content = row
    try:
        content = file_content(content)
        image, file = prepare.stored_image(content, source or f"image {position}", formats=formats)
        pixel_values = image_processor(image, return_tensors="pt")["pixel_values"][0]
    except (OSError, ValueError) as error:
        return Unreadable(position, source, short_error(error))
    return PreparedImage(position, source, file, (image.height, image.width), pixel_values)


def file_content(content: bytes | Path | str | None) -> bytes:
    """The bytes of an image's file, of this machine or of the Hub."""
    if content is None:
        raise ValueError("expected an image, but the row holds none")
    if isinstance(content, bytes):
        return content
    with fsspec.open(content, "rb") if isinstance(content, str) else content.open("rb") as file:
        return file.read()


def write_images(
    segmenter: Segmenter, writer: LabelFormat, outputs: Any, images: list[PreparedImage]
) -> tuple[list[Any], Counter[str]]:
    """Post-process and write a batch, in a thread; what the format knows of each image, and the pixels of all."""
    try:
        results = segmenter.post_process(outputs, [image.size for image in images])
    except NonFiniteLogitsError as error:
        raise NonFiniteLogitsError(error.index, images[error.index].source) from error
    records, pixels = [], Counter[str]()
    for image, result in zip(images, results, strict=True):
        totals = ClassTotals(segmenter.class_names, segmenter.ignore_index)
        totals.add(result["segmentation"], result["probability"])
        classes = totals.statistics()
        pixels.update({str(entry.index): round(entry.share * math.prod(image.size)) for entry in classes})
        pixels["none"] += totals.ignored_pixels
        records.append(writer.write_image(image, result["segmentation"], classes))
    return records, pixels


def write_shard(path: Path, index: int, writer: LabelFormat, batches: list[Future], skipped: list[Unreadable]) -> None:
    """Write what is left to write of a shard when its images are written, and its JSON file last."""
    records, pixels = [], Counter[str]()
    for batch in batches:
        records_of_batch, pixels_of_batch = batch.result()
        records += records_of_batch
        pixels.update(pixels_of_batch)
    writer.write_shard(index, records)
    content = {"labelled": len(records), "pixels": pixels, "skipped": [image._asdict() for image in skipped]}
    write_file(path, json.dumps(content, ensure_ascii=False))


def write_card(
    output: Path, settings: dict[str, Any], labelled: int, pixels: Counter[str], skipped: list[dict[str, Any]]
) -> None:
    """Write `skipped.jsonl`, then `README.md`, the card of the data set, which says that all is done."""
    lines = [json.dumps(image, ensure_ascii=False) + "\n" for image in skipped]
    write_file(output / "skipped.jsonl", "".join(lines))
    data_files = [{"split": settings["split"], "path": f"data/{settings['split']}-*.parquet"}]
    configs = [{"config_name": "default", "data_files": data_files}] if settings["format"] == "parquet" else None
    card = DatasetCardData(task_categories=["image-segmentation"], tags=["sed-hf"], configs=configs)
    names = {str(index): name.replace("|", r"\|") for index, name in enumerate(settings["vocabulary"])}
    shares = {name: pixels[key] / max(1, pixels.total()) for key, name in {**names, "none": "(no class)"}.items()}
    classes = "\n".join(f"| {name} | {share:.2%} |" for name, share in shares.items())
    stated = {name: value for name, value in settings.items() if not isinstance(value, list | None)}
    options = "\n".join(f"* {name}: {value}" for name, value in stated.items())
    text = f"""---
{card.to_yaml()}
---
# {labelled} images with labels by {settings["model"]}

Labelled by sed-hf, not by people; {len(skipped)} images could not be read.

{options}

| class | share of the pixels |
|---|---|
{classes}
"""
    write_file(output / "README.md", text)


def write_preview(path: Path, images: ImageSource, segmenter: Segmenter, count: int) -> Counts:
    """Write a sheet of labelled images with their legends: of a folder evenly spaced, of a stream the first."""
    step = max(1, len(images.images) // count) if isinstance(images.images, list) else 1
    overlays, num_skipped = [], 0
    for source, content in islice(images, 0, step * count, step):
        try:
            image, _ = prepare.stored_image(file_content(content), source)
        except (OSError, ValueError) as error:
            say(f"skipped {error}")
            num_skipped += 1
            continue
        segmentation = segmenter([image])[0]["segmentation"]
        overlays.append(draw_overlay(image, segmentation, segmenter.class_names, ignore_index=segmenter.ignore_index))
        overlays[-1].thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
    if not overlays:
        raise ValueError(f"expected an image that can be read among the first {count}; found none")
    columns = math.ceil(math.sqrt(len(overlays)))
    sheet = Image.new("RGB", (columns * PREVIEW_SIZE, math.ceil(len(overlays) / columns) * PREVIEW_SIZE), "white")
    for number, overlay in enumerate(overlays):
        sheet.paste(overlay, (number % columns * PREVIEW_SIZE, number // columns * PREVIEW_SIZE))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=90)
    return Counts(len(overlays), num_skipped)
