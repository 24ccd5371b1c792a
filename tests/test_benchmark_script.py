"""scripts/benchmark.py, on the bundled toy model."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sed_hf.hub.load import TOY_MODEL

pytestmark = pytest.mark.slow  # every test starts processes
SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


def benchmark(output: Path, *options: object) -> str:
    """Run the script, and return what it prints."""
    sweep = ["--models", TOY_MODEL, "--sizes", 64, "--classes", 5, "--repeats", 1, "--device", "cpu"]
    command = [str(part) for part in (sys.executable, SCRIPT, "--output", output, *sweep, *options)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=240).stdout


def results_in(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_every_point_has_times_memory_and_machine_and_is_measured_once(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    benchmark(folder, "--tasks", "segment", "train", "text", "--decoders", "fast", "--topk", 0, 1)
    results = results_in(folder)
    assert [result["task"] for result in results.values()] == ["segment", "segment", "train", "text"]
    for result in results.values():
        assert result["peak_memory_gib"] > 0
        assert result["environment"]["hardware"]
        assert result["seconds"]["whole"]["min"] <= result["seconds"]["whole"]["median"]
    dense, rejecting = list(results.values())[:2]
    assert {"processor", "image encoder", "decoder", "post-processing"} <= set(dense["seconds"])
    assert len(rejecting["kept_classes"]) == 3
    assert "encoder times a class" in (folder / "results.md").read_text()

    benchmark(folder, "--decoders", "fast", "plain")
    after = results_in(folder)
    assert {name: after[name] for name in results} == results
    (added,) = set(after) - set(results)
    assert " plain " in added


def test_a_point_that_fails_says_why_and_the_others_are_measured(tmp_path: Path) -> None:
    benchmark(tmp_path, "--models", tmp_path / "nothing", TOY_MODEL, "--decoders", "fast")
    failed, measured = results_in(tmp_path).values()
    assert "nothing" in failed["error"]
    assert "seconds" in measured


@pytest.mark.parametrize(
    ("task", "classes", "dtype", "batch_size", "kernels", "gigabytes"),
    [
        ("segment", 150, torch.bfloat16, 1, 450, 23),
        ("segment", 150, torch.bfloat16, 4, 720, 94),
        ("train", 171, torch.float32, 4, 2250, 240),
    ],
)
def test_a_gpu_is_asked_for_few_kernels_and_bytes_and_for_nothing_of_the_host(
    task: str, classes: int, dtype: torch.dtype, batch_size: int, kernels: int, gigabytes: int
) -> None:
    counts = runpy.run_path(str(SCRIPT))["trace"](task, classes, dtype, batch_size)
    assert counts.kernels.total() <= kernels
    assert counts.num_bytes <= gigabytes * 1e9
    assert counts.host.total() == 0


def test_the_script_loads_without_what_windows_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert "trace" in runpy.run_path(str(SCRIPT))
