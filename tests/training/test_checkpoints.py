"""Checkpoints of an interrupted training: what is damaged is named, and what is hostile is not executed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from torch import nn

from sed_hf.training.checkpoints import load_checkpoint, save_checkpoint, steps_done
from sed_hf.training.loop import lines_until


class MakesFolder:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    accelerator = Accelerator(cpu=True)
    network = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    accelerator.prepare(network, optimizer)
    accelerator.register_for_checkpointing(schedule)
    yield accelerator
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def checkpoint(accelerator: Accelerator, tmp_path: Path) -> Path:
    return save_checkpoint(accelerator, tmp_path, step=3, keep=1)


def test_a_whole_one_loads(accelerator: Accelerator, checkpoint: Path) -> None:
    load_checkpoint(accelerator, checkpoint)
    assert steps_done(checkpoint) == 3


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin"])
def test_code_in_it_is_refused_and_not_executed(
    accelerator: Accelerator, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    torch.save({"state": MakesFolder(tmp_path / "executed")}, checkpoint / name)
    with pytest.raises(ValueError, match=f"the checkpoint {checkpoint} cannot be loaded"):
        load_checkpoint(accelerator, checkpoint)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "optimizer.bin", "model.safetensors"])
def test_a_damaged_file_is_refused(accelerator: Accelerator, checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=f"the checkpoint {checkpoint} cannot be loaded"):
        load_checkpoint(accelerator, checkpoint)


def test_weights_that_are_no_numbers_are_refused(accelerator: Accelerator, checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    save_file({**weights, "bias": torch.tensor([torch.nan])}, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"cannot be loaded: model\.safetensors: bias is not finite"):
        load_checkpoint(accelerator, checkpoint)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"step": "3"}', '{"step": -1}', "[" * 100_000])
def test_a_state_without_a_number_of_steps_is_refused(checkpoint: Path, content: str) -> None:
    (checkpoint / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json: expected"):
        steps_done(checkpoint)


@pytest.mark.parametrize("line", ["", "5", "{}", '{"step": "3"}', '{"step":'])
def test_a_damaged_log_is_named(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl: expected the log of a training run"):
        lines_until(log, 5)
