"""Scenes as a data set for PyTorch's dataloader."""

from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from .rendering import render_scene
from .vocabulary import Split, scene_vocabulary, seen_classes, split_compositions


class SceneDataset(Dataset[dict[str, Any]]):
    """Scenes drawn on demand, the same in every process and at every access.

    Item `i` is a dict of `image`, an RGB image; `label`, a (size, size) int64 array of class ids, without ignored
    pixels; and `file_name`, which names the scene in messages.

    Args:
        split: "train" shows and names 72 compositions only; "test" shows all 96.
        length: The number of scenes.
        seed: Scenes of different seeds differ.
        size: Height and width in pixels.

    Raises:
        ValueError: If the split is unknown.
    """

    def __init__(self, split: Split, length: int, seed: int = 0, size: int = 192) -> None:
        split_compositions(split)  # An unknown split fails here rather than in a worker.
        self.split = split
        self.length = length
        self.seed = seed
        self.size = size

    @property
    def class_names(self) -> list[str]:
        """The names for the ids of labels: `seen_classes()` in training, `scene_vocabulary()` in test."""
        return seen_classes() if self.split == "train" else scene_vocabulary()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"Scene {index} is outside the set of {self.length} scenes.")
        image, label = render_scene(self.seed, index, self.split, self.size)
        file_name = f"scene-{self.split}-seed{self.seed}-{index:06d}"
        return {"image": Image.fromarray(image), "label": label, "file_name": file_name}
