"""The mean IoU metric: figures, forms of class maps, several processes, errors."""

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import PartialState
from PIL import Image

import sed_hf.metrics
from sed_hf.metrics import MeanIoU

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "mean_iou.json").read_text())
EVALUATE_MODULE = str(Path(sed_hf.metrics.__file__).with_name("evaluate_module.py"))
NAMES = ["cat", "dog", "sky"]


def figures_of(predictions: Any, references: Any, **settings: Any) -> dict[str, float | None]:
    metric = MeanIoU(**{"class_names": NAMES, **settings})
    metric.add_batch(predictions=predictions, references=references)
    return metric.compute()


# --- figures


@pytest.mark.parametrize("is_module", [False, True], ids=["class", "module of evaluate"])
def test_figures_equal_the_official_evaluation(is_module: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", None, raising=False)
    names = [f"c{index}" for index in range(REFERENCE["num_classes"])]
    metric = evaluate.load(EVALUATE_MODULE, class_names=names) if is_module else MeanIoU(names)
    for image in REFERENCE["images"]:
        metric.add(prediction=torch.tensor(image["prediction"]), reference=torch.tensor(image["label"]))
    expected = REFERENCE["expected"]
    assert metric.compute() == {
        name: None if value is None else pytest.approx(value, rel=1e-12) for name, value in expected.items()
    }


def test_class_that_is_predicted_but_never_labelled_does_not_enter_the_mean() -> None:
    figures = figures_of([[[0, 2]]], [[[0, 0]]])
    assert figures["mIoU"] == figures["IoU-cat"] == 50.0


@pytest.mark.parametrize("ignore_index", [255, 65535])
def test_predicted_ignore_index_is_wrong_and_counts_for_no_other_class(ignore_index: int) -> None:
    figures = figures_of([[[0, 1, ignore_index]]], [[[0, 1, 1]]], ignore_index=ignore_index)
    assert (figures["IoU-cat"], figures["IoU-dog"], figures["pACC"]) == pytest.approx((100, 50, 100 * 2 / 3))


def test_voc_20b_counts_every_prediction_from_20_on_as_background() -> None:
    names = [f"object {index}" for index in range(20)] + ["background"]
    predictions, labels = [[[19, 20, 37, 58, 255]]], [[[19, 20, 20, 20, 20]]]
    figures = figures_of(predictions, labels, class_names=names, last_class_is_background=True)
    assert figures["IoU-background"] == figures["IoU-object 19"] == 100.0


VALUES = np.array([[0, 1, 2], [2, 255, 0]])


@pytest.mark.parametrize(
    "class_map",
    [
        VALUES.astype(">u2"),
        VALUES.astype(">i4"),
        np.ascontiguousarray(VALUES[::-1])[::-1],
        torch.from_numpy(VALUES).int(),
        Image.fromarray(VALUES.astype(np.uint8)),
        Image.fromarray(VALUES.astype(np.uint16)),
        Image.fromarray(VALUES.astype(np.uint8)).convert("P"),
    ],
    ids=["big-endian 16 bit", "big-endian 32 bit", "negative stride", "tensor", "L", "I;16", "P"],
)
def test_class_maps_come_in_any_form(class_map: Any) -> None:
    assert figures_of([class_map], [VALUES])["pACC"] == figures_of([VALUES], [class_map])["pACC"] == 100.0


def test_masks_of_one_bit_have_two_classes() -> None:
    mask = Image.fromarray(np.array([[False, True]]))
    assert figures_of([mask], [torch.tensor([[0, 1]])], class_names=["sky", "ground"])["mIoU"] == 100.0


def test_compute_forgets_the_images_it_reported_on() -> None:
    metric = evaluate.load(EVALUATE_MODULE, class_names=NAMES)
    metric.compute(predictions=[[[0]]], references=[[[1]]])
    assert metric.compute(predictions=[[[0]]], references=[[[0]]])["pACC"] == 100.0


# --- several processes


def run_process(rank: int, world_size: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState(cpu=True)
    metric = MeanIoU(NAMES)
    predictions, labels = torch.randint(3, (2, 5, 4, 4), generator=torch.Generator().manual_seed(0))
    metric.add_batch(predictions=predictions[rank::world_size], references=labels[rank::world_size])
    (folder / f"{rank}.json").write_text(json.dumps(metric.compute()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_several_processes_report_the_figures_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Importing the libraries takes seconds, so one server does it for all processes.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["accelerate", "sed_hf.metrics"])
    mp.start_processes(run_process, (3, port, tmp_path), nprocs=3, start_method="forkserver")
    expected = figures_of(*torch.randint(3, (2, 5, 4, 4), generator=torch.Generator().manual_seed(0)))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)] == [expected] * 3


# --- errors


@pytest.mark.parametrize(
    ("prediction", "reference", "error", "message"),
    [
        ([[0]], [[3]], ValueError, r"a\.png: label 3 is outside the classes 0 to 2"),
        ([[254]], [[0]], ValueError, r"a\.png: prediction 254 is outside the classes 0 to 2"),
        ([[0, 0]], [[0]], ValueError, r"a\.png: the prediction is \(1, 2\), the label \(1, 1\)"),
        (torch.rand(1, 1), [[0]], TypeError, r"a\.png: the prediction: expected integers .* got torch\.float32"),
        ([[0]], Image.new("RGB", (1, 1)), TypeError, r"a\.png: the label: expected integers .* of \(1, 1, 3\)"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_file(
    prediction: Any, reference: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MeanIoU(NAMES).add(prediction=prediction, reference=reference, file_name="a.png")


def test_repeated_class_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['cat'\]"):
        MeanIoU(["cat", "dog", "cat"])


def test_processes_of_evaluate_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.distributed"):
        evaluate.load(EVALUATE_MODULE, class_names=NAMES, num_process=2, process_id=0)
