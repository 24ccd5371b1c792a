"""Evaluation of several data sets into one folder: the report, going on, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_predictors import BrightnessPredictor, HalvesPredictor, small_processor, write_own_pictures

from sed_hf import SEDProcessor
from sed_hf.data.scenes import SceneDataset
from sed_hf.evaluation import MultiScaleFlip, evaluate_suite
from sed_hf.evaluation.report import EvaluationReport
from sed_hf.inference.weights import weights_sha256


@pytest.fixture(scope="module")
def processor(tiny_processor: SEDProcessor) -> SEDProcessor:
    return small_processor(tiny_processor)


def run_on_scenes(processor: SEDProcessor, output: Path, num_scenes: int = 2, **options: Any) -> EvaluationReport:
    scenes = SceneDataset("test", num_scenes, size=64)
    options = {"model_name": "made-up", **options}
    return evaluate_suite(BrightnessPredictor(), processor, {"scenes": scenes}, output, **options)


# --- report


def test_json_has_model_options_figures_versions_and_hardware(processor: SEDProcessor, tmp_path: Path) -> None:
    augmentation = MultiScaleFlip((0.5, 1.0), flip=True)
    run_on_scenes(processor, tmp_path, early_rejection_topk=8, augmentation=augmentation)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["settings"] == {
        "model": "made-up",
        "weights_sha256": weights_sha256(BrightnessPredictor()),
        "dtype": "float32",
        "size": None,
        "input_size": {"height": 32, "width": 32},
        "early_rejection_topk": 8,
        "scales": [0.5, 1.0],
        "flip": True,
        "vocabulary_size": None,
        "save_predictions": False,
    }
    scenes = content["benchmarks"]["scenes"]
    assert scenes["num_images"] == 2
    assert {"mIoU", "mIoU-seen", "IoU-grass, lawn"} <= scenes["figures"].keys()
    assert {"python", "torch", "transformers", "sed-hf"} <= scenes["environment"]["versions"].keys()
    assert scenes["environment"]["hardware"]


def test_table_has_a_line_for_each_benchmark_and_group(processor: SEDProcessor, tmp_path: Path) -> None:
    dataset = write_own_pictures(tmp_path / "data", [(2, 2)])
    sets = {"custom": dataset, "scenes": SceneDataset("test", 1, size=64)}
    report = evaluate_suite(BrightnessPredictor(), processor, sets, tmp_path / "out", model_name="made-up")
    first_cells = [line.split("|")[1].strip() for line in report.to_markdown().splitlines() if line.startswith("| ")]
    expected = ["benchmark", "custom", "scenes", "scenes: backgrounds", "scenes: seen", "scenes: unseen"]
    assert first_cells == expected
    assert (tmp_path / "out" / "results.md").read_text() == report.to_markdown()


def test_table_reads_as_markdown() -> None:
    figures = {"mIoU": 31.8, "fwIoU": 60.0, "mACC": 50.0, "pACC": None, "IoU-wall": 71.234, "IoU-sky": None}
    report = EvaluationReport(Path(), {"model": "sed-base"}, {"ade20k_150": {"num_images": 2000, "figures": figures}})
    assert report.to_markdown(per_class=True).splitlines() == [
        "| benchmark | images |  mIoU | fwIoU |  mACC | pACC |",
        "|-----------|-------:|------:|------:|------:|-----:|",
        "| A-150     |   2000 | 31.80 | 60.00 | 50.00 |    – |",
        "",
        "* model: sed-base",
        "",
        "## A-150",
        "",
        "| class |   IoU |",
        "|-------|------:|",
        "| wall  | 71.23 |",
        "| sky   |     – |",
    ]


def test_iou_of_each_class_comes_on_request(processor: SEDProcessor, tmp_path: Path) -> None:
    run_on_scenes(processor, tmp_path)
    assert "grass, lawn" not in (tmp_path / "results.md").read_text()
    run_on_scenes(processor, tmp_path, per_class=True)
    assert "grass, lawn" in (tmp_path / "results.md").read_text()


def test_predictions_come_on_request_in_a_folder_for_each_set(processor: SEDProcessor, tmp_path: Path) -> None:
    run_on_scenes(processor, tmp_path, save_predictions=True)
    assert len(list((tmp_path / "predictions" / "scenes").glob("*.png"))) == 2


# --- going on


class InterruptedPredictor(BrightnessPredictor):
    """Is interrupted at the third picture."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.num_images == 2:
            raise KeyboardInterrupt
        return super().forward(*args, **kwargs)


def test_finished_sets_are_kept_and_not_evaluated_again(processor: SEDProcessor, tmp_path: Path) -> None:
    sets = {"scenes": SceneDataset("test", 2, size=64), "custom": write_own_pictures(tmp_path / "data", [(2, 2)] * 2)}
    with pytest.raises(KeyboardInterrupt):
        evaluate_suite(InterruptedPredictor(), processor, sets, tmp_path / "out", model_name="made-up")
    finished = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]
    assert list(finished) == ["scenes"]

    predictor = BrightnessPredictor()
    report = evaluate_suite(predictor, processor, sets, tmp_path / "out", model_name="made-up")
    assert predictor.num_images == 2
    assert report.benchmarks["scenes"] == finished["scenes"]
    assert list(report.benchmarks) == ["scenes", "custom"]


def test_nothing_but_results_is_left_in_the_folder(processor: SEDProcessor, tmp_path: Path) -> None:
    run_on_scenes(processor, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_the_state_of_a_run_that_was_killed_when_it_had_finished_is_removed(
    processor: SEDProcessor, tmp_path: Path
) -> None:
    run_on_scenes(processor, tmp_path)
    (tmp_path / "scenes.progress.safetensors").touch()
    (tmp_path / ".scenes.progress.safetensors.1.part").mkdir()
    run_on_scenes(processor, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_further_sets_join_the_report(processor: SEDProcessor, tmp_path: Path) -> None:
    run_on_scenes(processor, tmp_path / "out")
    sets = {"custom": write_own_pictures(tmp_path / "data", [(2, 2)])}
    report = evaluate_suite(BrightnessPredictor(), processor, sets, tmp_path / "out", model_name="made-up")
    assert list(report.benchmarks) == ["scenes", "custom"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_rejection_topk": 8}, "early_rejection_topk was None and is 8"),
        ({"model_name": "other"}, "model was 'made-up' and is 'other'"),
        ({"augmentation": MultiScaleFlip(flip=True)}, r"scales was None and is \[1.0\]; flip was None and is True"),
        ({"num_scenes": 3}, "number of images of scenes was 2 and is 3"),
    ],
)
def test_folder_of_other_options_is_refused_by_name(
    options: dict[str, Any], message: str, processor: SEDProcessor, tmp_path: Path
) -> None:
    run_on_scenes(processor, tmp_path)
    with pytest.raises(ValueError, match=rf"results\.json is from .* other settings: {message}\. Repeat them"):
        run_on_scenes(processor, tmp_path, **options)


def test_folder_of_other_weights_is_refused(processor: SEDProcessor, tmp_path: Path) -> None:
    sets = {"scenes": SceneDataset("test", 1, size=64)}
    predictor = HalvesPredictor(0, 1)
    evaluate_suite(predictor, processor, sets, tmp_path, model_name="made-up")
    predictor.weight.data += 1
    with pytest.raises(ValueError, match="weights_sha256 was"):
        evaluate_suite(predictor, processor, sets, tmp_path, model_name="made-up")


def test_batch_size_may_change(processor: SEDProcessor, tmp_path: Path) -> None:
    first = run_on_scenes(processor, tmp_path)
    assert run_on_scenes(processor, tmp_path, batch_size=2).benchmarks == first.benchmarks


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"settings": {}}',
        "[" * 100_000,
        '{"settings": [], "benchmarks": {}}',
        '{"settings": {}, "benchmarks": []}',
        '{"settings": {}, "benchmarks": {"scenes": {}}}',
        '{"settings": {}, "benchmarks": {"scenes": {"num_images": 2, "figures": {"mIoU": "high"}}}}',
    ],
)
def test_file_that_is_no_report_is_refused(content: str, processor: SEDProcessor, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is no report of an evaluation"):
        run_on_scenes(processor, tmp_path)
