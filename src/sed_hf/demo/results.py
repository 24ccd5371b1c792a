"""A segmentation that a visitor looks at: the threshold and the hidden classes change only what is shown of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..inference.writers import image_summary, label_map, unused_label
from ..processing_sed import SYNONYM_SEPARATOR
from ..visualization import ClassStatistics, class_colors, class_statistics, display_size, draw_regions

NUMBER_SCALE = 1.7  # so that they can be read on a phone


@dataclass
class Result:
    """The segmentation of an image, before any threshold.

    Attributes:
        file_name: Of the image, without folder.
        model_name: For the summary.
        class_names: The T names.
        image: RGB.
        segmentation: Class indices (height, width).
        probability: Of each pixel's class (height, width), float32.
        threshold: Pixels whose probability is lower have no class.
        hidden: Indices of the classes that the overlay does not show.
    """

    file_name: str
    model_name: str
    class_names: Sequence[str]
    image: Image.Image
    segmentation: npt.NDArray[np.integer]
    probability: npt.NDArray[np.float32]
    threshold: float = 0.0
    hidden: Sequence[int] = field(default_factory=list)

    @property
    def ignore_index(self) -> int:
        """The label of pixels without a class."""
        return unused_label(len(self.class_names))

    @cached_property
    def listed(self) -> list[int]:
        """The classes in the legend, the largest first. Their order, and so their numbers, depend on no threshold."""
        return [entry.index for entry in class_statistics(self.segmentation, self.class_names)]

    def labels(self) -> npt.NDArray[np.integer]:
        """Class indices (height, width), with `ignore_index` where the probability is below the threshold."""
        return np.where(self.probability < self.threshold, self.ignore_index, self.segmentation)

    def statistics(self) -> dict[int, ClassStatistics]:
        """Of the classes that occur, by their index."""
        entries = class_statistics(
            self.labels(), self.class_names, probability=self.probability, ignore_index=self.ignore_index
        )
        return {entry.index: entry for entry in entries}

    def write_overlay(self, folder: Path) -> str:
        """Write the overlay, where hidden classes and pixels without one stay a photo, and return its path."""
        labels = self.labels()
        labels[np.isin(labels, self.hidden)] = self.ignore_index
        overlay = draw_regions(
            self.image,
            labels,
            self.class_names,
            self.listed,
            ignore_index=self.ignore_index,
            number_scale=NUMBER_SCALE,
        )
        path = folder / f"{Path(self.file_name).stem}_overlay.jpg"
        # Without chroma subsampling, which would blur contours and numbers.
        overlay.save(path, quality=90, subsampling=0)
        return str(path)

    def write_downloads(self, folder: Path) -> tuple[str, str]:
        """Write the label map and the summary of `sed-hf segment` into a folder, and return their paths."""
        stem, labels = Path(self.file_name).stem, self.labels()
        labels_path, summary_path = folder / f"{stem}_labels.png", folder / f"{stem}.json"
        label_map(labels, len(self.class_names)).save(labels_path)
        ignore_index = self.ignore_index if self.threshold else None
        result = {"segmentation": labels, "probability": self.probability}
        text = image_summary(self.file_name, result, self.class_names, ignore_index, self.model_name)
        summary_path.write_text(text, encoding="utf-8")
        return str(labels_path), str(summary_path)

    def legend(self) -> list[tuple[str, int]]:
        """For each listed class a line and its index: number, first synonym, share of the image, mean probability."""
        statistics = self.statistics()
        lines = []
        for number, index in enumerate(self.listed, start=1):
            name = self.class_names[index].split(SYNONYM_SEPARATOR)[0]
            entry = statistics.get(index)
            values = f"{entry.share:.1%} · {entry.mean_probability:.2f}" if entry else "0%"
            lines.append((f"{number}  {name} · {values}", index))
        return lines

    def legend_colors(self) -> str:
        """A style sheet that gives each line of the legend the colour of its class."""
        colors = class_colors(self.class_names)
        rules = (
            f"#shown label:has(input[name='{index}']) {{--class-color: rgb{tuple(colors[index].tolist())}}}"
            for index in self.listed
        )
        return f"<style>{' '.join(rules)}</style>"

    def describe(self, position: Sequence[Any]) -> str:
        """What there is at a position of the overlay (x, y in its pixels), as HTML."""
        height, width = self.segmentation.shape
        x, y = np.floor_divide(np.multiply(position, (width, height)), display_size((width, height))).astype(int)
        pixel = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        index, probability = int(self.segmentation[pixel]), float(self.probability[pixel])
        name = f"<b>{escape(self.class_names[index])}</b>"
        if probability < self.threshold:
            return f"No class here: the best one, {name}, has a probability of only {probability:.2f}."
        entry = self.statistics()[index]
        return (
            f"{name}: probability {probability:.2f} here and {entry.mean_probability:.2f} on average,"
            f" {entry.share:.1%} of the image."
        )
