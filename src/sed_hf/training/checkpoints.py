"""Checkpoints that are complete or not there."""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import load
from safetensors import safe_open

from sed_hf.files import reason, require_file

PREFIX = "step-"
STATE_FILE = "state.json"
PICKLED_SUFFIXES = frozenset({".bin", ".pkl", ".pt"})


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, keep: int) -> Path:
    """Write model, optimizer, schedule, random states and position after `step` steps; called by every process.

    The checkpoint is written under another name and renamed when it is complete. The newest `keep` remain.

    Raises:
        OSError: It could not be written, for want of space for example. What was written before is still there.
    """
    folder = output_dir / "checkpoints" / f"{PREFIX}{step:08d}"
    partial = folder.with_name(f".{folder.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
    except Exception as error:  # torch, safetensors and accelerate each have errors of their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        last = find_checkpoints(output_dir)[-1:]
        there = f"{last[0]} is still there, to continue with --resume" if last else "there is none yet"
        raise OSError(f"the checkpoint {folder} could not be written ({error}); of earlier ones, {there}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / STATE_FILE).write_text(json.dumps({"step": step}))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        for old in find_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return folder


def find_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    return sorted(path.parent for path in (output_dir / "checkpoints").glob(f"{PREFIX}*/{STATE_FILE}"))


def steps_done(folder: Path) -> int:
    """The number of steps after which a checkpoint was written.

    Raises:
        OSError, ValueError: The checkpoint does not say, or is damaged.
    """
    path = require_file(folder / STATE_FILE)
    try:
        step = json.loads(path.read_bytes())["step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected the state of a training run: {reason(error)}") from error
    if type(step) is not int or step < 0:
        raise ValueError(f"{path}: expected a number of steps, got {step!r:.80}")
    return step


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
        raise ValueError(f"the checkpoint {folder} cannot be loaded: {reason(error)}") from error


def require_finite(path: Path) -> None:
    """Refuse weights from which training could only go on to numbers that are none.

    Raises:
        ValueError: The file has some; the message names the first.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            if not file.get_tensor(name).isfinite().all():
                raise ValueError(f"{path.name}: {name:.80} is not finite")
