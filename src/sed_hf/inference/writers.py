"""Results as files: overlays for people, label maps for programs, summaries."""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from ..utils import atomic_path, short_error, write_file
from ..visualization import ClassTotals, draw_overlay
from .class_embeddings import text_encoder_sha256, weights_sha256
from .segmenter import unused_label


def label_map(segmentation: npt.NDArray[np.integer], num_classes: int) -> Image.Image:
    """The labels (height, width) as a grey image of 8 bits, or of 16 for more than 255 classes."""
    return Image.fromarray(segmentation.astype("uint8" if unused_label(num_classes) == 255 else "uint16"))


def write_label_map(path: Path, segmentation: npt.NDArray[np.integer], num_classes: int) -> None:
    """Write the labels as a PNG."""
    with atomic_path(path) as temporary:
        label_map(segmentation, num_classes).save(temporary, format="PNG")


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
        write_label_map(paths[0], segmentation, len(class_names))
        overlay = draw_overlay(image, segmentation, class_names, ignore_index=ignore_index)
        with atomic_path(paths[1]) as path:
            # JPEG, since PNG takes seconds on a photo; without chroma subsampling, which would blur contours.
            overlay.save(path, format="JPEG", quality=90, subsampling=0)
        write_file(paths[2], summary(source, segmentation.shape[::-1], totals, model_name))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a full disk, for one, stops all
            raise
        return f"not all results are written: {error}"
    if max(image.size) > max(overlay.size):
        return f"its overlay is made smaller: a JPEG file has at most {max(overlay.size)} pixels on a side"
    return None


# What use a model makes of its weights, and an image processor of images, beside their sizes.
NETWORK_SETTINGS = (
    "num_attention_heads", "class_attention_type", "inference_pooling_size", "layer_norm_eps", "group_norm_group_size",
)  # fmt: skip
IMAGE_SETTINGS = (
    "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_input_resize", "resample",
)  # fmt: skip


def model_settings(
    model: SEDForSemanticSegmentation, processor: SEDProcessor, model_name: str, topk: int | None
) -> dict[str, Any]:
    """What results depend on beside images and classes; `topk` is early rejection, or `None` for the model's own."""
    image_processor = processor.image_processor
    config, preparation = model.config.to_dict(), image_processor.to_dict()
    return {
        "model": model_name,
        "weights_sha256": weights_sha256(model),
        "text_encoder_sha256": text_encoder_sha256(model, processor),
        **{f"image_encoder.{name}": config["vision_config"][name] for name in ("architecture", "model_args")},
        **{f"network.{name}": config[name] for name in NETWORK_SETTINGS},
        **{f"image_processor.{name}": preparation.get(name) for name in IMAGE_SETTINGS},
        "dtype": str(model.dtype).removeprefix("torch."),
        "size": dict(image_processor.size) if image_processor.do_resize else None,
        "input_size": dict(image_processor.input_size),
        "early_rejection_topk": (model.config.early_rejection_topk if topk is None else topk) or None,
    }


def read_saved(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation has written to a JSON file, with its `settings`; nothing if there is none; refuse others."""
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_bytes())
        found = dict(saved["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not of an evaluation ({short_error(error)}): choose another folder") from error
    require_same_settings(found, settings, path)
    return saved


def require_same_settings(saved: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue from a file of other settings, which the error names."""
    current = json.loads(json.dumps(current))  # as the saved ones: lists in place of tuples
    differences = [
        f"{name} was {saved.get(name)!r:.80} and is {current.get(name)!r:.80}"
        for name in {**current, **saved}
        if saved.get(name) != current.get(name)
    ]
    if differences:
        raise ValueError(
            f"{path} is of other settings: {'; '.join(differences[:3])}."
            " Repeat them to continue, or choose another output folder"
        )
