"""The log of a training run."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..utils import atomic_path, short_error
from .recipe import Recipe

LOG_FILE = "log.jsonl"


class TrainingLog:
    """Loss, learning rate, gradient norm and throughput, to accelerate's tracker and to a JSON-lines file.

    Its state belongs into checkpoints: a line is a mean over steps, of which some may come before a checkpoint.

    Args:
        accelerator: Of all processes; the main one writes.
        recipe: The settings of the run.
        start: The number of steps that the run has done. Lines that come after them are written again.

    Attributes:
        last: The values that were written last.
    """

    def __init__(self, accelerator: Accelerator, recipe: Recipe, start: int) -> None:
        self.accelerator = accelerator
        self.recipe = recipe
        self.path = Path(recipe.output_dir) / LOG_FILE
        self.losses: list[Tensor] = []
        self.last: dict[str, float] = {}
        self.num_timed = 0
        self.start_time = time.perf_counter()
        accelerator.init_trackers("train", config={name: str(value) for name, value in asdict(recipe).items()})
        if accelerator.is_main_process:
            lines = lines_until(self.path, start)
            with atomic_path(self.path) as path:
                path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def record(
        self, step: int, loss: Tensor, grad_norm: Tensor, learning_rates: Sequence[float | Tensor]
    ) -> dict[str, float] | None:
        """Note a step; every `log_every` steps, write a line and return its values.

        Args:
            step: The number of steps done.
            loss: The mean over all processes.
            grad_norm: Of the whole model, before clipping.
            learning_rates: Of all groups of parameters; the highest is written.
        """
        self.losses.append(loss)
        self.num_timed += 1
        if step % self.recipe.log_every and step != self.recipe.steps:
            return None
        now = time.perf_counter()
        values = {
            "loss": torch.stack(self.losses).mean().item(),
            "learning_rate": float(max(learning_rates)),
            "grad_norm": float(grad_norm),
            "images_per_second": self.num_timed * self.recipe.images_per_step / (now - self.start_time),
        }
        self.losses, self.num_timed, self.start_time = [], 0, now
        self.write(step, values)
        return values

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step."""
        self.last = values
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The losses since the last line, and that line."""
        return {"losses": [loss.item() for loss in self.losses], "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.losses = [torch.tensor(loss, device=self.accelerator.device) for loss in state_dict["losses"]]
        self.last = state_dict["last"]


def lines_until(path: Path, step: int) -> list[str]:
    """The lines of a log up to a step; none if there is no log. A last line that was cut off is left out.

    Raises:
        ValueError: The file is not the log of a training run.
    """
    if step == 0 or not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [line for line in lines if json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the log of a training run: {short_error(error)}") from error
