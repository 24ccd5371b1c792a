"""A disk that takes no more: the error names the file and the reason, and nothing that was finished is lost.

The limit of the size of a file stands for the full disk: the libraries that write fail in the middle of a file, as they
do there, and the system's message is another one.
"""

import errno
import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from raw_copies import write_ade20k_150
from torch import Tensor, nn

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.data.prepare import prepare_benchmark
from sed_hf.evaluation.progress import ProgressFile
from sed_hf.evaluation.report import EvaluationReport
from sed_hf.inference.class_embeddings import ClassEmbeddingCache, encode_classes
from sed_hf.training.checkpoints import find_checkpoints, save_checkpoint

REASON = os.strerror(errno.EFBIG)
NAMES = ["cat", "dog, puppy"]


@contextmanager
def disk_takes(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `sed-hf`, which must fail, with a disk that takes so many bytes a file; the last line that it prints."""

    def run(num_bytes: int, *arguments: object) -> str:
        with disk_takes(num_bytes):
            assert main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


def test_segment_keeps_the_pictures_before(error_of: Callable[..., str], tiny_hub_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "in" / "a.png")
    Image.effect_noise((900, 700), 99).save(tmp_path / "in" / "b.png")
    arguments = ["--model", tiny_hub_folder, "--output", tmp_path / "out", "--classes", "sky", "grass"]
    error = error_of(200_000, "segment", tmp_path / "in", *arguments)
    assert error == f"sed-hf: error: [Errno {errno.EFBIG}] {REASON}: '{tmp_path}/out/b_overlay.jpg'"
    assert names_in(tmp_path / "out") == ["a.json", "a_labels.png", "a_overlay.jpg"]


def test_convert_keeps_the_model_that_it_was_to_replace(
    error_of: Callable[..., str], tiny_hub_folder: Path, tiny_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"model": tiny_weights}, tmp_path / "model.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("of the old model")
    arguments = ["--config", tiny_hub_folder / "config.json", "--overwrite"]
    error = error_of(10**6, "convert", tmp_path / "model.pth", tmp_path / "out", *arguments)
    assert error.startswith(f"sed-hf: error: {tmp_path}/out cannot be written: ")
    assert REASON in error
    assert names_in(tmp_path) == ["model.pth", "out"]
    assert (tmp_path / "out" / "config.json").read_text() == "of the old model"


def test_encode_names_the_file(error_of: Callable[..., str], tiny_hub_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "names.safetensors"
    error = error_of(1000, "encode", out, "--model", tiny_hub_folder, "--classes", *NAMES)
    assert error == f"sed-hf: error: [Errno {errno.EFBIG}] {REASON}: '{out}'"
    assert names_in(tmp_path) == []


def test_prepare_keeps_the_complete_shards(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 151, (400, 400))
    write_ade20k_150(tmp_path / "raw", {"ADE_val_00000001": np.ones((2, 2)), "ADE_val_00000002": noise})
    second = tmp_path / "out" / "data" / "val-00001-of-00002.parquet"
    with disk_takes(50_000), pytest.raises(OSError, match=f"{REASON}.*{second}"):
        prepare_benchmark("ade20k_150", tmp_path / "raw", tmp_path / "out", images_per_shard=1)
    assert names_in(second.parent) == ["val-00000-of-00002.parquet"]


def test_an_evaluation_keeps_its_last_state(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path / "progress.safetensors", {})
    progress.save(3, torch.zeros(3))
    with disk_takes(10_000), pytest.raises(OSError, match=f"{REASON}.*{progress.path}"):
        progress.save(4, torch.zeros(10**4))
    assert progress.load()[0] == 3
    assert names_in(tmp_path) == ["progress.safetensors"]


def test_a_report_keeps_the_results_that_it_has(tmp_path: Path) -> None:
    def result(num_classes: int) -> dict[str, object]:
        return {"num_images": 1, "figures": {f"IoU-{index}": 1.0 for index in range(num_classes)}}

    report = EvaluationReport.open(tmp_path, {})
    report.benchmarks["scenes"] = result(1)
    report.save()
    report.benchmarks["ade20k_847"] = result(847)
    with disk_takes(5000), pytest.raises(OSError, match=f"{REASON}.*{tmp_path}/results.json"):
        report.save()
    assert list(EvaluationReport.open(tmp_path, {}).benchmarks) == ["scenes"]
    assert names_in(tmp_path) == ["results.json", "results.md"]


def test_training_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(nn.Linear(300, 300))
    before = save_checkpoint(accelerator, tmp_path, step=1, keep=1)
    with disk_takes(50_000), pytest.raises(OSError, match=f"step-00000002 could not be written.*{before} is still"):
        save_checkpoint(accelerator, tmp_path, step=2, keep=1)
    assert find_checkpoints(tmp_path) == [before]
    assert names_in(before.parent) == [before.name]


class TestCache:
    def test_a_full_disk_costs_one_warning_and_not_the_result(
        self,
        tiny_model: SEDForSemanticSegmentation,
        tiny_processor: SEDProcessor,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(logging.getLogger("sed_hf"), "propagate", True)
        expected = encode_classes(tiny_model, tiny_processor, NAMES)
        with disk_takes(1000):
            found = encode_classes(tiny_model, tiny_processor, NAMES, ClassEmbeddingCache(tmp_path / "cache"))
        assert torch.equal(found, expected)
        [warning] = caplog.messages
        assert f"class embeddings are not cached in {tmp_path / 'cache'}" in warning
        assert REASON in warning
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    @pytest.fixture
    def read_only(
        self,
        tiny_model: SEDForSemanticSegmentation,
        tiny_processor: SEDProcessor,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> ClassEmbeddingCache:
        """A cache of the names, on a file system that can only be read."""
        encode_classes(tiny_model, tiny_processor, NAMES, ClassEmbeddingCache(tmp_path))

        def refuse(path: Path, *args: object, **kwargs: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

        for owner, name in [(os, "utime"), (Path, "mkdir"), (Path, "unlink")]:
            monkeypatch.setattr(owner, name, refuse)
        return ClassEmbeddingCache(tmp_path, max_bytes=0)

    def test_what_is_in_one_that_is_read_only_is_used(
        self,
        tiny_model: SEDForSemanticSegmentation,
        tiny_processor: SEDProcessor,
        read_only: ClassEmbeddingCache,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("sed_hf.inference.class_embeddings.encode_chunk", None)  # nothing is encoded
        assert encode_classes(tiny_model, tiny_processor, NAMES, read_only).shape == (2, 80, 64)

    def test_one_that_is_read_only_does_not_lose_what_is_encoded(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, read_only: ClassEmbeddingCache
    ) -> None:
        names = [*NAMES, "a third"]
        expected = encode_classes(tiny_model, tiny_processor, names)
        found = encode_classes(tiny_model, tiny_processor, names, read_only)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # packed with other prompts
