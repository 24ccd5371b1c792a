"""Checkpoints that are complete or not there."""

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load
from safetensors import safe_open
from torch import Tensor

from ..utils import atomic_path, require_file, short_error

CHECKPOINTS = "checkpoints"
PREFIX = "step-"
STATE_FILE = "state.json"
PICKLED_SUFFIXES = frozenset({".bin", ".pkl", ".pt"})


def save_checkpoint(
    accelerator: Accelerator, output_dir: Path, step: int, keep: int, losses: Sequence[Tensor] = ()
) -> Path:
    """Write model, optimizer, schedule, random states and position after `step` steps; called by every process.

    The checkpoint appears when it is complete. The newest `keep` remain.

    Args:
        losses: Of the steps whose mean is not in the log yet, the same on every process.

    Raises:
        OSError: It could not be written, for want of space for example. What was written before is still there.
    """
    folder = output_dir / CHECKPOINTS / f"{PREFIX}{step:08d}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder) if accelerator.is_main_process else nullcontext() as own:
            if own is not None:
                own.mkdir()
            [temporary] = broadcast_object_list([own])
            accelerator.save_state(str(temporary))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                state = {"step": step, "losses": [loss.item() for loss in losses]}
                (temporary / STATE_FILE).write_text(json.dumps(state))
    except Exception as error:  # torch, safetensors and accelerate each have errors of their own for a full disk
        last = find_checkpoints(output_dir)[-1:]
        there = f"{last[0]} is still there, to continue with --resume" if last else "there is none yet"
        raise OSError(f"the checkpoint {folder} could not be written ({error}); of earlier ones, {there}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for old in find_checkpoints(output_dir)[:-keep]:
            remove_checkpoint(old)
    accelerator.wait_for_everyone()
    return folder


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; what is left of it by an interruption does not count as one."""
    (folder / STATE_FILE).unlink()
    shutil.rmtree(folder)


def remove_incomplete(output_dir: Path) -> None:
    """Remove what a killed run has left of checkpoints that it was writing or removing."""
    for folder in set((output_dir / CHECKPOINTS).glob(f"{PREFIX}*")) - set(find_checkpoints(output_dir)):
        shutil.rmtree(folder)


def find_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    return sorted(path.parent for path in (output_dir / CHECKPOINTS).glob(f"{PREFIX}*/{STATE_FILE}"))


def steps_done(folder: Path) -> int:
    """The number of steps after which a checkpoint was written.

    Raises:
        OSError, ValueError: The checkpoint does not say, or is damaged.
    """
    step = _read_state(folder)["step"]
    if type(step) is not int or step < 0:
        raise ValueError(f"{folder / STATE_FILE}: expected a number of steps, got {step!r:.80}")
    return step


def unlogged_losses(folder: Path) -> list[float]:
    """The losses of the steps before a checkpoint whose mean was not in the log yet.

    Raises:
        OSError, ValueError: The checkpoint is damaged.
    """
    losses = _read_state(folder).get("losses", [])
    if not isinstance(losses, list) or not all(isinstance(loss, int | float) for loss in losses):
        raise ValueError(f"{folder / STATE_FILE}: expected a list of losses, got {losses!r:.80}")
    return losses


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Restore what [`save_checkpoint`] has written, without running code that the files may contain.

    Raises:
        ValueError: A file is missing, damaged, of another model, or holds more than a checkpoint does.
    """
    try:
        for path in sorted(folder.iterdir()):
            require_file(path)
            if path.suffix == ".safetensors":
                require_finite(path)
            if path.suffix in PICKLED_SUFFIXES:
                load(path, map_location="cpu")  # refuses code; accelerate would run that of registered objects
        accelerator.load_state(str(folder))
    except Exception as error:  # torch, safetensors and accelerate raise whatever happens to them
        raise ValueError(f"the checkpoint {folder} cannot be loaded: {short_error(error)}") from error


def require_finite(path: Path) -> None:
    """Refuse weights from which training could only go on to numbers that are none.

    Raises:
        ValueError: The file has some; the message names the first.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            if not file.get_tensor(name).isfinite().all():
                raise ValueError(f"{path.name}: {name:.80} is not finite")


def _read_state(folder: Path) -> dict[str, Any]:
    path = require_file(folder / STATE_FILE)
    try:
        state = json.loads(path.read_bytes())
        state["step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected the state of a training run: {short_error(error)}") from error
    return state
