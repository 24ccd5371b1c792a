"""Evaluation on one data set: figures, predictions, processes, interruptions, errors."""

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import PartialState
from made_up_predictors import CLASS_NAMES, BrightnessPredictor, HalvesPredictor, small_processor, write_own_images
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.data.benchmarks import load_benchmark
from sed_hf.data.scenes import SceneDataset, scene_vocabulary
from sed_hf.evaluation import MultiScaleFlip, evaluate_benchmark
from sed_hf.evaluation.evaluate import ProgressFile
from sed_hf.metrics import MeanIoU

sys.path.append(str(Path(__file__).parents[1] / "data"))

from raw_copies import (
    write_ade20k_150,
    write_ade20k_847,
    write_coco_stuff,
    write_pascal_context_59,
    write_pascal_context_459,
    write_pascal_voc,
)

NUM_SCENES = 7


@pytest.fixture(scope="module")
def processor(tiny_processor: SEDProcessor) -> SEDProcessor:
    return small_processor(tiny_processor)


def evaluate(model: Any, processor: SEDProcessor, dataset: Any, **options: Any) -> dict[str, float | None]:
    return evaluate_benchmark(model, processor, dataset, **{"num_workers": 0, **options})


def scenes(count: int = NUM_SCENES) -> SceneDataset:
    return SceneDataset("test", count, size=64)


# --- figures


@pytest.mark.parametrize(
    ("name", "write", "file_name", "ids", "second_prediction"),
    [
        ("coco_stuff_171", write_coco_stuff, "000000000139", (0, 1, 255), 1),
        ("ade20k_150", write_ade20k_150, "ADE_val_00000001", (1, 2, 0), 1),
        ("ade20k_847", write_ade20k_847, "ADE_val_00000001", (2978, 312, 0), 1),
        ("pascal_context_59", write_pascal_context_59, "2008_000002", (2, 9, 0), 1),
        ("pascal_context_459", write_pascal_context_459, "2008_000002", (1, 2, 460), 1),
        ("pascal_voc_20", write_pascal_voc, "2007_000033", (1, 2, 0), 1),
        # Of the 59 names that the model is asked for, the 38th is one of those that mean background.
        ("pascal_voc_20b", write_pascal_voc, "2007_000033", (1, 0, 255), 37),
    ],
)
def test_figures_of_a_benchmark_equal_those_counted_by_hand(
    name: str,
    write: Callable,
    file_name: str,
    ids: tuple[int, int, int],
    second_prediction: int,
    processor: SEDProcessor,
    tmp_path: Path,
) -> None:
    first, second, ignored = ids
    write(tmp_path, {file_name: np.array([[first, first, second, second], [second, second, second, ignored]])})
    predictor = HalvesPredictor(left=0, right=second_prediction)
    figures = evaluate(predictor, processor, load_benchmark(name, tmp_path))
    # First class: 2 of 2 pixels hit, 2 false ones. Second class: 3 of 5 hit, the one beside them is ignored.
    summary = {figure: figures[figure] for figure in ("mIoU", "fwIoU", "mACC", "pACC")}
    assert summary == pytest.approx(
        {"mIoU": (50 + 60) / 2, "fwIoU": (2 * 50 + 5 * 60) / 7, "mACC": (100 + 60) / 2, "pACC": 100 * 5 / 7}
    )


def test_scenes_report_backgrounds_and_seen_and_unseen_compositions_apart(processor: SEDProcessor) -> None:
    figures = evaluate(BrightnessPredictor(), processor, scenes(4))
    iou = [figures[f"IoU-{name}"] for name in scene_vocabulary()]
    for group, ids in {"backgrounds": slice(0, 8), "seen": slice(8, 80), "unseen": slice(80, 104)}.items():
        occurring = [value for value in iou[ids] if value is not None]
        assert figures[f"mIoU-{group}"] == pytest.approx(np.mean(occurring))


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"num_workers": 2}, {"num_workers": None}])
def test_batches_of_any_sizes_and_workers_change_nothing(
    options: dict[str, int | None], processor: SEDProcessor, tmp_path: Path
) -> None:
    dataset = write_own_images(tmp_path, [(3, 8), (9, 2), (1, 1)])
    expected = evaluate(BrightnessPredictor(), processor, dataset)
    assert evaluate(BrightnessPredictor(), processor, dataset, **options) == expected


def test_padded_vocabulary_asks_for_other_names_that_are_never_right(processor: SEDProcessor) -> None:
    figures = evaluate(HalvesPredictor(left=458, right=458), processor, scenes(1), vocabulary_size=459)
    names = [figure.removeprefix("IoU-") for figure in figures if figure.startswith("IoU-")]
    assert len(names) == 459
    assert not set(", ".join(names[:104]).split(", ")) & set(", ".join(names[104:]).split(", "))
    assert figures["pACC"] == 0.0


def test_padded_vocabulary_of_voc_20b_adds_background(processor: SEDProcessor, tmp_path: Path) -> None:
    write_pascal_voc(tmp_path, {"2007_000033": np.array([[1, 0]])})
    dataset = load_benchmark("pascal_voc_20b", tmp_path)
    figures = evaluate(HalvesPredictor(left=0, right=79), processor, dataset, vocabulary_size=80)
    assert figures["mIoU"] == 100.0


# --- predictions


def test_predictions_equal_those_of_model_and_processor(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, tmp_path: Path
) -> None:
    processor = small_processor(tiny_processor, 64, tiny_processor.prompt_templates)
    dataset = write_own_images(tmp_path / "data", [(20, 30), (31, 17)])
    evaluate(tiny_model, processor, dataset, predictions_dir=tmp_path)
    for index, example in enumerate(dataset):
        inputs = processor(images=example["image"], text=CLASS_NAMES, return_tensors="pt")
        with torch.no_grad():
            outputs = tiny_model(**inputs)
        size = example["image"].size[::-1]
        (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
        np.testing.assert_array_equal(Image.open(tmp_path / f"{index}.png"), expected)


@pytest.mark.parametrize("augmentation", [None, MultiScaleFlip(flip=True)])
@pytest.mark.parametrize("topk", [None, 0, 8])
def test_early_rejection_is_left_to_the_model(
    topk: int | None, augmentation: MultiScaleFlip | None, processor: SEDProcessor
) -> None:
    predictor = BrightnessPredictor()
    evaluate(predictor, processor, scenes(1), early_rejection_topk=topk, augmentation=augmentation)
    assert predictor.topk_seen == topk


@pytest.mark.parametrize(("vocabulary_size", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_predictions_have_the_bits_that_the_vocabulary_needs(
    vocabulary_size: int, dtype: type, processor: SEDProcessor, tmp_path: Path
) -> None:
    dataset, last = write_own_images(tmp_path / "data", [(2, 4)]), vocabulary_size - 1
    predictor = HalvesPredictor(0, last)
    evaluate(predictor, processor, dataset, vocabulary_size=vocabulary_size, predictions_dir=tmp_path)
    prediction = np.asarray(Image.open(tmp_path / "0.png"))
    assert prediction.dtype == dtype
    np.testing.assert_array_equal(prediction, [[0, 0, last, last]] * 2)


# --- use in training


def test_model_and_random_states_stay_as_they_were(processor: SEDProcessor) -> None:
    predictor = BrightnessPredictor().train()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    evaluate(predictor, processor, scenes(2), num_workers=1)
    assert predictor.training
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_progress_is_only_shown_on_request(processor: SEDProcessor, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(BrightnessPredictor(), processor, scenes(3))
    assert capfd.readouterr().err == ""
    evaluate(BrightnessPredictor(), processor, scenes(3), progress_bar="my images")
    shown = capfd.readouterr().err
    assert "Encoding 104 classes" in shown
    assert "my images: 100%" in shown
    assert "3/3" in shown


# --- interruptions


def progress_at(folder: Path, **settings: Any) -> ProgressFile:
    return ProgressFile(folder / "progress.safetensors", settings, images_per_save=1)


@pytest.mark.parametrize("num_seen", [1, 6, 7])
def test_interrupted_run_continues_with_any_batch_size(num_seen: int, processor: SEDProcessor, tmp_path: Path) -> None:
    if num_seen < NUM_SCENES:
        with pytest.raises(KeyboardInterrupt):
            evaluate(BrightnessPredictor(num_seen), processor, scenes(), progress_file=progress_at(tmp_path))
    else:  # after the last image
        evaluate(BrightnessPredictor(), processor, scenes(), progress_file=progress_at(tmp_path))
    predictor = BrightnessPredictor()
    figures = evaluate(predictor, processor, scenes(), progress_file=progress_at(tmp_path), batch_size=2)
    assert predictor.num_images == NUM_SCENES - num_seen
    assert figures == evaluate(BrightnessPredictor(), processor, scenes())


def test_progress_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    progress_at(tmp_path, topk=8).save(1, MeanIoU(CLASS_NAMES))
    with pytest.raises(ValueError, match=r"progress\.safetensors .* other settings: topk was 8 and is 4\."):
        progress_at(tmp_path, topk=4)


def test_file_that_is_not_progress_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "progress.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"progress\.safetensors is not the progress of an evaluation"):
        progress_at(tmp_path)
    assert path.read_bytes() == b"mine"


# --- several processes


def run_process(rank: int, port: int, processor: SEDProcessor, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState(cpu=True)
    predictor = BrightnessPredictor()
    results = {
        "incomplete last batch": evaluate(
            predictor, processor, scenes(), batch_size=2, predictions_dir=folder / "predictions"
        ),
        "continued": evaluate(predictor, processor, scenes(), progress_file=progress_at(folder)),
        "one image": evaluate(predictor, processor, scenes(1)),
        "images seen": predictor.num_images,
    }
    (folder / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_report_and_write_what_one_does(processor: SEDProcessor, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(BrightnessPredictor(3), processor, scenes(), progress_file=progress_at(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Importing the libraries takes seconds, so one server does it for all processes.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["sed_hf.evaluation"])
    mp.start_processes(run_process, (port, processor, tmp_path), nprocs=2, start_method="forkserver")
    expected = evaluate(BrightnessPredictor(), processor, scenes())
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert results["incomplete last batch"] == results["continued"] == expected
        assert results["one image"] == evaluate(BrightnessPredictor(), processor, scenes(1))
        assert results["images seen"] == 4 + 2 + 1  # equally many on both
    assert len(list((tmp_path / "predictions").glob("*.png"))) == NUM_SCENES


# --- errors


class OverflowingPredictor(BrightnessPredictor):
    """Gives values that are not finite for the second image of a batch."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def logits(self, pixel_values: torch.Tensor, num_classes: int) -> torch.Tensor:
        logits = super().logits(pixel_values, num_classes)
        logits[1, 2] = self.value
        return logits


@pytest.mark.parametrize("augmentation", [None, MultiScaleFlip(flip=True)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_scored_but_named_by_their_image(
    value: float, augmentation: MultiScaleFlip | None, processor: SEDProcessor, tmp_path: Path
) -> None:
    dataset, predictor = write_own_images(tmp_path, [(4, 4)] * 2), OverflowingPredictor(value)
    with pytest.raises(ValueError, match=r"1\.png: the logits are not finite; use float32 or bfloat16"):
        evaluate(predictor, processor, dataset, batch_size=2, augmentation=augmentation)


def test_label_of_another_size_than_its_image_is_named(processor: SEDProcessor, tmp_path: Path) -> None:
    dataset = write_own_images(tmp_path, [(2, 4)])
    Image.new("RGB", (5, 2)).save(tmp_path / "images" / "0.png")
    with pytest.raises(ValueError, match=r"0\.png: the prediction is \(2, 5\), the label \(2, 4\)"):
        evaluate(BrightnessPredictor(), processor, dataset)


def test_streamed_data_are_refused(processor: SEDProcessor, tmp_path: Path) -> None:
    write_own_images(tmp_path, [(1, 2)])
    with pytest.raises(TypeError, match="not streamed"):
        evaluate(BrightnessPredictor(), processor, load_benchmark("custom", tmp_path, streaming=True))


@pytest.mark.parametrize("size", [103, 100_000])
def test_a_vocabulary_size_that_cannot_be_had_is_refused(size: int, processor: SEDProcessor) -> None:
    with pytest.raises(ValueError, match=f"vocabulary size {size}: expected 104 to "):
        evaluate(BrightnessPredictor(), processor, scenes(1), vocabulary_size=size)
