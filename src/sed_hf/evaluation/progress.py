"""The state of an unfinished evaluation on disk, from which a later run goes on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..metrics.mean_iou import MeanIoU
from ..utils import atomic_path, require_file, short_error

SETTINGS_KEY = "settings"


@dataclass(frozen=True)
class ProgressFile:
    """A file with what `MeanIoU.state_dict` has counted so far, and the settings it was counted with.

    Attributes:
        path: A safetensors file.
        settings: What JSON can hold, by the names that a user knows. A state of other settings is refused.
        images_per_save: How many images, of all processes together, may be lost by an interruption.
    """

    path: Path
    settings: Mapping[str, Any]
    images_per_save: int = 100

    def load(self) -> dict[str, Tensor] | None:
        """The saved state, or `None` if there is none.

        Raises:
            ValueError: It is damaged, or was saved with other settings; the message names them.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(require_file(self.path), framework="pt") as file:
                settings = json.loads((file.metadata() or {})[SETTINGS_KEY])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            if not isinstance(settings, dict):
                raise ValueError("its settings have no names")
        except (SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.path} is no state of an evaluation, or damaged: {short_error(error)}. Remove it to start anew"
            ) from error
        require_same_settings(settings, self.settings, self.path)
        return state

    def restore(self, metric: MeanIoU) -> Tensor | None:
        """Let a metric go on from the saved state, and return which samples it has counted; `None` if there is none.

        Raises:
            ValueError: As [`load`]; or the state is of other classes or samples.
        """
        state = self.load()
        if state is None:
            return None
        try:
            metric.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{self.path} is no state of this evaluation: {error} Remove it to start anew") from error
        return state["counted"]

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Replace the saved state; an interruption leaves the previous one."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(save(tensors, metadata={SETTINGS_KEY: json.dumps(dict(self.settings))}))

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)


def require_same_settings(saved: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on from a file of other settings.

    Raises:
        ValueError: Some differ; the message gives name and both values of each.
    """
    current = json.loads(json.dumps(dict(current)))  # as the saved ones: lists in place of tuples
    differences = [
        f"{name:.80} was {saved.get(name)!r:.80} and is {current.get(name)!r:.80}"
        for name in [*current, *(name for name in saved if name not in current)]
        if saved.get(name) != current.get(name)
    ]
    if differences:
        raise ValueError(
            f"{path} is from an evaluation with other settings: {'; '.join(differences)}."
            " Repeat them to go on with it, or choose another output folder"
        )
