"""Segmentations that the demo keeps for a while, and what its page shows of them.

A picture is segmented once. The threshold and the hidden classes only change what is shown of the result.
"""

import uuid
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..inference.writers import image_summary, label_map, unused_label
from ..visualization import ClassStatistics, class_statistics, draw_regions

MIN_VIEW_SIZE, MAX_VIEW_SIZE = 768, 1280  # pixels; the longer side of the picture in the page
MAX_KEPT_RESULTS = 64
MAX_KEPT_BYTES = 2**30


@dataclass(frozen=True)
class Region:
    """What there is at a point of the picture.

    Attributes:
        class_name: Its class.
        probability: Of the class at this point.
        statistics: Of the class in the picture; `None` if the point has no class, its probability being too low.
    """

    class_name: str
    probability: float
    statistics: ClassStatistics | None


class Result:
    """The segmentation of a picture, before any threshold.

    Args:
        file_name: Of the picture, without folder.
        picture: RGB.
        segmentation: Class indices (height, width).
        probability: Of each pixel's class (height, width), float32.
        class_names: The T names.
        model_name: For the summary.
    """

    def __init__(
        self,
        file_name: str,
        picture: Image.Image,
        segmentation: npt.NDArray[np.integer],
        probability: npt.NDArray[np.float32],
        class_names: Sequence[str],
        model_name: str,
    ) -> None:
        self.file_name = file_name
        self.class_names = class_names
        self.model_name = model_name
        self.ignore_index = unused_label(len(class_names))
        self.labels = segmentation.astype(np.uint8 if self.ignore_index == 255 else np.uint16)
        self.probability = probability
        self.listed = [entry.index for entry in class_statistics(self.labels, class_names)]
        self.view = resized_for_page(picture)

    @property
    def num_bytes(self) -> int:
        """The memory that it takes."""
        return self.labels.nbytes + self.probability.nbytes + 3 * self.view.width * self.view.height

    def labels_at(self, threshold: float) -> npt.NDArray[np.integer]:
        """Class indices (height, width), with `ignore_index` where the probability is below the threshold."""
        return np.where(self.probability < threshold, self.labels.dtype.type(self.ignore_index), self.labels)

    def statistics(self, threshold: float) -> list[ClassStatistics]:
        """Of the classes that occur, the largest first."""
        return class_statistics(
            self.labels_at(threshold),
            self.class_names,
            probability=self.probability,
            ignore_index=self.ignore_index,
        )

    def draw(self, threshold: float, hidden: Collection[int] = ()) -> Image.Image:
        """The picture in the colours of its classes; hidden classes, and pixels without one, stay a photo.

        Numbers and colours do not depend on the threshold, nor on what is hidden.
        """
        height, width = self.labels.shape
        rows = (np.arange(self.view.height) + 0.5) * height / self.view.height
        columns = (np.arange(self.view.width) + 0.5) * width / self.view.width
        nearest = np.ix_(rows.astype(int), columns.astype(int))
        labels = self.labels[nearest].copy()
        labels[(self.probability[nearest] < threshold) | np.isin(labels, list(hidden))] = self.ignore_index
        return draw_regions(self.view, labels, self.class_names, self.listed, ignore_index=self.ignore_index)

    def region_at(self, x: float, y: float, threshold: float) -> Region:
        """What there is at a point, in fractions of width and height."""
        height, width = self.labels.shape
        row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
        index, probability = int(self.labels[row, column]), float(self.probability[row, column])
        statistics = {entry.index: entry for entry in self.statistics(threshold)} if probability >= threshold else {}
        return Region(self.class_names[index], probability, statistics.get(index))

    def write_overlay(self, threshold: float, hidden: Collection[int], folder: Path) -> Path:
        """Write what [`draw`] draws into a folder, and return its path."""
        path = folder / f"{Path(self.file_name).stem}_overlay.jpg"
        # Without chroma subsampling, which would blur contours and numbers.
        self.draw(threshold, hidden).save(path, quality=90, subsampling=0)
        return path

    def write_downloads(self, threshold: float, folder: Path) -> tuple[Path, Path]:
        """Write the label map and the summary of `sed-hf segment` into a folder, and return their paths."""
        stem = Path(self.file_name).stem
        labels_path, summary_path = folder / f"{stem}_labels.png", folder / f"{stem}.json"
        segmentation = self.labels_at(threshold)
        label_map(segmentation, len(self.class_names)).save(labels_path)
        result = {"segmentation": segmentation, "probability": self.probability}
        ignore_index = self.ignore_index if threshold else None
        text = image_summary(self.file_name, result, self.class_names, ignore_index, self.model_name)
        summary_path.write_text(text, encoding="utf-8")
        return labels_path, summary_path


def resized_for_page(picture: Image.Image) -> Image.Image:
    """The picture as it is shown: large ones load too slowly, and in small ones numbers would hide the regions."""
    longest = max(picture.size)
    scale = min(max(longest, MIN_VIEW_SIZE), MAX_VIEW_SIZE) / longest
    size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
    return picture.resize(size, Image.Resampling.BICUBIC)


class Results:
    """The latest results, each under a secret key, as many as memory is set aside for."""

    def __init__(self, max_results: int = MAX_KEPT_RESULTS, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self.max_results = max_results
        self.max_bytes = max_bytes
        self._results: OrderedDict[str, Result] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._results)

    def add(self, result: Result) -> str:
        """Keep a result, at the cost of those used longest ago, and return its key."""
        key = uuid.uuid4().hex
        with self._lock:
            self._results[key] = result
            while len(self._results) > 1 and self._is_full():
                self._results.popitem(last=False)
        return key

    def get(self, key: str | None) -> Result | None:
        """The result, if it is still there."""
        with self._lock:
            if key is None or key not in self._results:
                return None
            self._results.move_to_end(key)
            return self._results[key]

    def remove(self, key: str | None) -> None:
        """Forget a result that nobody will ask for again."""
        with self._lock:
            if key is not None:
                self._results.pop(key, None)

    def _is_full(self) -> bool:
        num_bytes = sum(result.num_bytes for result in self._results.values())
        return len(self._results) > self.max_results or num_bytes > self.max_bytes
