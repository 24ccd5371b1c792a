"""Pictures on disk to overlays, label maps and summaries on disk.

torch and transformers are imported inside functions: the command line checks its arguments with the cheap ones first.
"""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..utils import atomic_path, require_file, short_error

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from .. import SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
    from ..sliding_window_sed import SlidingWindow

PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

NO_CLASS = -1  # of a pixel, before it gets the label that the file format has for it


VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv"}
)


@dataclass(frozen=True)
class Job:
    """One picture to segment, and the files to write for it."""

    picture: Path
    overlay: Path
    labels: Path
    summary: Path

    @property
    def results(self) -> tuple[Path, ...]:
        """All files that may be written."""
        return self.overlay, self.labels, self.summary


@dataclass(frozen=True)
class VideoJob:
    """One video to segment, and the files to write for it; the overlay has another name until it is complete."""

    video: Path
    overlay: Path
    partial_overlay: Path
    summary: Path

    @property
    def results(self) -> tuple[Path, ...]:
        """All files that may be written."""
        return self.overlay, self.partial_overlay, self.summary


class UnreadablePictureError(Exception):
    """A picture cannot be read; the message says why."""


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The pictures and videos that the INPUT arguments name, each once, in the order given.

    Of a folder these are the files directly in it whose name ends as a picture's or a video's does. A file that is
    named, or that a glob matches, is taken whatever its name.

    Raises:
        FileNotFoundError: There is no such file, nothing matches, or a folder holds no picture and no video.
    """
    files: dict[Path, Path] = {}
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            found = [entry for entry in path.iterdir() if is_taken_from_folder(entry.name) and entry.is_file()]
        elif path.is_file():
            found = [path]
        else:
            found = [match for match in map(Path, glob.glob(str(path), recursive=True)) if match.is_file()]
        if not found:
            reason = (
                "a folder without pictures and videos"
                if path.is_dir()
                else "no such file, and nothing matches it as a glob"
            )
            raise FileNotFoundError(
                f"{given}: expected a picture, a video, a folder of them, a glob or camera:N; it is {reason}"
            )
        for file in sorted(found):
            files.setdefault(file.resolve(), file)
    return list(files.values())


def is_taken_from_folder(name: str) -> bool:
    """Whether a file of this name in a folder is taken for a picture or a video."""
    # macOS leaves "._photo.jpg" beside "photo.jpg" on foreign disks.
    return (Path(name).suffix.lower() in PICTURE_SUFFIXES or is_video_name(name)) and not name.startswith(".")


def is_video_name(name: str) -> bool:
    """Whether a file of this name is taken for a video, rather than for a picture."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def plan_jobs(files: Sequence[Path], output: Path) -> list[Job | VideoJob]:
    """Name the results of each picture and video after it; of several files of one name, the later ones get a number.

    Raises:
        FileExistsError: `output` is a file, or an input would be overwritten by a result.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"--output {output}: expected a folder, but it is a file")
    jobs: list[Job | VideoJob] = []
    taken: set[str] = set()
    for file in files:
        stem, number = file.stem, 2
        while stem.lower() in taken:  # not all file systems tell upper from lower case
            stem, number = f"{file.stem}_{number}", number + 1
        taken.add(stem.lower())
        jobs.append(plan_job(file, output, stem))
    inputs = {file.resolve() for file in files}
    for job in jobs:
        for result in job.results:
            if result.resolve() in inputs:
                kind = "videos" if is_video_name(result.name) else "pictures"
                raise FileExistsError(f"--output {output}: {result} is one of the {kind} and would be overwritten")
    return jobs


def plan_job(file: Path, output: Path, stem: str) -> Job | VideoJob:
    """Name the results of one picture or video, which all begin with `stem`."""
    if is_video_name(file.name):
        return VideoJob(
            file, output / f"{stem}_overlay.mp4", output / f"{stem}_overlay.partial.mp4", output / f"{stem}.json"
        )
    return Job(file, output / f"{stem}_overlay.jpg", output / f"{stem}_labels.png", output / f"{stem}.json")


def unused_label(num_classes: int) -> int:
    """The label of pixels without a class: 255 if the label map has 8 bits, 65535 if it has 16.

    Raises:
        ValueError: There are more classes than 16 bits tell apart.
    """
    if num_classes > 65535:
        raise ValueError(f"expected at most 65535 classes, which is what a label map can hold, got {num_classes}")
    return 255 if num_classes <= 255 else 65535


def read_pictures(jobs: Sequence[Job], processor: SEDProcessor) -> dict[Job, Image.Image]:
    """Read the pictures that can be read, and name the others on standard error with the reason."""
    from tqdm import tqdm

    pictures = {}
    for job in jobs:
        try:
            pictures[job] = read_picture(job.picture, processor.image_processor)
        except UnreadablePictureError as error:
            tqdm.write(f"sed-hf: skipped {job.picture}: {error}", file=sys.stderr)
    return pictures


def read_picture(path: Path, image_processor: SEDImageProcessor) -> Image.Image:
    """Read a picture of any mode completely, as RGB and the right way up.

    Raises:
        UnreadablePictureError: The file is missing, no picture, damaged, or has more pixels than `max_image_pixels`.
    """
    from PIL import Image

    from ..image_files import open_image

    try:
        with open_image(require_file(path)) as image:
            pixels = image_processor.to_rgb(image)
    except Exception as error:  # on damaged files Pillow's decoders raise whatever happens to them
        raise UnreadablePictureError(short_error(error)) from error
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def segment_pictures(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    pictures: list[Image.Image],
    class_embeddings: torch.Tensor,
    *,
    topk: int | None = None,
    threshold: float | None = None,
    ignore_index: int | None = None,
    sliding_window: SlidingWindow | None = None,
    everything_else: int | None = None,
) -> list[dict[str, np.ndarray]]:
    """Segment RGB pictures of any sizes in one batch; or with a sliding window each on its own, in batches of tiles.

    Args:
        class_embeddings: (T, P, D).
        topk: Early rejection; `None` for the model's own setting.
        threshold: Pixels whose best probability is lower get `ignore_index`.
        sliding_window: How to cut large pictures into tiles.
        everything_else: Classes from this index on only compete with those before; together they are one class, of
            this index.

    Returns:
        For each picture `segmentation`, int64 (height, width), and `probability`, float32 (height, width).
    """
    import numpy as np
    import torch

    if not pictures:
        return []
    if sliding_window is not None:
        results = [
            segment_large_picture(model, processor, picture, class_embeddings, sliding_window, topk, threshold)
            for picture in pictures
        ]
    else:
        with torch.inference_mode():
            pixel_values = processor(images=pictures, return_tensors="pt")["pixel_values"]
            outputs = model(
                pixel_values=pixel_values.to(model.device, model.dtype),
                class_embeddings=class_embeddings,
                early_rejection_topk=topk,
            )
            maps = processor.post_process_semantic_segmentation(
                outputs,
                target_sizes=[(picture.height, picture.width) for picture in pictures],
                threshold=threshold,
                ignore_index=NO_CLASS,
                return_probabilities=True,
            )
        results = cast("list[dict[str, torch.Tensor]]", maps)  # return_probabilities makes them dicts
    arrays = [{name: tensor.cpu().numpy() for name, tensor in result.items()} for result in results]
    for array in arrays:
        segmentation = array["segmentation"]
        if everything_else is not None:
            np.minimum(segmentation, everything_else, out=segmentation)
        if ignore_index is not None:
            segmentation[segmentation == NO_CLASS] = ignore_index
    return arrays


def segment_large_picture(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    picture: Image.Image,
    class_embeddings: torch.Tensor,
    sliding_window: SlidingWindow,
    topk: int | None,
    threshold: float | None,
) -> dict[str, torch.Tensor]:
    """Segment one RGB picture in tiles, with a progress bar."""
    import numpy as np
    import torch

    from ..sliding_window_sed import segment_with_sliding_window

    return segment_with_sliding_window(
        model,
        processor,
        torch.from_numpy(np.array(picture)).permute(2, 0, 1),
        class_embeddings,
        sliding_window,
        early_rejection_topk=topk,
        threshold=threshold,
        ignore_index=NO_CLASS,
        show_progress=True,
    )


def write_results(
    job: Job,
    picture: Image.Image,
    result: dict[str, np.ndarray],
    class_names: list[str],
    ignore_index: int | None,
    model_name: str,
) -> None:
    """Write overlay, label map and summary; the summary last, so that where it exists, all three are complete."""
    from ..visualization import draw_overlay

    overlay = draw_overlay(picture, result["segmentation"], class_names, ignore_index=ignore_index)
    labels = label_map(result["segmentation"], len(class_names))
    file_name = os.fsencode(job.picture).decode(errors="replace")
    # The files get their names when all are written, the last one first.
    with (
        atomic_path(job.summary) as summary_path,
        atomic_path(job.labels) as labels_path,
        atomic_path(job.overlay) as overlay_path,
    ):
        # JPEG, since PNG takes seconds on a photo; without chroma subsampling, which would blur contours and legend.
        overlay.save(overlay_path, format="JPEG", quality=90, subsampling=0)
        labels.save(labels_path, format="PNG")
        text = summary(file_name, result, class_names, ignore_index, model_name)
        summary_path.write_text(text, encoding="utf-8")
        job.summary.unlink(missing_ok=True)  # of an earlier run, whose files are replaced now


def label_map(segmentation: np.ndarray, num_classes: int) -> Image.Image:
    """The labels (height, width) as a grey picture of 8 bits, or of 16 for more than 255 classes."""
    from PIL import Image

    return Image.fromarray(segmentation.astype("uint8" if unused_label(num_classes) == 255 else "uint16"))


def summary(
    file_name: str,
    result: dict[str, np.ndarray],
    class_names: Sequence[str],
    ignore_index: int | None,
    model_name: str,
) -> str:
    """The classes of a picture, their shares and mean probabilities, as JSON."""
    from ..visualization import class_statistics

    segmentation = result["segmentation"]
    statistics = class_statistics(
        segmentation, class_names, probability=result["probability"], ignore_index=ignore_index
    )
    height, width = segmentation.shape
    content = {
        "file": file_name,
        "width": width,
        "height": height,
        "model": model_name,
        "classes": [rounded(asdict(entry)) for entry in statistics],
        "ignored_pixels": 0 if ignore_index is None else int((segmentation == ignore_index).sum()),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with numbers rounded to six decimals: a millionth of a picture is about a pixel."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
