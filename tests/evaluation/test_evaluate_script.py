"""scripts/evaluate.py: arguments, data, results."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from made_up_predictors import write_own_pictures

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, imported with its folder first on the search path, as Python runs it."""
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script: ModuleType, tiny_hub_folder: Path, tmp_path: Path) -> Callable[[Sequence[str]], Path]:
    """Runs the script on the tiny model, and returns its output folder."""

    def run(arguments: Sequence[str]) -> Path:
        output = tmp_path / "out"
        script.main(["--model", str(tiny_hub_folder), "--output", str(output), *arguments])
        return output

    return run


@pytest.fixture
def no_model(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""
    monkeypatch.setattr(script, "load", None)


def test_does_not_hide_the_library_of_its_name() -> None:
    # In a process of its own, since this one has imported the library already.
    result = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_prints_the_table_and_writes_the_report(
    run: Callable[[Sequence[str]], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_own_pictures(tmp_path / "data", [(8, 8)] * 3)
    arguments = ["--benchmarks", "custom", "--data-dir", str(tmp_path / "data"), "--limit", "2", "--topk", "1"]
    output = run([*arguments, "--batch-size", "2", "--flip", "--dtype", "bfloat16"])
    assert (output / "results.md").read_text() in capsys.readouterr().out
    content = json.loads((output / "results.json").read_text())
    assert content["benchmarks"]["custom"]["num_images"] == 2
    settings = content["settings"]
    assert (settings["early_rejection_topk"], settings["flip"], settings["dtype"]) == (1, True, "bfloat16")


def test_all_are_the_benchmarks_of_the_official_table(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load_nothing(names: list[str], *args: object) -> None:
        loaded.extend(names)
        raise ValueError

    monkeypatch.setattr(script, "load_evaluation_sets", load_nothing)
    monkeypatch.setattr(script, "check_model_source", lambda source: None)
    with pytest.raises(SystemExit):
        script.main(["--model", "m", "--benchmarks", "all", "--data-dir", "d"])
    assert sorted(loaded) == [
        "ade20k_150",
        "ade20k_847",
        "pascal_context_459",
        "pascal_context_59",
        "pascal_voc_20",
        "pascal_voc_20b",
    ]


@pytest.mark.usefixtures("no_model")
def test_every_benchmark_without_data_is_named_before_a_model_is_loaded(
    run: Callable[[Sequence[str]], Path], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(["--benchmarks", "scenes", "ade20k_150", "pascal_voc_20", "--data-dir", str(tmp_path)])
    assert "ade20k_150: expected" in str(exit_.value)
    assert "ADEChallengeData2016/ with images/validation/*.jpg" in str(exit_.value)
    assert "pascal_voc_20: expected" in str(exit_.value)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks", "cityscapes"], "invalid choice: 'cityscapes'"),
        (["--benchmarks", "scenes", "--topk", "-1"], "expected a whole number of at least 0, got '-1'"),
        (["--benchmarks", "scenes", "--batch-size", "0"], "expected a whole number of at least 1, got '0'"),
        (["--benchmarks", "scenes", "--scales", "0"], "scales: expected positive numbers"),
        (["--benchmarks", "scenes", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_loaded(
    arguments: list[str], message: str, run: Callable[[Sequence[str]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks", "ade20k_150"], "ade20k_150: expected the folder of its data"),
        (["--benchmarks", "scenes", "--vocabulary-size", "9"], "vocabulary size 9: expected at least 104"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_a_model_is_loaded(
    arguments: list[str], message: str, run: Callable[[Sequence[str]], Path]
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(arguments)


def test_missing_model_is_named(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--model nowhere: expected a model folder"):
        script.main(["--model", "nowhere", "--benchmarks", "scenes", "--output", str(tmp_path)])
