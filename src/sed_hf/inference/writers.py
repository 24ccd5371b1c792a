"""Results as files: overlays for people, label maps for programs, summaries."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..utils import atomic_path
from ..visualization import ClassStatistics, class_statistics, draw_overlay

MAX_CLASSES = 65535  # that 16 bits tell apart, beside the label of pixels without a class


def unused_label(num_classes: int) -> int:
    """The label of pixels without a class: 255 if the label map has 8 bits, 65535 if it has 16.

    Raises:
        ValueError: There are more classes than 16 bits tell apart.
    """
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"expected at most {MAX_CLASSES} classes, which is what a label map can hold, got {num_classes}"
        )
    return 255 if num_classes <= 255 else 65535


def label_map(segmentation: npt.NDArray[np.integer], num_classes: int) -> Image.Image:
    """The labels (height, width) as a grey image of 8 bits, or of 16 for more than 255 classes."""
    return Image.fromarray(segmentation.astype("uint8" if unused_label(num_classes) == 255 else "uint16"))


def summary(
    file: str | os.PathLike[str],
    size: tuple[int, int],
    statistics: Sequence[ClassStatistics],
    ignored_pixels: int,
    model_name: str,
    **more: Any,
) -> str:
    """The classes of an image or a video, their shares and mean probabilities, as JSON.

    Args:
        file: What was segmented.
        size: Width and height in pixels.
        statistics: Of the classes that occur.
        ignored_pixels: How many have no class.
        model_name: The model.
        more: What else to tell, after the size.
    """
    content = {
        "file": os.fsencode(file).decode(errors="replace"),
        "width": size[0],
        "height": size[1],
        **more,
        "model": model_name,
        "classes": [_rounded(asdict(entry)) for entry in statistics],
        "ignored_pixels": ignored_pixels,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def image_summary(
    file: str | os.PathLike[str],
    result: dict[str, npt.NDArray],
    class_names: Sequence[str],
    ignore_index: int | None,
    model_name: str,
) -> str:
    """The summary of one image: `result` holds `segmentation` and `probability`, both (height, width)."""
    segmentation = result["segmentation"]
    statistics = class_statistics(
        segmentation, class_names, probability=result["probability"], ignore_index=ignore_index
    )
    ignored_pixels = 0 if ignore_index is None else int((segmentation == ignore_index).sum())
    return summary(file, segmentation.shape[::-1], statistics, ignored_pixels, model_name)


def write_results(
    paths: Sequence[Path],
    source: Path,
    image: Image.Image,
    result: dict[str, npt.NDArray],
    class_names: Sequence[str],
    ignore_index: int | None,
    model_name: str,
) -> str | None:
    """Write label map, overlay and summary of an image, and return what had to be changed for that, if anything.

    The summary is written last: where it exists, all three are complete.

    Args:
        paths: Of label map (PNG), overlay (JPEG) and summary (JSON).
        source: File of the image.
        image: RGB.
        result: `segmentation` and `probability`, both (height, width).
        class_names: The T class names.
        ignore_index: Label of pixels that have no class; `None`: all have one.
        model_name: The model.

    Raises:
        OSError: A file cannot be written.
    """
    labels_path, overlay_path, summary_path = paths
    with atomic_path(labels_path) as path:
        label_map(result["segmentation"], len(class_names)).save(path, format="PNG")
    overlay = draw_overlay(image, result["segmentation"], class_names, ignore_index=ignore_index)
    with atomic_path(overlay_path) as path:
        # JPEG, since PNG takes seconds on a photo; without chroma subsampling, which would blur contours and legend.
        overlay.save(path, format="JPEG", quality=90, subsampling=0)
    with atomic_path(summary_path) as path:
        path.write_text(image_summary(source, result, class_names, ignore_index, model_name), encoding="utf-8")
    if max(image.size) > max(overlay.size):
        return f"its overlay is made smaller: a JPEG file has at most {max(overlay.size)} pixels on a side"
    return None


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Round numbers to six decimals: a millionth of an image is about a pixel."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
