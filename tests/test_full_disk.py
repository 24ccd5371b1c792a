"""A full disk, which a limit of the size of a file stands for: the error names the file, and what is finished stays."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import make_tiny_config
from PIL import Image
from planted import disk_takes
from raw_copies import write_ade20k_150
from torch import nn

from sed_hf import SEDForSemanticSegmentation as Model
from sed_hf import SEDProcessor
from sed_hf.cli import main
from sed_hf.data.prepare import prepare_benchmark
from sed_hf.inference.class_embeddings import ClassEmbeddingCache, encode_classes
from sed_hf.inference.label import label_dataset
from sed_hf.training.checkpoints import find_checkpoints, save_checkpoint

REASON = os.strerror(errno.EFBIG)
NAMES = ["cat", "dog, puppy"]


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_segment_keeps_the_images_before(capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    Image.new("RGB", (60, 40)).save("in/a.png")
    Image.effect_noise((900, 700), 99).save("in/b.png")
    with disk_takes(200_000):
        assert main(["segment", "in", "--output", "out", "--classes", *NAMES]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"sed-hf: error: [Errno {errno.EFBIG}] {REASON}: 'out/b_overlay.jpg'"
    assert set(os.listdir("out")) == {"a.json", "a_labels.png", "a_overlay.jpg", "b_labels.png"}


def test_convert_keeps_the_model_that_it_was_to_replace(capsys: pytest.CaptureFixture[str], tiny_weights: dict) -> None:
    torch.save({"model": tiny_weights}, "model.pth")
    Path("out").mkdir()
    make_tiny_config().to_json_file("out/config.json")
    with disk_takes(10**6):
        assert main(["convert", "model.pth", "out", "--config", "out/config.json", "--overwrite"]) == 2
    assert REASON in capsys.readouterr().err.splitlines()[-1]
    assert set(os.listdir()) == {"model.pth", "out"}
    assert os.listdir("out") == ["config.json"]


def test_prepare_keeps_the_complete_shards(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 151, (400, 400))
    write_ade20k_150(tmp_path / "raw", {"ADE_val_00000001": np.ones((2, 2)), "ADE_val_00000002": noise})
    second = tmp_path / "out" / "data" / "val-00001-of-00002.parquet"
    with disk_takes(50_000), pytest.raises(OSError, match=f"{REASON}.*{second}"):
        prepare_benchmark("ade20k_150", tmp_path / "raw", tmp_path / "out", images_per_shard=1)
    assert os.listdir(second.parent) == ["val-00000-of-00002.parquet"]


@pytest.mark.parametrize("format", ["parquet", "coco", "yolo", "png"])
def test_labelling_keeps_the_complete_shards(format: str, tiny_hub_folder: Path, tmp_path: Path) -> None:
    Path("in").mkdir()
    Image.new("RGB", (12, 8)).save("in/a.png")
    Image.effect_noise((400, 400), 99).save("in/b.png")
    options = {"model": str(tiny_hub_folder), "format": format, "shard_size": 1, "num_workers": 0}
    with disk_takes(50_000), pytest.raises(OSError, match=f"{REASON}.*0001"):
        label_dataset("in", NAMES, "out", **options)
    assert os.listdir("out/shards") == ["00000.json"]
    assert label_dataset("in", NAMES, "out", **options) == (2, 0)


def test_training_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(accelerator.prepare(nn.Linear(300, 300)).parameters())
    accelerator.register_for_checkpointing(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
    before = save_checkpoint(accelerator, tmp_path, step=1, keep=1)
    with disk_takes(50_000), pytest.raises(OSError, match="step-00000002 could not be written"):
        save_checkpoint(accelerator, tmp_path, step=2, keep=1)
    assert find_checkpoints(tmp_path) == [before]
    assert os.listdir(before.parent) == [before.name]


def test_a_cache_that_takes_nothing_costs_one_warning_and_not_the_result(
    tiny_model: Model, tiny_processor: SEDProcessor, tmp_path: Path, sed_hf_log: pytest.LogCaptureFixture
) -> None:
    full, not_a_folder = ClassEmbeddingCache(tmp_path / "cache"), ClassEmbeddingCache(tmp_path / "file" / "cache")
    (tmp_path / "file").touch()
    expected = encode_classes(tiny_model, tiny_processor, NAMES)
    with disk_takes(4_000):
        assert torch.equal(encode_classes(tiny_model, tiny_processor, NAMES, full), expected)
    assert sed_hf_log.messages == [f"class embeddings are not cached in {full.directory}: {REASON}"]
    assert not [path for path in full.directory.rglob("*") if path.is_file()]
    assert torch.equal(encode_classes(tiny_model, tiny_processor, NAMES, not_a_folder), expected)
