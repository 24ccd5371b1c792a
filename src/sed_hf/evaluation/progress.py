"""The counts of an unfinished evaluation on disk, from which a later run continues."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..utils import atomic_path, short_error


@dataclass(frozen=True)
class ProgressFile:
    """A file with the counts of the first images of a data set, and the settings they were counted with.

    Attributes:
        path: A safetensors file.
        settings: What JSON can hold, by the names that a user knows. Counts of other settings are refused.
        images_per_save: How many images, of all processes together, may be lost by an interruption.
    """

    path: Path
    settings: Mapping[str, Any]
    images_per_save: int = 100

    def load(self) -> tuple[int, Tensor] | None:
        """The number of images counted, and their confusion matrix; `None` if there is no such file.

        Raises:
            ValueError: It is not such a file, or was saved with other settings; the message names them.
        """
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = json.loads(file.metadata()["evaluation"])
                matrix = file.get_tensor("confusion_matrix")
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is not the progress of an evaluation, or damaged: {short_error(error)}."
                " Remove it to start again"
            ) from error
        require_same_settings(metadata["settings"], self.settings, self.path)
        return metadata["num_images"], matrix

    def save(self, num_images: int, confusion_matrix: Tensor) -> None:
        """Replace the file; an interruption leaves the previous one."""
        metadata = {"evaluation": json.dumps({"num_images": num_images, "settings": dict(self.settings)})}
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(save({"confusion_matrix": confusion_matrix.cpu()}, metadata))


def require_same_settings(saved: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue from a file of other settings.

    Raises:
        ValueError: Some differ; the message gives name and both values of each.
    """
    current = json.loads(json.dumps(dict(current)))  # as the saved ones: lists in place of tuples
    differences = [
        f"{name} was {saved.get(name)!r:.80} and is {current.get(name)!r:.80}"
        for name in {**current, **saved}
        if saved.get(name) != current.get(name)
    ]
    if differences:
        raise ValueError(
            f"{path} is from an evaluation with other settings: {'; '.join(differences)}."
            " Repeat them to continue it, or choose another output folder"
        )
