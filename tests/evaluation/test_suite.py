"""Evaluation of several data sets into one folder: the report, continuing, refusals; and scripts/evaluate.py."""

import json
import re
import runpy
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from made_up_predictors import BrightnessPredictor, write_own_images
from planted import PLANTS
from small_models import small_processor

from sed_hf.data.benchmarks import load_benchmark
from sed_hf.data.scenes import SceneDataset
from sed_hf.evaluation import MultiScaleFlip, evaluate_suite
from sed_hf.inference.class_embeddings import weights_sha256

OPTIONS = {"model_name": "made-up", "num_workers": 0}
PREDICTION = "predictions/scenes/scene-test-seed0-000000.png"
RunScript = Callable[[str], tuple[int, str]]
SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


def run(model: Any, sets: dict[str, Any], output: Path, **options: Any) -> dict[str, Any]:
    return evaluate_suite(model, small_processor(32), sets, output, **{**OPTIONS, **options})


def run_on_scenes(output: Path, num_scenes: int = 2, seed: int = 0, **options: Any) -> dict[str, Any]:
    sets = {"scenes": SceneDataset("test", num_scenes, size=32)}
    return run(BrightnessPredictor(seed=seed), sets, output, **options)


def test_folder_has_predictions_and_model_options_figures_versions_and_hardware(tmp_path: Path) -> None:
    augmentation = MultiScaleFlip((0.5, 1.0), flip=True)
    run_on_scenes(tmp_path, early_rejection_topk=8, augmentation=augmentation, save_predictions=True)
    assert len(list((tmp_path / "predictions" / "scenes").glob("*.png"))) == 2
    content = json.loads((tmp_path / "results.json").read_text())
    options = {"model": "made-up", "early_rejection_topk": 8, "scales": [0.5, 1.0], "flip": True, "dtype": "float32"}
    weights = {"weights_sha256": weights_sha256(BrightnessPredictor())}
    assert (options | weights).items() <= content["settings"].items()
    result = content["benchmarks"]["scenes"]
    assert result["num_images"] == 2
    assert {"mIoU", "mIoU-seen", "IoU-grass, lawn"} <= result["figures"].keys()
    assert {"python", "torch", "transformers", "sed-hf"} <= result["environment"]["versions"].keys()
    assert result["environment"]["hardware"]
    table = (tmp_path / "results.md").read_text()
    for line in (r"\| scenes +\| +2 \| +\d+\.\d\d", r"\| scenes: unseen +\|", r"\* early_rejection_topk: 8"):
        assert re.search(line, table)


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
        run(BrightnessPredictor(100), {"scenes": SceneDataset("test", 101, size=32)}, tmp_path)
    progress = (tmp_path / "scenes.progress.json").read_bytes()
    for _ in range(2):
        run_on_scenes(tmp_path, 101)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]
        # As a run leaves it that is killed when it has finished the set.
        (tmp_path / "scenes.progress.json").write_bytes(progress)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_rejection_topk": 8}, r"early_rejection_topk was None and is 8\. Repeat them"),
        ({"seed": 1}, "weights_sha256 was"),
        ({"augmentation": MultiScaleFlip(flip=True)}, r"scales was None and is \[1.0\]; flip was None and is True"),
        ({"num_scenes": 3}, "num_images of scenes was 2 and is 3; images_masks_and_names of scenes was"),
    ],
)
def test_folder_of_other_options_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    run_on_scenes(tmp_path)
    with pytest.raises(ValueError, match=rf"results\.json is of other settings: {message}"):
        run_on_scenes(tmp_path, **options)


def test_other_configuration_of_the_same_weights_is_refused_by_name(tmp_path: Path) -> None:
    model, processor = deepcopy((BrightnessPredictor(), small_processor(32)))
    sets = {"scenes": SceneDataset("test", 1, size=32)}
    evaluate_suite(model, processor, sets, tmp_path, **OPTIONS)
    model.config.class_attention_type, model.config.class_chunk_size = "full", 7  # which changes no result
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"attention_type was 'linear' and is 'full'; image_processor\.image_mean was"):
        evaluate_suite(model, processor, sets, tmp_path, **OPTIONS)


@pytest.mark.parametrize("changed", ["masks/1.png", "images/1.jpg", "classes.txt"])
@pytest.mark.parametrize("num_seen", [None, 100], ids=["finished", "interrupted"])
def test_other_data_of_the_same_length_are_refused(num_seen: int | None, changed: str, tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    with suppress(KeyboardInterrupt):
        run(BrightnessPredictor(num_seen), {"custom": write_own_images(data, [(2, 2)] * (num_seen or 1) * 2)}, output)
    (data / changed).write_text("cat\ndog\ncloud")
    with pytest.raises(ValueError, match=r"images_masks_and_names of custom was '\w{16}' and is '\w{16}'"):
        run(BrightnessPredictor(), {"custom": load_benchmark("custom", data)}, output)


def test_classes_that_no_mask_shows_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = write_own_images(tmp_path, [(1, 2)])  # of the third class and 255
    run(BrightnessPredictor(), {"custom": dataset}, tmp_path / "out", vocabulary_size=5)
    assert "custom: no mask shows cat, dog; 255 is ignored" in caplog.messages


@pytest.mark.parametrize("name", ["results.json", "scenes.progress.json"])
def test_file_that_is_not_a_report_is_refused_and_left(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[]")
    with pytest.raises(ValueError, match=f"{name} is not of an evaluation"):
        run_on_scenes(tmp_path)
    assert (tmp_path / name).read_text() == "[]"


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize(
    "name", ["results.json", "results.md", "scenes.progress.json", "predictions/scenes", PREDICTION]
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


@pytest.fixture
def run_script(
    tiny_hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> RunScript:
    """Runs the script on the tiny model, beside two images, and returns its status and what it prints."""
    write_own_images(tmp_path / "data", [(8, 8)] * 2)
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(arguments: str) -> tuple[int, str]:
        status = main(["--model", str(tiny_hub_folder), "--output", "out", *arguments.split()])
        return status, "".join(capfd.readouterr())

    return run


def test_script_prints_the_table_and_writes_the_report(run_script: RunScript) -> None:
    options = "--limit 1 --topk 1 --batch-size 2 --num-workers 0 --flip --dtype bfloat16"
    status, printed = run_script(f"--benchmarks custom --data-dir data {options}")
    assert status == 0
    assert Path("out/results.md").read_text() in printed
    content = json.loads(Path("out/results.json").read_text())
    assert content["benchmarks"]["custom"]["num_images"] == 1
    settings = content["settings"]
    assert (settings["early_rejection_topk"], settings["flip"], settings["dtype"]) == (1, True, "bfloat16")


def test_processes_wait_while_the_first_downloads_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("sed_hf.evaluation.environment.Accelerator", accelerator)
    runpy.run_path(str(SCRIPT))["main"](["--model", "toy", "--benchmarks", "scenes"])
    assert accelerator.call_args.kwargs["kwargs_handlers"][0].timeout.days >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--benchmarks all", "ade20k_847: expected the folder of its data"),
        ("--benchmarks scenes --vocabulary-size 9", "vocabulary size 9: expected 104 to "),
        ("--benchmarks scenes --scales 0", "scales: expected positive numbers"),
        ("--benchmarks custom --data-dir data --num-workers 1", "data/images/1.jpg: "),
    ],
)
def test_script_refuses_in_one_line_what_cannot_be_had(arguments: str, message: str, run_script: RunScript) -> None:
    Path("data/images/1.jpg").write_bytes(b"damaged")  # which a worker reads
    status, printed = run_script(arguments)
    assert status == 2
    assert re.match(f"evaluate.py: error: .*{message}", printed.splitlines()[-1])


def test_script_refuses_processes_that_accelerate_does_not_know(
    run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    status, printed = run_script("--benchmarks scenes")
    assert status == 2
    assert "OMPI_COMM_WORLD_SIZE=2, but accelerate found 1 process" in printed
