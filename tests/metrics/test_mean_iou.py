"""The mean IoU metric: figures, streaming, several processes, errors."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import psutil
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import sed_hf.metrics.mean_iou
from sed_hf.metrics import MeanIoU

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "mean_iou.json").read_text())
METRIC_FILE = str(Path(sed_hf.metrics.mean_iou.__file__))
NAMES = ["cat", "dog", "sky"]


def add_reference_images(metric: MeanIoU) -> None:
    for image in REFERENCE["images"]:
        metric.add(prediction=torch.tensor(image["prediction"]), reference=torch.tensor(image["label"]))


def reference_names() -> list[str]:
    return [f"c{index}" for index in range(REFERENCE["num_classes"])]


def expected_figures() -> dict[str, Any]:
    expected = REFERENCE["expected"]
    return {name: None if value is None else pytest.approx(value, rel=1e-12) for name, value in expected.items()}


# --- figures


def test_figures_equal_the_official_evaluation() -> None:
    metric = MeanIoU(reference_names(), ignore_index=REFERENCE["ignore_index"])
    add_reference_images(metric)
    assert metric.compute() == expected_figures()


def test_metric_loads_by_path_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", None, raising=False)
    metric = evaluate.load(METRIC_FILE, class_names=reference_names())
    add_reference_images(metric)
    assert metric.compute() == expected_figures()


def test_figures_equal_those_counted_by_hand() -> None:
    # cat: 2 of 3 pixels hit, no false ones; dog: 1 of 1 hit, 1 false one. Sky occurs nowhere.
    figures = MeanIoU(NAMES).compute(predictions=[[[0, 0], [1, 1]]], references=[[[0, 0], [0, 1]]])
    assert figures == pytest.approx(
        {
            "mIoU": 100 * (2 / 3 + 1 / 2) / 2,
            "fwIoU": 100 * (3 / 4 * 2 / 3 + 1 / 4 * 1 / 2),
            "IoU-cat": 100 * 2 / 3,
            "IoU-dog": 50.0,
            "IoU-sky": None,
            "mACC": 100 * (2 / 3 + 1) / 2,
            "pACC": 75.0,
            "ACC-cat": 100 * 2 / 3,
            "ACC-dog": 100.0,
            "ACC-sky": None,
        }
    )


def test_class_that_is_predicted_but_never_labelled_does_not_enter_the_mean() -> None:
    figures = MeanIoU(NAMES).compute(predictions=[[[0, 2]]], references=[[[0, 0]]])
    assert figures["mIoU"] == figures["IoU-cat"] == 50.0


def test_prediction_at_an_ignored_pixel_counts_nowhere() -> None:
    figures = MeanIoU(NAMES).compute(predictions=[[[0, 1, 0]]], references=[[[0, 1, 255]]])
    assert figures["IoU-cat"] == 100.0


def test_ignored_label_may_be_any_number() -> None:
    label = np.array([[0, 65535]], dtype=np.uint16)
    assert MeanIoU(NAMES, ignore_index=65535).compute(predictions=[[[0, 0]]], references=[label])["pACC"] == 100.0


def test_set_without_a_labelled_pixel_has_no_figures() -> None:
    figures = MeanIoU(NAMES).compute(predictions=[[[0]]], references=[[[255]]])
    assert set(figures.values()) == {None}


def test_voc_20b_counts_every_prediction_from_20_on_as_background() -> None:
    metric = MeanIoU([f"object {index}" for index in range(20)] + ["background"], last_class_is_background=True)
    figures = metric.compute(predictions=[[[19, 20, 37, 58]]], references=[[[19, 20, 20, 20]]])
    assert figures["IoU-background"] == figures["IoU-object 19"] == 100.0


def test_images_of_one_batch_may_differ_in_size() -> None:
    predictions = [torch.zeros(2, 3, dtype=torch.uint8), torch.ones(4, 1, dtype=torch.int32)]
    assert MeanIoU(NAMES).compute(predictions=predictions, references=predictions)["mIoU"] == 100.0


def test_compute_forgets_the_images_it_reported_on() -> None:
    metric = MeanIoU(NAMES)
    metric.compute(predictions=[[[0]]], references=[[[1]]])
    assert metric.compute(predictions=[[[0]]], references=[[[0]]])["pACC"] == 100.0


# --- streaming


def test_memory_is_constant_over_10000_images() -> None:
    metric = MeanIoU(NAMES, num_samples=10_000)
    generator = torch.Generator().manual_seed(0)

    def add_image(index: int) -> None:
        prediction, label = torch.randint(3, (2, 1, 32, 32), generator=generator)
        metric.add_batch(predictions=prediction, references=label, sample_ids=[index])

    for index in range(500):
        add_image(index)
    before = psutil.Process().memory_info().rss
    for index in range(500, 10_000):
        add_image(index)
    growth = psutil.Process().memory_info().rss - before
    kept_predictions = 9_500 * 32 * 32 * 8
    assert growth < kept_predictions / 20
    assert metric.compute()["pACC"] is not None


def test_repeated_image_counts_once() -> None:
    metric = MeanIoU(NAMES, num_samples=3)
    metric.add_batch(predictions=[[[0]], [[0]]], references=[[[0]], [[0]]], sample_ids=[0, 1])
    metric.add_batch(predictions=[[[1]], [[0]]], references=[[[0]], [[0]]], sample_ids=[2, 0])
    assert metric.compute()["pACC"] == pytest.approx(100 * 2 / 3)


def test_saved_state_goes_on_where_it_was() -> None:
    first = MeanIoU(NAMES, num_samples=3)
    first.add_batch(predictions=[[[0]], [[0]]], references=[[[0]], [[0]]], sample_ids=[0, 1])
    resumed = MeanIoU(NAMES, num_samples=3)
    resumed.load_state_dict(first.state_dict())
    resumed.add_batch(predictions=[[[0]], [[1]]], references=[[[0]], [[0]]], sample_ids=[1, 2])
    assert resumed.compute()["pACC"] == pytest.approx(100 * 2 / 3)


# --- several processes

NUM_IMAGES = 7
WORLD_SIZES = (2, 3)


def random_images(num_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels, (num_images, 6, 5), 40 % of them equal and some labels ignored."""
    generator = torch.Generator().manual_seed(num_images)
    prediction = torch.randint(3, (num_images, 6, 5), generator=generator)
    label = torch.where(torch.rand(prediction.shape, generator=generator) < 0.4, prediction, prediction.roll(1, dims=0))
    label[torch.rand(label.shape, generator=generator) < 0.1] = 255
    return prediction, label


def sharded_batches(num_images: int) -> DataLoader:
    """Batches of two of (predictions, labels, indices), padded by accelerate."""
    dataset = TensorDataset(*random_images(num_images), torch.arange(num_images))
    return Accelerator(cpu=True).prepare(DataLoader(dataset, batch_size=2))


def add_shard(metric: MeanIoU, num_images: int) -> None:
    for predictions, labels, ids in sharded_batches(num_images):
        metric.add_batch(predictions=predictions, references=labels, sample_ids=ids)


def shard_figures(num_images: int) -> dict[str, float | None]:
    metric = MeanIoU(NAMES, num_samples=num_images)
    add_shard(metric, num_images)
    return metric.compute()


def resumed_figures() -> dict[str, float | None]:
    """Figures after the first batch of each process was counted, saved and loaded."""
    metric = MeanIoU(NAMES, num_samples=NUM_IMAGES)
    predictions, labels, ids = next(iter(sharded_batches(NUM_IMAGES)))
    metric.add_batch(predictions=predictions, references=labels, sample_ids=ids)
    resumed = MeanIoU(NAMES, num_samples=NUM_IMAGES)
    resumed.load_state_dict(metric.state_dict())
    add_shard(resumed, NUM_IMAGES)
    return resumed.compute()


def message_of(failing: Callable[[], Any]) -> str:
    try:
        failing()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "no error"


def count_image_0_everywhere() -> None:
    metric = MeanIoU(NAMES, num_samples=2)
    for sample_id in (0, 1):
        metric.add(prediction=[[0]], reference=[[0]], sample_id=sample_id)
    metric.compute()


def run_process(rank: int, world_size: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    Accelerator(cpu=True)
    results = {
        "incomplete last batch": shard_figures(NUM_IMAGES),
        "fewer images than processes": shard_figures(1),
        "resumed": resumed_figures(),
        "counted twice": message_of(count_image_0_everywhere),
        "no indices": message_of(lambda: MeanIoU(NAMES).add(prediction=[[0]], reference=[[0]])),
    }
    (folder / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=WORLD_SIZES)
def process_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of several gloo processes found, in order of rank."""
    world_size = request.param
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Importing the libraries takes seconds, so one server does it for all processes.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["accelerate", "sed_hf.metrics.mean_iou"])
    mp.start_processes(run_process, (world_size, port, folder), nprocs=world_size, start_method="forkserver")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


def one_process_figures(num_images: int) -> dict[str, float | None]:
    predictions, labels = random_images(num_images)
    return MeanIoU(NAMES).compute(predictions=predictions, references=labels)


def test_several_processes_with_an_incomplete_last_batch_equal_one(process_results: list[dict[str, Any]]) -> None:
    for result in process_results:
        assert result["incomplete last batch"] == one_process_figures(NUM_IMAGES)


def test_one_image_padded_to_all_processes_counts_once(process_results: list[dict[str, Any]]) -> None:
    for result in process_results:
        assert result["fewer images than processes"] == one_process_figures(1)


def test_several_processes_go_on_from_a_saved_state(process_results: list[dict[str, Any]]) -> None:
    for result in process_results:
        assert result["resumed"] == one_process_figures(NUM_IMAGES)


def test_image_counted_by_several_processes_is_an_error(process_results: list[dict[str, Any]]) -> None:
    for result in process_results:
        assert "Images [0] were counted by several processes" in result["counted twice"]


def test_several_processes_demand_sample_indices(process_results: list[dict[str, Any]]) -> None:
    for result in process_results:
        assert "Several processes need num_samples and sample_ids" in result["no indices"]


# --- errors


def test_label_out_of_range_is_named_with_its_file() -> None:
    with pytest.raises(ValueError, match=r"a\.png: label 3 is outside the classes 0 to 2"):
        MeanIoU(NAMES).add(prediction=[[0]], reference=[[3]], file_name="a.png")


def test_prediction_out_of_range_is_named_with_its_sample() -> None:
    with pytest.raises(ValueError, match="sample 4: predicted class -1 is outside the classes 0 to 2"):
        MeanIoU(NAMES, num_samples=5).add(prediction=[[-1]], reference=[[0]], sample_id=4)


def test_wrong_batch_leaves_the_metric_as_it_was() -> None:
    metric = MeanIoU(NAMES)
    metric.add(prediction=[[0]], reference=[[0]])
    with pytest.raises(ValueError, match="image 1 of the batch"):
        metric.add_batch(predictions=[[[1]], [[1]]], references=[[[0]], [[9]]])
    assert metric.compute()["pACC"] == 100.0


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"the prediction is \(1, 2\), the label \(1, 1\)"):
        MeanIoU(NAMES).add(prediction=[[0, 0]], reference=[[0]])


def test_scores_in_place_of_class_indices_are_refused() -> None:
    with pytest.raises(TypeError, match=r"prediction must hold integer class indices, not torch\.float32"):
        MeanIoU(NAMES).add(prediction=torch.rand(1, 1), reference=[[0]])


def test_image_that_was_never_added_is_named() -> None:
    metric = MeanIoU(NAMES, num_samples=3)
    metric.add(prediction=[[0]], reference=[[0]], sample_id=1)
    with pytest.raises(RuntimeError, match=r"2 of 3 images were never added, the first are \[0, 2\]"):
        metric.compute()


def test_sample_index_outside_the_set_is_refused() -> None:
    with pytest.raises(ValueError, match="Sample index 3 is outside the data set of 3 samples"):
        MeanIoU(NAMES, num_samples=3).add(prediction=[[0]], reference=[[0]], sample_id=3)


def test_sample_indices_without_the_number_of_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="go together"):
        MeanIoU(NAMES).add(prediction=[[0]], reference=[[0]], sample_id=0)


def test_last_batch_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="both predictions and references"):
        MeanIoU(NAMES).compute(predictions=[[[0]]])


def test_repeated_class_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['cat'\]"):
        MeanIoU(["cat", "dog", "cat"])


def test_processes_of_evaluate_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.distributed"):
        MeanIoU(NAMES, num_process=2, process_id=0)


def test_state_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"confusion_matrix was saved with shape \(2, 2\)"):
        MeanIoU(NAMES).load_state_dict(MeanIoU(["cat", "dog"]).state_dict())
