"""Evaluation on one data set: figures, predictions, processes, interruptions, errors."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import PartialState
from made_up_predictors import (
    CLASS_NAMES,
    BrightnessPredictor,
    HalvesPredictor,
    lower_resolution,
    small_processor,
    write_own_pictures,
)
from PIL import Image
from safetensors.torch import save_file

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.data.benchmarks import load_benchmark
from sed_hf.data.scenes import SceneDataset, scene_vocabulary
from sed_hf.evaluation import MultiScaleFlip, evaluate_benchmark
from sed_hf.evaluation.progress import ProgressFile
from sed_hf.metrics import MeanIoU

sys.path.append(str(Path(__file__).parents[1] / "data"))

from raw_copies import (
    RawIds,
    write_ade20k_150,
    write_ade20k_847,
    write_coco_stuff,
    write_pascal_context_59,
    write_pascal_context_459,
    write_pascal_voc,
)


@pytest.fixture(scope="module")
def processor(tiny_processor: SEDProcessor) -> SEDProcessor:
    return small_processor(tiny_processor)


# --- figures


@dataclass(frozen=True)
class BenchmarkCase:
    """Raw ids of two classes and of an ignored pixel, and what a predictor sees that tells the two apart."""

    write: Callable[[Path, dict[str, RawIds]], None]
    file_name: str
    first_id: int
    second_id: int
    ignored_id: int
    second_prediction: int = 1


BENCHMARK_CASES = {
    "coco_stuff_171": BenchmarkCase(write_coco_stuff, "000000000139", 0, 1, 255),
    "ade20k_150": BenchmarkCase(write_ade20k_150, "ADE_val_00000001", 1, 2, 0),
    "ade20k_847": BenchmarkCase(write_ade20k_847, "ADE_val_00000001", 2978, 312, 0),
    "pascal_context_59": BenchmarkCase(write_pascal_context_59, "2008_000002", 2, 9, 0),
    "pascal_context_459": BenchmarkCase(write_pascal_context_459, "2008_000002", 1, 2, 460),
    "pascal_voc_20": BenchmarkCase(write_pascal_voc, "2007_000033", 1, 2, 0),
    # Of the 59 names that the model is asked for, the 38th is one of those that mean background.
    "pascal_voc_20b": BenchmarkCase(write_pascal_voc, "2007_000033", 1, 0, 255, second_prediction=37),
}


@pytest.mark.parametrize("name", BENCHMARK_CASES)
def test_figures_of_a_benchmark_equal_those_counted_by_hand(name: str, processor: SEDProcessor, tmp_path: Path) -> None:
    case = BENCHMARK_CASES[name]
    first, second, ignored = case.first_id, case.second_id, case.ignored_id
    raw_ids = np.array([[first, first, second, second], [second, second, second, ignored]])
    case.write(tmp_path, {case.file_name: raw_ids})

    predictor = HalvesPredictor(left=0, right=case.second_prediction)
    figures = evaluate_benchmark(predictor, processor, load_benchmark(name, tmp_path))

    # First class: 2 of 2 pixels hit, 2 false ones. Second class: 3 of 5 hit, the one beside them is ignored.
    summary = {figure: figures[figure] for figure in ("mIoU", "fwIoU", "mACC", "pACC")}
    assert summary == pytest.approx(
        {"mIoU": (50 + 60) / 2, "fwIoU": (2 * 50 + 5 * 60) / 7, "mACC": (100 + 60) / 2, "pACC": 100 * 5 / 7}
    )


def test_scenes_report_backgrounds_and_seen_and_unseen_compositions_apart(processor: SEDProcessor) -> None:
    scenes = SceneDataset("test", 4, size=64)
    figures = evaluate_benchmark(BrightnessPredictor(), processor, scenes)

    iou = [figures[f"IoU-{name}"] for name in scene_vocabulary()]
    for group, ids in {"backgrounds": slice(0, 8), "seen": slice(8, 80), "unseen": slice(80, 104)}.items():
        occurring = [value for value in iou[ids] if value is not None]
        assert figures[f"mIoU-{group}"] == pytest.approx(np.mean(occurring))


def test_training_scenes_have_no_unseen_compositions(processor: SEDProcessor) -> None:
    figures = evaluate_benchmark(BrightnessPredictor(), processor, SceneDataset("train", 1, size=64))
    assert "mIoU-seen" in figures
    assert "mIoU-unseen" not in figures


def test_pictures_of_a_batch_may_have_any_size(processor: SEDProcessor, tmp_path: Path) -> None:
    dataset = write_own_pictures(tmp_path, [(3, 8), (9, 2), (1, 1)])
    one_by_one = evaluate_benchmark(BrightnessPredictor(), processor, dataset)
    assert evaluate_benchmark(BrightnessPredictor(), processor, dataset, batch_size=2) == one_by_one


def test_workers_change_nothing(processor: SEDProcessor, tmp_path: Path) -> None:
    dataset = write_own_pictures(tmp_path, [(4, 4)] * 3)
    alone = evaluate_benchmark(BrightnessPredictor(), processor, dataset)
    assert evaluate_benchmark(BrightnessPredictor(), processor, dataset, num_workers=2) == alone


# --- vocabulary


def test_vocabulary_is_encoded_once(processor: SEDProcessor, tmp_path: Path) -> None:
    predictor = BrightnessPredictor()
    evaluate_benchmark(predictor, processor, write_own_pictures(tmp_path, [(2, 2)] * 3))
    assert predictor.num_encodings == 1


def test_given_class_embeddings_are_used(processor: SEDProcessor, tmp_path: Path) -> None:
    predictor = BrightnessPredictor()
    dataset = write_own_pictures(tmp_path, [(2, 2)])
    evaluate_benchmark(predictor, processor, dataset, class_embeddings=torch.zeros(3, 1, 1))
    assert predictor.num_encodings == 0


def test_padded_vocabulary_asks_for_names_that_are_never_right(processor: SEDProcessor) -> None:
    scenes = SceneDataset("test", 1, size=64)
    figures = evaluate_benchmark(HalvesPredictor(left=458, right=458), processor, scenes, vocabulary_size=459)
    assert sum(name.startswith("IoU-") for name in figures) == 459
    assert figures["pACC"] == 0.0


def test_padded_names_share_no_synonym_with_the_vocabulary(processor: SEDProcessor) -> None:
    scenes = SceneDataset("test", 1, size=64)
    figures = evaluate_benchmark(BrightnessPredictor(), processor, scenes, vocabulary_size=459)
    names = [figure.removeprefix("IoU-") for figure in figures if figure.startswith("IoU-")]
    own, padding = set(", ".join(names[:104]).split(", ")), set(", ".join(names[104:]).split(", "))
    assert not own & padding


def test_padded_vocabulary_of_voc_20b_adds_background(processor: SEDProcessor, tmp_path: Path) -> None:
    write_pascal_voc(tmp_path, {"2007_000033": np.array([[1, 0]])})
    dataset = load_benchmark("pascal_voc_20b", tmp_path)
    figures = evaluate_benchmark(HalvesPredictor(left=0, right=79), processor, dataset, vocabulary_size=80)
    assert figures["mIoU"] == 100.0


# --- predictions


def predictions_of(dataset: Any, model: Any, processor: SEDProcessor, folder: Path, **options: Any) -> list[np.ndarray]:
    """The class maps that an evaluation writes."""
    evaluate_benchmark(model, processor, dataset, predictions_dir=folder, **options)
    return [np.asarray(Image.open(folder / f"{Path(name).stem}.png")) for name in dataset["file_name"]]


def test_predictions_equal_those_of_model_and_processor(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, tmp_path: Path
) -> None:
    processor = lower_resolution(tiny_processor)
    dataset = write_own_pictures(tmp_path / "data", [(20, 30), (31, 17)])
    predictions = predictions_of(dataset, tiny_model, processor, tmp_path / "predictions")
    for example, prediction in zip(dataset, predictions, strict=True):
        inputs = processor(images=example["image"], text=CLASS_NAMES, return_tensors="pt")
        with torch.no_grad():
            outputs = tiny_model(**inputs)
        size = example["image"].size[::-1]
        (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
        np.testing.assert_array_equal(prediction, expected)


@pytest.mark.parametrize("augmentation", [None, MultiScaleFlip(flip=True)])
@pytest.mark.parametrize("topk", [None, 0, 8])
def test_early_rejection_is_left_to_the_model(
    topk: int | None, augmentation: MultiScaleFlip | None, processor: SEDProcessor, tmp_path: Path
) -> None:
    predictor = BrightnessPredictor()
    dataset = write_own_pictures(tmp_path, [(2, 2)])
    evaluate_benchmark(predictor, processor, dataset, early_rejection_topk=topk, augmentation=augmentation)
    assert predictor.topk_seen == topk


@pytest.mark.parametrize(("vocabulary_size", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_predictions_have_the_bits_that_the_vocabulary_needs(
    vocabulary_size: int, dtype: type, processor: SEDProcessor, tmp_path: Path
) -> None:
    dataset = write_own_pictures(tmp_path / "data", [(2, 4)])
    last = vocabulary_size - 1
    (prediction,) = predictions_of(
        dataset, HalvesPredictor(0, last), processor, tmp_path / "predictions", vocabulary_size=vocabulary_size
    )
    assert prediction.dtype == dtype
    np.testing.assert_array_equal(prediction, [[0, 0, last, last]] * 2)


# --- use in training


def test_every_module_returns_to_its_mode(processor: SEDProcessor, tmp_path: Path) -> None:
    predictor = BrightnessPredictor().train()
    predictor.frozen = torch.nn.Linear(1, 1).eval()
    evaluate_benchmark(predictor, processor, write_own_pictures(tmp_path, [(2, 2)]))
    assert predictor.training
    assert not predictor.frozen.training


def test_random_states_stay_as_they_were(processor: SEDProcessor, tmp_path: Path) -> None:
    dataset = write_own_pictures(tmp_path, [(2, 2)] * 2)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    evaluate_benchmark(BrightnessPredictor(), processor, dataset, num_workers=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_progress_is_shown_on_request_alone(
    processor: SEDProcessor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = write_own_pictures(tmp_path, [(2, 2)] * 3)
    evaluate_benchmark(BrightnessPredictor(), processor, dataset)
    assert capfd.readouterr().err == ""
    evaluate_benchmark(BrightnessPredictor(), processor, dataset, progress_bar="my pictures")
    shown = capfd.readouterr().err
    assert "my pictures: encoding 3 classes" in shown
    assert "3/3" in shown


# --- several processes

NUM_SCENES = 7


def scene_figures(processor: SEDProcessor, **options: Any) -> dict[str, float | None]:
    scenes = SceneDataset("test", NUM_SCENES, size=64)
    return evaluate_benchmark(BrightnessPredictor(), processor, scenes, **options)


def progress_at(folder: Path, **settings: Any) -> ProgressFile:
    return ProgressFile(folder / "progress.safetensors", settings, images_per_save=1)


class InterruptedPredictor(BrightnessPredictor):
    """Is interrupted when it has seen some pictures."""

    def __init__(self, num_seen: int) -> None:
        super().__init__()
        self.num_seen = num_seen

    def logits(self, pixel_values: torch.Tensor, num_classes: int) -> torch.Tensor:
        if self.num_images > self.num_seen:
            raise KeyboardInterrupt
        return super().logits(pixel_values, num_classes)


def interrupt_after(num_images: int, processor: SEDProcessor, folder: Path) -> None:
    """Leave the state of so many scenes, as one process counted them."""
    scenes, predictor = SceneDataset("test", NUM_SCENES, size=64), InterruptedPredictor(num_images)
    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmark(predictor, processor, scenes, progress_file=progress_at(folder))
    assert int(progress_at(folder).load()["counted"].sum()) == num_images


def run_process(rank: int, port: int, processor: SEDProcessor, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState(cpu=True)
    results = {
        "incomplete last batch": scene_figures(processor, batch_size=2, predictions_dir=folder / "predictions"),
        "saving": scene_figures(processor, progress_file=progress_at(folder / "saved")),
        "going on": scene_figures(processor, progress_file=progress_at(folder / "interrupted")),
        "fewer images than processes": evaluate_benchmark(
            BrightnessPredictor(), processor, SceneDataset("test", 1, size=64)
        ),
    }
    (folder / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def process_folder(processor: SEDProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes found: a JSON file of each, and their predictions."""
    folder = tmp_path_factory.mktemp("processes")
    interrupt_after(3, processor, folder / "interrupted")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Importing the libraries takes seconds, so one server does it for all processes.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["sed_hf.evaluation"])
    mp.start_processes(run_process, (port, processor, folder), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize("run", ["incomplete last batch", "saving", "going on"])
def test_two_processes_equal_one(run: str, process_folder: Path, processor: SEDProcessor) -> None:
    for rank in range(2):
        assert json.loads((process_folder / f"{rank}.json").read_text())[run] == scene_figures(processor)


def test_one_image_on_two_processes_counts_once(process_folder: Path, processor: SEDProcessor) -> None:
    expected = evaluate_benchmark(BrightnessPredictor(), processor, SceneDataset("test", 1, size=64))
    for rank in range(2):
        results = json.loads((process_folder / f"{rank}.json").read_text())
        assert results["fewer images than processes"] == expected


def test_two_processes_write_every_prediction(process_folder: Path) -> None:
    assert len(list((process_folder / "predictions").glob("*.png"))) == NUM_SCENES


# --- interruptions


class KilledPredictor(BrightnessPredictor):
    """Kills its process, as `kill -9` does, at the sixth picture."""

    def logits(self, pixel_values: torch.Tensor, num_classes: int) -> torch.Tensor:
        if self.num_images == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().logits(pixel_values, num_classes)


def evaluate_until_killed(processor: SEDProcessor, folder: Path) -> None:
    scenes = SceneDataset("test", NUM_SCENES, size=64)
    progress_file = ProgressFile(folder / "progress.safetensors", {"topk": 8}, images_per_save=2)
    evaluate_benchmark(KilledPredictor(), processor, scenes, progress_file=progress_file)


@pytest.fixture
def killed_run(processor: SEDProcessor, tmp_path: Path) -> Path:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sed_hf.evaluation"])
    process = context.Process(target=evaluate_until_killed, args=(processor, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return tmp_path


def test_killed_run_goes_on_where_it_was_saved(killed_run: Path, processor: SEDProcessor) -> None:
    predictor, scenes = BrightnessPredictor(), SceneDataset("test", NUM_SCENES, size=64)
    figures = evaluate_benchmark(predictor, processor, scenes, progress_file=progress_at(killed_run, topk=8))
    assert predictor.num_images == NUM_SCENES - 4
    assert figures == scene_figures(processor)


def test_state_of_other_settings_is_refused_by_name(killed_run: Path, processor: SEDProcessor) -> None:
    with pytest.raises(ValueError, match=r"progress\.safetensors .* other settings: topk was 8 and is 4\."):
        scene_figures(processor, progress_file=progress_at(killed_run, topk=4))


@pytest.mark.parametrize(
    ("state", "settings"),
    [
        ({"counted": torch.zeros(1, dtype=torch.bool)}, "{}"),
        ({"counted": torch.zeros(1), "confusion_matrix": torch.zeros(2, 2, dtype=torch.int64)}, "{}"),
        ({"counted": torch.zeros(1).bool(), "confusion_matrix": torch.full((2, 2), -1)}, "{}"),
        ({"counted": torch.zeros(1).bool(), "confusion_matrix": torch.zeros(2, 2).long()}, "[]"),
        ({"counted": torch.zeros(1).bool(), "confusion_matrix": torch.zeros(2, 2).long()}, "[" * 100_000),
    ],
    ids=["missing", "numbers", "negative", "settings without names", "deep"],
)
def test_state_that_is_none_is_refused(tmp_path: Path, state: dict[str, torch.Tensor], settings: str) -> None:
    path = tmp_path / "progress.safetensors"
    save_file(state, path, metadata={"settings": settings})
    with pytest.raises(ValueError, match=rf"{path} is no state"):
        ProgressFile(path, {}).restore(MeanIoU(["a", "b"], num_samples=1))


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "progress.safetensors"
    path.write_bytes(b"\xff" * 50)
    with pytest.raises(ValueError, match=rf"{path} is no state of an evaluation, or damaged"):
        ProgressFile(path, {}).load()


def test_interruption_after_the_last_image_leaves_nothing_to_segment(processor: SEDProcessor, tmp_path: Path) -> None:
    scenes = SceneDataset("test", 2, size=64)
    figures = evaluate_benchmark(BrightnessPredictor(), processor, scenes, progress_file=progress_at(tmp_path))
    predictor = BrightnessPredictor()
    assert evaluate_benchmark(predictor, processor, scenes, progress_file=progress_at(tmp_path)) == figures
    assert predictor.num_images == 0


def test_interrupted_save_leaves_the_previous_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = MeanIoU(CLASS_NAMES, num_samples=1)
    progress = progress_at(tmp_path)
    progress.save(metric.state_dict())

    def disk_is_full(path: Path, content: bytes) -> None:
        path.write_text("half a")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_is_full)
    metric.add(prediction=[[0]], reference=[[0]], sample_id=0)
    with pytest.raises(OSError, match=r"No space left on device: .*progress\.safetensors"):
        progress.save(metric.state_dict())
    assert progress.load()["counted"].tolist() == [False]
    assert [path.name for path in tmp_path.iterdir()] == ["progress.safetensors"]


# --- errors


def test_label_of_another_size_than_its_picture_is_named(processor: SEDProcessor, tmp_path: Path) -> None:
    dataset = write_own_pictures(tmp_path, [(2, 4)])
    Image.new("RGB", (5, 2)).save(tmp_path / "images" / "0.png")
    with pytest.raises(ValueError, match=r"0\.png: the picture has 5×2 pixels, but its label 4×2"):
        evaluate_benchmark(BrightnessPredictor(), processor, dataset)


def test_label_out_of_range_is_named(processor: SEDProcessor, tmp_path: Path) -> None:
    dataset = write_own_pictures(tmp_path, [(1, 2)])
    Image.fromarray(np.array([[0, 3]], dtype=np.uint8)).save(tmp_path / "masks" / "0.png")
    with pytest.raises(ValueError, match=r"masks/0\.png: label values outside the class range: 3"):
        evaluate_benchmark(BrightnessPredictor(), processor, dataset)


def test_streamed_data_are_refused(processor: SEDProcessor, tmp_path: Path) -> None:
    write_own_pictures(tmp_path, [(1, 2)])
    stream = load_benchmark("custom", tmp_path, streaming=True)
    with pytest.raises(TypeError, match="not streamed"):
        evaluate_benchmark(BrightnessPredictor(), processor, stream)


def test_vocabulary_cannot_shrink(processor: SEDProcessor, tmp_path: Path) -> None:
    dataset = write_own_pictures(tmp_path, [(1, 2)])
    with pytest.raises(ValueError, match="vocabulary size 2: expected at least 3"):
        evaluate_benchmark(BrightnessPredictor(), processor, dataset, vocabulary_size=2)
