"""Every reader of sed-hf: the function that the product reads an input with, and what a valid result of it is."""

import argparse
import contextlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDProcessor, cli
from sed_hf.class_embeddings import ClassEmbeddingCache, encode_classes, load_class_embeddings
from sed_hf.conversion import convert_official_checkpoint
from sed_hf.data.benchmarks import BENCHMARKS, load_benchmark
from sed_hf.data.features import SegmentationMap
from sed_hf.data.prepare import prepare_benchmark
from sed_hf.demo.inputs import parse_class_names, read_upload
from sed_hf.evaluation.progress import ProgressFile
from sed_hf.evaluation.report import EvaluationReport
from sed_hf.files import require_file
from sed_hf.metrics.mean_iou import MeanIoU
from sed_hf.model_loading import build_model
from sed_hf.pipeline_sed import SEDPipeline
from sed_hf.processing_sed import validate_class_names
from sed_hf.segmentation import UnreadablePictureError, read_picture
from sed_hf.training.checkpoints import find_checkpoints, load_checkpoint, steps_done
from sed_hf.training.loop import lines_until
from sed_hf.training.recipe import Recipe, load_recipe

from . import samples
from .mutations import Files


class InvalidResultError(Exception):
    """A reader returned what it must not return."""


@dataclass(frozen=True)
class Reader:
    """One way into the product.

    Attributes:
        name: For the report.
        samples: Makes the valid inputs.
        read: Reads the input in a folder, and raises [`InvalidResultError`] if the result is not valid.
        share: Of all cases, relative to other readers.
        targets: Matches the relative paths of the files that are changed.
        arguments: Names of arguments, any of which a message may give in place of the file.
        refusals: Exceptions that the callers of the reader turn into a message for the user.
        writes: Where, below the folder, it may write.
    """

    name: str
    samples: Callable[[], list[Files]]
    read: Callable[[Path], None]
    share: float
    targets: str = ""
    arguments: tuple[str, ...] = ()
    refusals: tuple[type[BaseException], ...] = (OSError, ValueError)
    writes: str | None = None

    def is_target(self, path: str) -> bool:
        """Whether a file is one that is changed."""
        return re.search(self.targets, path) is not None


def require(condition: object, what: str) -> None:
    """Refuse a result."""
    if not condition:
        raise InvalidResultError(what)


def only_entry(folder: Path) -> Path:
    """The file of a case of one file, be it there or not."""
    return next(iter(sorted(folder.iterdir())), folder / "missing")


# Pictures ------------------------------------------------------------------------------------------------------------


def read_picture_file(folder: Path) -> None:
    path = only_entry(folder)
    cli.find_files([str(path)])
    try:
        picture = read_picture(path, samples.tiny_model()[1].image_processor)
    except UnreadablePictureError as error:
        raise ValueError(f"{path}: {error}") from error  # as `sed-hf segment` and `explain` print it
    require(picture.mode == "RGB" and min(picture.size) > 0, f"{picture.mode} {picture.size}")


def read_picture_in_python(folder: Path) -> None:
    images = samples.tiny_model()[1](images=str(only_entry(folder)), return_tensors="pt")["pixel_values"]
    require(images.shape == (1, 3, 64, 64) and images.isfinite().all(), f"{tuple(images.shape)}, or not finite")


def read_picture_in_demo(folder: Path) -> None:
    picture = read_upload(only_entry(folder), samples.tiny_model()[1])
    require(picture.mode == "RGB" and min(picture.size) > 0, f"{picture.mode} {picture.size}")


@cache
def tiny_pipeline() -> SEDPipeline:
    model, processor = samples.tiny_model()
    return SEDPipeline(model=model, processor=processor, image_processor=processor.image_processor, device="cpu")


def read_picture_in_pipeline(folder: Path) -> None:
    segments = tiny_pipeline()(str(only_entry(folder)), candidate_labels=samples.CLASS_NAMES)
    require(segments.label_map.min() >= 0 and segments.label_map.max() < 3, "labels outside the classes")
    require(np.isfinite(segments.probability).all(), "a probability is not finite")


def read_video(folder: Path) -> None:
    from sed_hf.video import Frame, UnreadableVideoError, VideoReader

    path = only_entry(folder)
    cli.find_files([str(path)])
    try:
        with closing(VideoReader(path)) as reader:
            for item in reader:
                if isinstance(item, Frame):
                    require(item.picture.size == reader.size, "frames of other sizes")
    except UnreadableVideoError as error:
        raise ValueError(f"{path}: {error}") from error  # as `sed-hf segment` prints it


# Data sets -----------------------------------------------------------------------------------------------------------


def check_label(label: Image.Image, feature: SegmentationMap) -> None:
    values = np.unique(np.asarray(label))
    known = (values < feature.num_classes) | (values == feature.ignore_index)
    require(label.mode in ("L", "I;16") and known.all(), f"labels outside the classes: {values}")


def read_label_map(folder: Path) -> None:
    path = only_entry(only_entry(folder))
    name = path.parent.name
    feature = BENCHMARKS[name].features["label"] if name in BENCHMARKS else SegmentationMap(names=samples.CLASS_NAMES)
    check_label(feature.decode_example({"path": str(path), "bytes": None}), feature)


def read_dataset(folder: Path) -> None:
    root = only_entry(folder)
    check_rows(load_benchmark(root.name, root))


def read_prepared(folder: Path) -> None:
    check_rows(load_benchmark("custom", folder, streaming=True))


def check_rows(dataset: Any) -> None:
    for row in dataset:
        require(row["image"].mode == "RGB", row["image"].mode)
        check_label(row["label"], dataset.features["label"])
        require(isinstance(row["file_name"], str), "a file name that is no text")


def prepare(folder: Path) -> None:
    output = folder / "prepared"
    try:
        prepare_benchmark("custom", folder / "custom", output, progress=False)
    finally:
        unfinished = [path.name for path in output.glob("data/*") if path.suffix != ".parquet"]
        require(not unfinished, f"left {unfinished}")
    check_rows(load_benchmark("custom", output, streaming=True))


# Class names ---------------------------------------------------------------------------------------------------------


def check_names(names: Any) -> None:
    require(isinstance(names, list) and names, "no list of names")
    for name in names:
        require(isinstance(name, str) and name.strip() == name and name, f"no name: {name!r:.60}")
        name.encode()


def read_vocabulary(folder: Path) -> None:
    path = str(only_entry(folder))
    check_names(validate_class_names(cli.read_class_names(argparse.Namespace(classes=None, vocabulary=path))))


def read_encoded_vocabulary(folder: Path) -> None:
    path = str(only_entry(folder))
    cli.read_class_names(argparse.Namespace(classes=None, vocabulary=path))
    names, embeddings = load_class_embeddings(path, samples.ENCODER)
    check_names(names)
    require(embeddings.ndim == 3 and len(embeddings) == len(names), f"embeddings of {tuple(embeddings.shape)}")
    require(embeddings.is_floating_point() and embeddings.isfinite().all(), "embeddings that are no finite numbers")


def read_cached_embedding(folder: Path) -> None:
    embedding = ClassEmbeddingCache(folder).load(samples.ENCODER, "sky")
    if embedding is not None and embedding.shape == (2, 8):  # `encode_classes` leaves out those of another shape
        require(torch.equal(embedding, torch.ones(2, 8)), "another embedding")


def read_arguments(folder: Path) -> None:
    """Class names and prompt templates of a caller in Python, and class names typed in the demo."""
    try:
        arguments = json.loads(require_file(only_entry(folder)).read_bytes())
        text, templates = arguments["text"], arguments["prompt_templates"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("arguments: no JSON of arguments, which is no matter of the product") from error
    _, processor = samples.tiny_model()
    processor = SEDProcessor(processor.image_processor, processor.tokenizer, prompt_templates=templates)
    inputs = processor(text=text, return_tensors="pt")
    synonyms = sum(len(name.split(", ")) for name in text)
    require(inputs["input_ids"].shape[:2] == (synonyms, len(processor.prompt_templates)), "other tokens")
    require(inputs["input_ids"].max() < len(processor.tokenizer), "unknown tokens")
    parse_class_names("\n".join(text))


# Models --------------------------------------------------------------------------------------------------------------


def check_model(model: SEDForSemanticSegmentation, processor: SEDProcessor) -> None:
    with torch.no_grad():
        picture = Image.new("RGB", (24, 16), (200, 100, 50))
        embeddings = encode_classes(model, processor, samples.CLASS_NAMES, show_progress=False)
        pixel_values = processor(images=picture, return_tensors="pt")["pixel_values"]
        require(pixel_values.isfinite().all(), "pixel values that are not finite")
        logits = model(pixel_values, class_embeddings=embeddings).logits
    # Finite weights may still be so large that the logits are not.
    require(logits.shape[1] == 3, f"logits of {tuple(logits.shape)}")
    require(all(weight.isfinite().all() for weight in model.state_dict().values()), "weights that are not finite")


def read_model_folder(folder: Path) -> None:
    cli.choose_model(str(folder))
    check_model(*cli.load_model(str(folder), "cpu", "float32"))


def read_checkpoint(folder: Path) -> None:
    model, processor = samples.tiny_model()
    check_model(convert_official_checkpoint(only_entry(folder), model.config), processor)


def read_config(folder: Path) -> None:
    with torch.device("meta"):
        build_model(cli.read_config(only_entry(folder)))


# Training and evaluation ---------------------------------------------------------------------------------------------


def read_recipe(folder: Path) -> None:
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            recipe = load_recipe(["--config", str(only_entry(folder))])
    except SystemExit as error:  # argparse has printed the message
        raise ValueError(messages.getvalue().strip().splitlines()[-1]) from error
    require(isinstance(recipe, Recipe) and isinstance(recipe.steps, int) and recipe.steps > 0, "no recipe")
    for name in ("learning_rate", "weight_decay", "max_grad_norm"):
        require(0 <= getattr(recipe, name) < float("inf"), name)


def resume_training(folder: Path) -> None:
    found = find_checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no checkpoint, so that training starts at step 0")
    steps = steps_done(found[-1])
    require(isinstance(steps, int) and steps >= 0, f"steps {steps!r}")
    accelerator, network = samples.tiny_training()
    load_checkpoint(accelerator, found[-1])
    require(all(parameter.isfinite().all() for parameter in network.parameters()), "weights that are not finite")
    kept = [json.loads(line)["step"] for line in lines_until(folder / "log.jsonl", steps)]
    require(all(step <= steps for step in kept), "lines of later steps")


def resume_evaluation(folder: Path) -> None:
    report = EvaluationReport.open(folder, dict(samples.SETTINGS))
    report.is_finished("ade20k_150", 7)
    report.to_markdown(per_class=True)
    metric = MeanIoU(samples.CLASS_NAMES, num_samples=samples.NUM_SAMPLES)
    counted = ProgressFile(folder / "scenes.progress.safetensors", samples.SETTINGS).restore(metric)
    require(counted is None or counted.shape == (samples.NUM_SAMPLES,), "another number of samples")


# All -----------------------------------------------------------------------------------------------------------------

READERS = {
    reader.name: reader
    for reader in (
        Reader("picture, sed-hf segment", samples.pictures, read_picture_file, 16),
        Reader("picture, processor", samples.pictures, read_picture_in_python, 14, arguments=("images:",)),
        Reader("picture, pipeline", samples.pictures, read_picture_in_pipeline, 2, arguments=("images:",)),
        Reader(
            "picture, demo", samples.pictures, read_picture_in_demo, 12, arguments=("The picture has", "is no longer")
        ),
        Reader("video", samples.videos, read_video, 2),
        Reader("label map, picture", samples.label_maps, read_label_map, 12, arguments=("label",)),
        Reader("label map, .mat", samples.mat_label_maps, read_label_map, 10),
        Reader("label map, RLE JSON", samples.rle_label_maps, read_label_map, 10),
        Reader("data set, raw", samples.dataset_folders, read_dataset, 2, arguments=("data folder",)),
        Reader("data set, Parquet", samples.prepared_folders, read_prepared, 1, r"\.parquet$", ("cannot read the",)),
        Reader("prepare_dataset", samples.own_data_folders, prepare, 1, writes="prepared"),
        Reader("vocabulary", samples.vocabularies, read_vocabulary, 10, arguments=("text[",)),
        Reader("vocabulary, encoded", samples.encoded_vocabularies, read_encoded_vocabulary, 8),
        Reader("cache of class embeddings", samples.cached_embeddings, read_cached_embedding, 6),
        Reader(
            "class names, templates",
            samples.typed_names,
            read_arguments,
            5,
            arguments=("text", "prompt_templates", "arguments", "class name", "In “", "There are"),
            refusals=(TypeError, ValueError),
        ),
        Reader("config.json", samples.config_files, read_config, 0.8, arguments=("config",)),
        Reader(
            "model folder",
            samples.model_folders,
            read_model_folder,
            0.4,
            targets=r"\.(json|safetensors)$",
        ),
        Reader("checkpoint, sed-hf convert", samples.checkpoints, read_checkpoint, 1.5, arguments=("checkpoint:",)),
        Reader("recipe", samples.recipes, read_recipe, 3, arguments=tuple(Recipe.__dataclass_fields__)),
        Reader("training, resumed", samples.training_folders, resume_training, 1),
        Reader("evaluation, resumed", samples.evaluation_folders, resume_evaluation, 4, targets=r"(json|safetensors)$"),
    )
}


def planned_cases(readers: list[Reader], total: int) -> Iterator[tuple[Reader, int]]:
    """How many of `total` cases each reader gets: at least one."""
    shares = sum(reader.share for reader in readers)
    for reader in readers:
        yield reader, math.ceil(total * reader.share / shares)
