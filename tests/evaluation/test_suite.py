"""Evaluation of several data sets into one folder: the report, continuing, refusals; and scripts/evaluate.py."""

import json
import runpy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from made_up_predictors import BrightnessPredictor, write_own_images
from planted import PLANTS
from small_models import small_processor

from sed_hf.data.scenes import SceneDataset
from sed_hf.evaluation import MultiScaleFlip, evaluate_suite
from sed_hf.evaluation.report import to_markdown
from sed_hf.inference.class_embeddings import weights_sha256

OPTIONS = {"model_name": "made-up", "num_workers": 0}
PREDICTION = "predictions/scenes/scene-test-seed0-000000.png"
SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


def run(model: Any, sets: dict[str, Any], output: Path, **options: Any) -> dict[str, Any]:
    return evaluate_suite(model, small_processor(32), sets, output, **{**OPTIONS, **options})


def run_on_scenes(output: Path, num_scenes: int = 2, model: Any = None, **options: Any) -> dict[str, Any]:
    sets = {"scenes": SceneDataset("test", num_scenes, size=32)}
    return run(model or BrightnessPredictor(), sets, output, **options)


# --- results


def test_json_has_model_options_figures_versions_and_hardware(tmp_path: Path) -> None:
    augmentation = MultiScaleFlip((0.5, 1.0), flip=True)
    run_on_scenes(tmp_path, early_rejection_topk=8, augmentation=augmentation)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["settings"] == {
        "model": "made-up",
        "weights_sha256": weights_sha256(BrightnessPredictor()),
        "dtype": "float32",
        "size": {"shortest_edge": 48, "longest_edge": 192},
        "input_size": {"height": 32, "width": 32},
        "early_rejection_topk": 8,
        "scales": [0.5, 1.0],
        "flip": True,
        "vocabulary_size": None,
        "save_predictions": False,
    }
    result = content["benchmarks"]["scenes"]
    assert result["num_images"] == 2
    assert {"mIoU", "mIoU-seen", "IoU-grass, lawn"} <= result["figures"].keys()
    assert {"python", "torch", "transformers", "sed-hf"} <= result["environment"]["versions"].keys()
    assert result["environment"]["hardware"]


def test_table_reads_as_markdown_with_a_line_for_each_set_and_group() -> None:
    figures = {"mIoU": 31.8, "fwIoU": 60.0, "mACC": 50.0, "pACC": None, "IoU-sky": 71.234}
    results = {"ade20k_150": {"num_images": 2000, "figures": {**figures, "mIoU-seen": 40.0}}}
    assert to_markdown({"model": "sed-base", "flip": None}, results).splitlines() == [
        "| benchmark   | images |  mIoU | fwIoU |  mACC | pACC |",
        "|-------------|-------:|------:|------:|------:|-----:|",
        "| A-150       |   2000 | 31.80 | 60.00 | 50.00 |    – |",
        "| A-150: seen |        | 40.00 |       |       |      |",
        "",
        "* model: sed-base",
    ]


def test_predictions_come_on_request(tmp_path: Path) -> None:
    run_on_scenes(tmp_path, save_predictions=True)
    assert len(list((tmp_path / "predictions" / "scenes").glob("*.png"))) == 2


# --- continuing


def test_finished_sets_are_kept_and_not_evaluated_again(tmp_path: Path) -> None:
    sets = {"scenes": SceneDataset("test", 2, size=64), "custom": write_own_images(tmp_path / "data", [(2, 2)] * 2)}
    with pytest.raises(KeyboardInterrupt):
        run(BrightnessPredictor(2), sets, tmp_path / "out")
    finished = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]
    assert list(finished) == ["scenes"]
    predictor = BrightnessPredictor()
    results = run(predictor, sets, tmp_path / "out", batch_size=2)
    assert predictor.num_images == 2
    assert results["scenes"] == finished["scenes"]
    assert list(results) == ["scenes", "custom"]


@pytest.mark.slow
def test_only_results_are_left_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):  # the progress is saved after 100
        run_on_scenes(tmp_path, 101, model=BrightnessPredictor(100))
    progress = (tmp_path / "scenes.progress.safetensors").read_bytes()
    run_on_scenes(tmp_path, 101)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]
    # Neither is what a run leaves that is killed when it has finished the set.
    (tmp_path / "scenes.progress.safetensors").write_bytes(progress)
    run_on_scenes(tmp_path, 101)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


OTHER_WEIGHTS = BrightnessPredictor()
OTHER_WEIGHTS.weight.data += 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_rejection_topk": 8}, r"early_rejection_topk was None and is 8\. Repeat them"),
        ({"model": OTHER_WEIGHTS}, "weights_sha256 was"),
        ({"augmentation": MultiScaleFlip(flip=True)}, r"scales was None and is \[1.0\]; flip was None and is True"),
        ({"num_scenes": 3}, "number of images of scenes was 2 and is 3"),
    ],
)
def test_folder_of_other_options_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    run_on_scenes(tmp_path)
    with pytest.raises(ValueError, match=rf"results\.json is of other settings: {message}"):
        run_on_scenes(tmp_path, **options)


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {}}'])
def test_file_that_is_not_a_report_is_refused_and_left(content: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is not of an evaluation"):
        run_on_scenes(tmp_path)
    assert (tmp_path / "results.json").read_text() == content


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize(
    "name", ["results.json", "results.md", "scenes.progress.safetensors", "predictions/scenes", PREDICTION]
)
def test_what_lies_at_a_name_of_the_run_is_neither_followed_nor_emptied(
    name: str, kind: str, tmp_path: Path, precious: Path
) -> None:
    planted = tmp_path / "out" / name
    planted.parent.mkdir(parents=True)
    PLANTS[kind](planted, precious)
    with suppress(OSError, ValueError):
        run_on_scenes(tmp_path / "out", save_predictions=True)
    assert (precious / "thesis.txt").read_text() == "mine"
    assert kind != "folder" or (planted / "thesis.txt").read_text() == "mine"


# --- scripts/evaluate.py


@pytest.fixture
def run_script(tiny_hub_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs the script on the tiny model, and returns its output folder."""
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(*arguments: str, status: int = 0) -> Path:
        common = ["--model", str(tiny_hub_folder), "--output", str(tmp_path / "out"), "--num-workers", "0"]
        assert main([*common, *arguments]) == status
        return tmp_path / "out"

    return run


def test_script_prints_the_table_and_writes_the_report(
    run_script: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_own_images(tmp_path / "data", [(8, 8)] * 2)
    arguments = ["--benchmarks", "custom", "--data-dir", str(tmp_path / "data"), "--limit", "1", "--topk", "1"]
    output = run_script(*arguments, "--batch-size", "2", "--flip", "--dtype", "bfloat16")
    assert (output / "results.md").read_text() in capsys.readouterr().out
    content = json.loads((output / "results.json").read_text())
    assert content["benchmarks"]["custom"]["num_images"] == 1
    settings = content["settings"]
    assert (settings["early_rejection_topk"], settings["flip"], settings["dtype"]) == (1, True, "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks", "all"], "ade20k_847: expected the folder of its data"),
        (["--benchmarks", "scenes", "--vocabulary-size", "9"], "vocabulary size 9: expected 104 to "),
        (["--benchmarks", "scenes", "--scales", "0"], "scales: expected positive numbers"),
    ],
)
def test_script_refuses_what_cannot_be_had_in_one_line(
    arguments: list[str], message: str, run_script: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(*arguments, status=2)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"evaluate.py: error: {message}")


def test_damaged_image_ends_the_script_in_one_line_from_a_worker_too(
    run_script: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_own_images(tmp_path / "data", [(8, 8)] * 2)
    (tmp_path / "data" / "images" / "1.jpg").write_bytes(b"damaged")
    arguments = ["--benchmarks", "custom", "--data-dir", str(tmp_path / "data")]
    run_script(*arguments, "--num-workers", "1", status=2)
    last_line = capfd.readouterr().err.splitlines()[-1]
    assert last_line.startswith("evaluate.py: error: ")
    assert "1.jpg" in last_line


def test_script_refuses_processes_that_accelerate_does_not_know(
    run_script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    run_script("--benchmarks", "scenes", status=2)
    assert "OMPI_COMM_WORLD_SIZE=2, but accelerate found 1 process" in capsys.readouterr().err
