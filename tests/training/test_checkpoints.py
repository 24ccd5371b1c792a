"""Checkpoints of an interrupted training: what is damaged is named, and what is hostile is not executed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from planted import RunsCode
from small_runs import reset_accelerate
from torch import nn

from sed_hf.training.checkpoints import find_checkpoints, load_checkpoint, save_checkpoint


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    accelerator = Accelerator(cpu=True)
    network = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters())
    accelerator.prepare(network, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
    yield accelerator
    reset_accelerate()


def test_the_newest_are_kept(accelerator: Accelerator, tmp_path: Path) -> None:
    for step in (3, 5, 12):
        checkpoint = save_checkpoint(accelerator, tmp_path, step, keep=2)
    assert [folder.name for folder in find_checkpoints(tmp_path)] == ["step-00000005", "step-00000012"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000005", "step-00000012"]
    load_checkpoint(accelerator, checkpoint)


def test_folders_of_others_are_neither_replaced_nor_removed(accelerator: Accelerator, tmp_path: Path) -> None:
    for name in ("step-00000001", "step-00000003", "step-mine"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    save_checkpoint(accelerator, tmp_path, step=2, keep=1)
    with pytest.raises(FileExistsError, match="step-00000003: expected no such folder"):
        save_checkpoint(accelerator, tmp_path, step=3, keep=1)
    save_checkpoint(accelerator, tmp_path, step=4, keep=1)
    assert [folder.name for folder in find_checkpoints(tmp_path)] == ["step-00000004"]
    assert len(os.listdir(tmp_path / "checkpoints")) == 4


@pytest.mark.parametrize("name", ["scheduler.bin", "random_states_0.pkl", "optimizer.bin"])
def test_code_in_it_is_refused_and_not_executed(accelerator: Accelerator, tmp_path: Path, name: str) -> None:
    checkpoint = save_checkpoint(accelerator, tmp_path, step=3, keep=1)
    torch.save({"state": RunsCode(tmp_path / "executed")}, checkpoint / name)
    with pytest.raises(ValueError, match=f"the checkpoint {checkpoint} cannot be loaded"):
        load_checkpoint(accelerator, checkpoint)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["random_states_0.pkl", "optimizer.bin", "model.safetensors"])
def test_a_damaged_file_is_refused(accelerator: Accelerator, tmp_path: Path, name: str) -> None:
    checkpoint = save_checkpoint(accelerator, tmp_path, step=3, keep=1)
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=f"the checkpoint {checkpoint} cannot be loaded"):
        load_checkpoint(accelerator, checkpoint)
