"""Checkpoints of a training run: each is complete or not there."""

import pickle
import tempfile
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load
from safetensors import SafetensorError

from ..utils import atomic_path, short_error


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, keep: int) -> Path:
    """Write model, optimizer, schedule and random states after `step` steps, and keep the newest `keep` checkpoints.

    All processes must call this. A checkpoint of this step that is there already is kept.
    """
    folder = output_dir / "checkpoints" / f"step-{step:08d}"
    if folder in find_checkpoints(output_dir):
        return folder
    if folder.exists():
        raise FileExistsError(f"{folder}: expected no such folder, since a checkpoint is to be written there")
    try:
        with atomic_path(folder) if accelerator.is_main_process else nullcontext() as own:
            [temporary] = broadcast_object_list([own])
            accelerator.save_state(str(temporary))
            accelerator.wait_for_everyone()
    except (RuntimeError, SafetensorError) as error:  # torch's and safetensors' words for a full disk
        raise OSError(f"{folder} could not be written: {short_error(error)}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for old in find_checkpoints(output_dir)[:-keep]:
            with tempfile.TemporaryDirectory(prefix=".", dir=old.parent) as trash:
                old.rename(Path(trash, old.name))  # at once, so that no half of it counts as a checkpoint
    return folder


def find_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    files = output_dir.glob(f"checkpoints/step-{'[0-9]' * 8}/random_states_0.pkl")
    return sorted(file.parent for file in files if file.is_file())


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Restore what [`save_checkpoint`] has written, without running code that the files may contain."""
    try:
        for path in folder.glob("random_states_*.pkl"):
            load(path)  # accelerate passes over those that it cannot load
        accelerator.load_state(str(folder))
    except (RuntimeError, ValueError, EOFError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"the checkpoint {folder} cannot be loaded: {short_error(error)}") from error
