"""Label every pixel of images and videos with classes of your choice.

Examples:
  sed-hf segment photo.jpg --model sed-b --classes sky grass "dog, puppy"
  sed-hf segment holiday/ 'more/**/*.png' --model sed-b --vocabulary ade20k_150 --topk 8
  sed-hf segment photo.jpg --model sed-b --vocabulary my-classes.txt --threshold 0.3
  sed-hf segment clip.mp4 --model sed-b --classes sky road car --batch-size 8

for photo.jpg it writes photo_overlay.jpg (for people), photo_labels.png (the class
index of each pixel) and photo.json (classes, their shares and probabilities); for
clip.mp4 clip_overlay.mp4, with the sound, and clip.json.

Exit status: 0 all written, 1 some inputs could not be read or not be written as they
should, 2 refused or failed.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..terminal import number, positive_integer, printable, progress_bar, say, whole_number
from .arguments import CLASSES, DEVICE, MODEL, OUTPUT, argument, load_model_and_embeddings, read_class_names
from .inputs import Job, find_files, plan_jobs

if TYPE_CHECKING:
    from ..inference.segmenter import Segmenter

ARGUMENTS = [
    argument("inputs", nargs="+", metavar="INPUT", help="image, video, folder of them, or quoted glob"),
    *(*CLASSES, MODEL, *DEVICE),
    argument(
        "--everything-else",
        nargs="?",
        const="coco_stuff_171",
        metavar="NAME_OR_FILE",
        help="add a class for what is none of yours: the names of another vocabulary (%(const)s) compete with yours",
    ),
    argument("--topk", type=whole_number, metavar="K", help="early rejection; 8 is SED-fast, 0 rejects no class"),
    argument("--threshold", type=number(float, 0, 1), metavar="P", help="no class where the best probability is lower"),
    argument("--sliding-window", type=positive_integer, metavar="PIXELS", help="cut large images into tiles"),
    argument("--overlap", type=float, metavar="SHARE", help="of a tile that its neighbour covers too (default: 0.25)"),
    argument("--global-view", action="store_true", help="average the tiles with the whole image seen at once"),
    argument("--batch-size", type=positive_integer, default=1, metavar="N", help="images or frames at a time"),
    OUTPUT,
]


def run(arguments: argparse.Namespace) -> int:
    """Segment images and videos; exit status 1 if one could not be read, or not be written as it should."""
    jobs = plan_jobs(find_files(arguments.inputs), arguments.output)
    images = [job for job in jobs if not job.is_video]
    videos = [job for job in jobs if job.is_video]
    if videos and find_spec("av") is None:
        raise ValueError(f"{videos[0].source}: videos need PyAV: pip install '.[video]' in the clone of sed-hf")
    segmenter = load_segmenter(arguments)
    num_written = write_images(images, segmenter, arguments.batch_size)
    num_written += write_videos(videos, segmenter, arguments.batch_size)
    noun = "images and videos" if images and videos else "images" if images else "videos"
    print(f"sed-hf: {num_written} of {len(jobs)} {noun} written to {printable(arguments.output)}")
    return 0 if num_written == len(jobs) else 1


def load_segmenter(arguments: argparse.Namespace) -> Segmenter:
    """Check the arguments, make the folder of the results, load the model and encode the classes."""
    class_names = read_class_names(arguments)

    from ..inference.class_embeddings import ClassEmbeddingCache, encode_classes
    from ..inference.segmenter import Segmenter, competing_names, unused_label
    from ..sliding_window_sed import SlidingWindow

    window, tile_size, overlap = None, arguments.sliding_window, arguments.overlap
    if tile_size is not None:
        window = SlidingWindow(tile_size, 0.25 if overlap is None else overlap, arguments.global_view)
    elif overlap is not None or arguments.global_view:
        raise ValueError("--overlap and --global-view: expected only with --sliding-window PIXELS")
    others = competing_names(class_names, arguments.everything_else)
    unused_label(len(class_names) + bool(others))  # refuses what no label map can hold
    arguments.output.mkdir(parents=True, exist_ok=True)
    model, processor, embeddings, encoder = load_model_and_embeddings(arguments, class_names)
    cache = ClassEmbeddingCache()
    everything_else = encode_classes(model, processor, others, cache, encoder=encoder) if others else None
    topk, threshold = arguments.topk, arguments.threshold
    return Segmenter(model, processor, class_names, embeddings, topk, threshold, window, everything_else)


def write_images(jobs: Sequence[Job], segmenter: Segmenter, batch_size: int) -> int:
    """Segment images in batches, and return how many are written as they should be; of the others it says why not."""
    from ..image_processing_sed import NonFiniteLogitsError, read_rgb
    from ..inference.writers import write_results

    num_written, model_name = 0, segmenter.model.name_or_path
    starts = range(0, len(jobs), batch_size)
    for start in progress_bar(starts, desc="Segmenting", unit="batch", disable=len(jobs) < 2):
        images = {}
        for job in jobs[start : start + batch_size]:
            try:
                images[job] = read_rgb(job.source)
            except (OSError, ValueError) as error:
                say(f"skipped {error}")
        try:
            results = segmenter(list(images.values()), show_progress=sys.stderr.isatty())
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(error.index, str(list(images)[error.index].source)) from error
        for (job, image), result in zip(images.items(), results, strict=True):
            names, ignore_index = segmenter.class_names, segmenter.ignore_index
            note = write_results(job.results, job.source, image, result, names, ignore_index, model_name)
            num_written += note is None
            if note:
                say(f"{job.source}: {note}")
    return num_written


def write_videos(jobs: Sequence[Job], segmenter: Segmenter, batch_size: int) -> int:
    """Segment videos in batches of frames, and return how many are written completely; of the others it says why."""
    num_written = 0
    for job in jobs:
        from ..inference.video import UnreadableVideoError, segment_video

        overlay, summary = job.results
        try:
            segment_video(job.source, overlay, summary, segmenter, batch_size)
            num_written += 1
        except UnreadableVideoError as error:
            say(f"{job.source}: {error}")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # a full disk, for one, stops all
                raise
            say(f"{job.source}: {error}")
    return num_written
