"""Evaluation on one data set: figures, predictions, processes, interruptions, errors."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import PartialState
from conftest import run_on_two_processes
from made_up_predictors import CLASS_NAMES, BrightnessPredictor, HalvesPredictor, write_own_images
from PIL import Image
from raw_copies import STEMS, WRITERS
from small_models import small_model, small_processor

from sed_hf.data.benchmarks import load_benchmark
from sed_hf.data.scenes import SceneDataset, scene_vocabulary
from sed_hf.evaluation import MultiScaleFlip, evaluate_benchmark
from sed_hf.evaluation.evaluate import ProgressFile
from sed_hf.metrics import MeanIoU

NUM_SCENES = 7


def evaluate(model: Any, dataset: Any, **options: Any) -> dict[str, float | None]:
    return evaluate_benchmark(model, small_processor(32), dataset, **{"num_workers": 0, **options})


def scenes(count: int = NUM_SCENES) -> SceneDataset:
    return SceneDataset("test", count, size=64)


@pytest.mark.parametrize(
    ("name", "ids", "second_prediction"),
    [
        ("coco_stuff_171", (0, 1, 255), 1),
        ("ade20k_150", (1, 2, 0), 1),
        ("ade20k_847", (2978, 312, 0), 1),
        ("pascal_context_59", (2, 9, 0), 1),
        ("pascal_context_459", (1, 2, 460), 1),
        ("pascal_voc_20", (1, 2, 0), 1),
        # Of the 59 names that the model is asked for, the 38th is one of those that mean background.
        ("pascal_voc_20b", (1, 0, 255), 37),
    ],
)
def test_figures_equal_those_counted_by_hand(name: str, ids: Any, second_prediction: int, tmp_path: Path) -> None:
    first, second, ignored = ids
    label = np.array([[first, first, second, second], [second, second, second, ignored]])
    WRITERS[name](tmp_path, {STEMS[name][0]: label})
    predictor = HalvesPredictor(left=0, right=second_prediction)
    figures = evaluate(predictor, load_benchmark(name, tmp_path))
    # First class: 2 of 2 pixels hit, 2 false ones. Second class: 3 of 5 hit, the one beside them is ignored.
    summary = {figure: figures[figure] for figure in ("mIoU", "fwIoU", "mACC", "pACC")}
    assert summary == pytest.approx(
        {"mIoU": (50 + 60) / 2, "fwIoU": (2 * 50 + 5 * 60) / 7, "mACC": (100 + 60) / 2, "pACC": 100 * 5 / 7}
    )


def test_scenes_report_backgrounds_and_seen_and_unseen_compositions_apart() -> None:
    figures = evaluate(BrightnessPredictor(), scenes(4))
    iou = [figures[f"IoU-{name}"] for name in scene_vocabulary()]
    for group, ids in {"backgrounds": slice(0, 8), "seen": slice(8, 80), "unseen": slice(80, 104)}.items():
        occurring = [value for value in iou[ids] if value is not None]
        assert figures[f"mIoU-{group}"] == pytest.approx(np.mean(occurring))


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"num_workers": 2}, {"num_workers": None}])
def test_batches_of_any_sizes_and_workers_change_nothing(options: dict[str, int | None], tmp_path: Path) -> None:
    dataset = write_own_images(tmp_path, [(3, 8), (9, 2), (1, 1)])
    expected = evaluate(BrightnessPredictor(), dataset)
    assert evaluate(BrightnessPredictor(), dataset, **options) == expected


def test_padded_vocabulary_asks_for_other_names_that_are_never_right() -> None:
    figures = evaluate(HalvesPredictor(left=458, right=458), scenes(1), vocabulary_size=459)
    names = [figure.removeprefix("IoU-") for figure in figures if figure.startswith("IoU-")]
    assert len(names) == 459
    assert not set(", ".join(names[:104]).split(", ")) & set(", ".join(names[104:]).split(", "))
    assert figures["pACC"] == 0.0


def test_predictions_equal_those_of_model_and_processor(tmp_path: Path) -> None:
    model, processor = small_model(), small_processor(32)
    dataset = write_own_images(tmp_path / "data", [(20, 30), (31, 17)])
    evaluate(model, dataset, predictions_dir=tmp_path)
    for index, example in enumerate(dataset):
        with torch.no_grad():
            outputs = model(**processor(images=example["image"], text=CLASS_NAMES, return_tensors="pt"))
        size = example["image"].size[::-1]
        (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
        np.testing.assert_array_equal(Image.open(tmp_path / f"{index}.png"), expected)


@pytest.mark.parametrize("augmentation", [None, MultiScaleFlip(flip=True)])
@pytest.mark.parametrize("topk", [None, 0, 8])
def test_early_rejection_is_left_to_the_model(topk: int | None, augmentation: MultiScaleFlip | None) -> None:
    predictor = BrightnessPredictor()
    evaluate(predictor, scenes(1), early_rejection_topk=topk, augmentation=augmentation)
    assert predictor.topk_seen == topk


def test_model_and_random_states_stay_as_they_were() -> None:
    predictor = BrightnessPredictor().train()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    evaluate(predictor, scenes(2), num_workers=1)
    assert predictor.training
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def progress_at(folder: Path, **settings: Any) -> ProgressFile:
    return ProgressFile(folder / "progress.json", settings, images_per_save=1)


@pytest.mark.parametrize("num_seen", [1, 6, 7])
def test_interrupted_run_continues_with_any_batch_size(num_seen: int, tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt):  # which does not come after the last image
        evaluate(BrightnessPredictor(num_seen), scenes(), progress_file=progress_at(tmp_path))
    predictor = BrightnessPredictor()
    figures = evaluate(predictor, scenes(), progress_file=progress_at(tmp_path), batch_size=2)
    assert predictor.num_images == NUM_SCENES - num_seen
    assert figures == evaluate(BrightnessPredictor(), scenes())


def test_progress_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    progress_at(tmp_path, topk=8).save(1, MeanIoU(CLASS_NAMES))
    with pytest.raises(ValueError, match=r"progress\.json .* other settings: topk was 8 and is 4\."):
        progress_at(tmp_path, topk=4)


def run_process(folder: Path) -> None:
    """What each of two processes does."""
    rank, predictor = PartialState(cpu=True).process_index, BrightnessPredictor()
    results = {
        "incomplete last batch": evaluate(predictor, scenes(), batch_size=2, predictions_dir=folder / "predictions"),
        "continued": evaluate(predictor, scenes(), progress_file=progress_at(folder)),
        "one image": evaluate(predictor, scenes(1)),
        "images seen": predictor.num_images,
    }
    (folder / f"{rank}.json").write_text(json.dumps(results))


@pytest.mark.slow
def test_two_processes_report_and_write_what_one_does(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(BrightnessPredictor(3), scenes(), progress_file=progress_at(tmp_path))
    program = "import pathlib, sys, test_evaluate; test_evaluate.run_process(pathlib.Path(sys.argv[1]))"
    run_on_two_processes(program, str(tmp_path))
    expected = evaluate(BrightnessPredictor(), scenes())
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert results["incomplete last batch"] == results["continued"] == expected
        assert results["one image"] == evaluate(BrightnessPredictor(), scenes(1))
        assert results["images seen"] == 4 + 2 + 1  # equally many on both
    assert len(list((tmp_path / "predictions").glob("*.png"))) == NUM_SCENES


@pytest.mark.parametrize("augmentation", [None, MultiScaleFlip(flip=True)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_scored_but_named_by_their_image(
    value: float, augmentation: MultiScaleFlip | None, tmp_path: Path
) -> None:
    dataset, predictor = write_own_images(tmp_path, [(4, 4)] * 2), BrightnessPredictor()
    logits = torch.zeros(2, 3, 8, 8)
    logits[1, 2] = value
    predictor.logits = lambda *_: logits
    with pytest.raises(ValueError, match=r"1\.jpg: the logits are not finite; use float32 or bfloat16"):
        evaluate(predictor, dataset, batch_size=2, augmentation=augmentation)


def test_label_of_another_size_than_its_image_is_named(tmp_path: Path) -> None:
    dataset = write_own_images(tmp_path, [(2, 4)])
    Image.new("RGB", (5, 2)).save(tmp_path / "images" / "0.jpg")
    with pytest.raises(ValueError, match=r"0\.jpg: the prediction is \(2, 5\), the label \(2, 4\)"):
        evaluate(BrightnessPredictor(), dataset)


def test_streamed_data_are_refused(tmp_path: Path) -> None:
    write_own_images(tmp_path, [(1, 2)])
    with pytest.raises(TypeError, match="not streamed"):
        evaluate(BrightnessPredictor(), load_benchmark("custom", tmp_path, streaming=True))


def test_an_augmented_prediction_is_that_of_the_mean_probability_of_all_views(tmp_path: Path) -> None:
    dataset, views = write_own_images(tmp_path / "data", [(20, 30)]), MultiScaleFlip(scales=(0.5, 1.0), flip=True)
    model, processor = small_model(), small_processor(64)
    evaluate_benchmark(model, processor, dataset, augmentation=views, predictions_dir=tmp_path, num_workers=0)
    probabilities = []
    for edge in (32, 64):  # the plain formulation, with whole tensors at the image's size
        size = {"size": {"shortest_edge": edge * 3 // 4, "longest_edge": edge * 3}}
        size["input_size"] = {"height": edge, "width": edge}
        inputs = processor(images=dataset[0]["image"], text=CLASS_NAMES, return_tensors="pt", **size)
        for is_mirrored in (False, True):
            if is_mirrored:
                inputs["pixel_values"] = inputs["pixel_values"].flip(-1)
            with torch.no_grad():
                view = model(**inputs).logits.sigmoid()
            view = F.interpolate(view, size=(20, 30), mode="bilinear", align_corners=False)
            probabilities.append(view.flip(-1) if is_mirrored else view)
    expected = torch.stack(probabilities).mean(dim=0)[0].argmax(dim=0)
    np.testing.assert_array_equal(Image.open(tmp_path / "0.png"), expected)
