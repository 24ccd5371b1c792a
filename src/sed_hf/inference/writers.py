"""Results as files: overlays for people, label maps for programs, summaries."""

import errno
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
from ..visualization import ClassTotals, draw_overlay
from .segmenter import unused_label


def label_map(segmentation: npt.NDArray[np.integer], num_classes: int) -> Image.Image:
    """The labels (height, width) as a grey image of 8 bits, or of 16 for more than 255 classes."""
    return Image.fromarray(segmentation.astype("uint8" if unused_label(num_classes) == 255 else "uint16"))


def summary(
    file: str | os.PathLike[str], size: tuple[int, int], totals: ClassTotals, model_name: str, **more: Any
) -> str:
    """The classes of an image or a video of this width and height, their shares and mean probabilities, as JSON."""
    content = {
        "file": os.fsencode(file).decode(errors="replace"),
        "width": size[0],
        "height": size[1],
        **more,
        "model": model_name,
        "classes": [asdict(entry) for entry in totals.statistics()],
        "ignored_pixels": totals.ignored_pixels,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_results(
    paths: Sequence[Path],
    source: Path,
    image: Image.Image,
    result: dict[str, npt.NDArray],
    class_names: Sequence[str],
    ignore_index: int | None,
    model_name: str,
) -> str | None:
    """Write label map (PNG), overlay (JPEG), then summary (JSON) of an image; return what is not as it should be.

    `result` holds `segmentation` and `probability`, both (height, width), as [`Segmenter`] gives them.
    """
    segmentation, totals = result["segmentation"], ClassTotals(class_names, ignore_index)
    totals.add(segmentation, result["probability"])
    try:
        with atomic_path(paths[0]) as path:
            label_map(segmentation, len(class_names)).save(path, format="PNG")
        overlay = draw_overlay(image, segmentation, class_names, ignore_index=ignore_index)
        with atomic_path(paths[1]) as path:
            # JPEG, since PNG takes seconds on a photo; without chroma subsampling, which would blur contours.
            overlay.save(path, format="JPEG", quality=90, subsampling=0)
        with atomic_path(paths[2]) as path:
            path.write_text(summary(source, segmentation.shape[::-1], totals, model_name), encoding="utf-8")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a full disk, for one, stops all
            raise
        return f"not all results are written: {error}"
    if max(image.size) > max(overlay.size):
        return f"its overlay is made smaller: a JPEG file has at most {max(overlay.size)} pixels on a side"
    return None
