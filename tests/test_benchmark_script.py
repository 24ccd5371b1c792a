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


def benchmark(output: Path, *options: object) -> subprocess.CompletedProcess:
    sweep = ["--models", TOY_MODEL, "--sizes", 64, "--classes", 5, "--repeats", 1, "--device", "cpu"]
    command = [sys.executable, SCRIPT, "--output", output, *sweep, *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "new" / "folder"
    process = benchmark(folder, "--tasks", "segment", "train", "text", "--decoders", "fast", "--topk", 0, 1)
    assert process.returncode == 0, process.stderr
    return folder


def test_every_point_has_times_memory_and_machine(output: Path) -> None:
    results = json.loads((output / "results.json").read_text())
    assert [result["task"] for result in results.values()] == ["segment", "segment", "train", "text"]
    for result in results.values():
        assert result["peak_memory_gib"] > 0
        assert result["environment"]["hardware"]
        assert result["seconds"]["whole"]["min"] <= result["seconds"]["whole"]["median"]
    dense, rejecting = list(results.values())[:2]
    assert {"processor", "image encoder", "decoder", "post-processing"} <= set(dense["seconds"])
    assert len(rejecting["kept_classes"]) == 3


def test_the_report_is_a_table(output: Path) -> None:
    table = (output / "results.md").read_text()
    assert "encoder times a class" in table
    assert "torch" in table


def test_what_is_measured_is_not_measured_again_and_the_plain_decoder_joins(output: Path) -> None:
    before = json.loads((output / "results.json").read_text())
    assert benchmark(output, "--decoders", "fast", "plain").returncode == 0
    after = json.loads((output / "results.json").read_text())
    assert {name: after[name] for name in before} == before
    (added,) = set(after) - set(before)
    assert " plain " in added


def test_a_point_that_fails_says_why_and_the_others_are_measured(tmp_path: Path) -> None:
    process = benchmark(tmp_path, "--models", tmp_path / "nothing", TOY_MODEL, "--decoders", "fast")
    assert process.returncode == 0
    failed, measured = json.loads((tmp_path / "results.json").read_text()).values()
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


def test_loading_is_a_table(tmp_path: Path) -> None:
    loading = benchmark(tmp_path, "--loader")
    assert "images a second of a worker" in loading.stdout
