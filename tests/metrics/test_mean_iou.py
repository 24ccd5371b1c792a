"""The mean IoU metric: figures, forms of class maps, errors. `properties/` counts pixel by pixel."""

import json
import socket
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from test_image_processing_sed import write_gray_png

import sed_hf.metrics
from sed_hf.metrics import MeanIoU

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "mean_iou.json").read_text())
EVALUATE_MODULE = str(Path(sed_hf.metrics.__file__).with_name("evaluate_module.py"))
NAMES = ["cat", "dog", "sky"]


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


VALUES = np.array([[0, 1, 2], [2, 255, 0]])


@pytest.mark.parametrize(
    "class_map",
    [
        VALUES.astype(">u2"),
        np.ascontiguousarray(VALUES[::-1])[::-1],
        torch.from_numpy(VALUES).int(),
        Image.fromarray(VALUES.astype(np.uint8)),
        Image.fromarray(VALUES.astype(np.uint16)),
        Image.fromarray(VALUES.astype(np.uint8)).convert("P"),
        VALUES.tolist(),
    ],
    ids=["big-endian", "negative stride", "tensor", "L", "I;16", "P", "list"],
)
def test_class_maps_come_in_any_form(class_map: Any) -> None:
    for prediction, reference in ((class_map, VALUES), (VALUES, class_map)):
        metric = MeanIoU(NAMES)
        metric.add(prediction=prediction, reference=reference)
        assert metric.compute()["pACC"] == 100.0


@pytest.mark.parametrize("bits", [2, 4])
def test_a_grey_image_of_few_bits_counts_by_the_ids_that_it_stores(bits: int, tmp_path: Path) -> None:
    write_gray_png(tmp_path / "label.png", np.array([[0, 1, 2]]), bits)
    metric = evaluate.load(EVALUATE_MODULE, class_names=NAMES)
    assert metric.compute(predictions=[[[0, 1, 2]]], references=[Image.open(tmp_path / "label.png")])["pACC"] == 100.0


def test_compute_forgets_the_images_it_reported_on() -> None:
    metric = evaluate.load(EVALUATE_MODULE, class_names=NAMES)
    metric.compute(predictions=[[[0]]], references=[[[1]]])
    assert metric.compute(predictions=[[[0]]], references=[[[0]]])["pACC"] == 100.0


@pytest.mark.parametrize(
    ("prediction", "reference", "error", "message"),
    [
        ([[0, 0]], [[0]], ValueError, r"a\.png: the prediction is \(1, 2\), the label \(1, 1\)"),
        (torch.rand(1, 1), [[0]], TypeError, r"a\.png: the prediction: expected integers"),
        ([[0]], Image.new("RGB", (1, 1)), TypeError, r"a\.png: the label: expected integers"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_file(prediction: Any, reference: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        MeanIoU(NAMES).add(prediction=prediction, reference=reference, file_name="a.png")


def test_repeated_class_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['cat'\]"):
        MeanIoU(["cat", "dog", "cat"])
