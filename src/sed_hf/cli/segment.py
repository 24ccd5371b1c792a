"""`sed-hf segment`: label every pixel of images and videos."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..argument_types import positive_integer, probability, whole_number
from ..terminal import printable, progress_bar, say
from .arguments import (
    add_class_arguments,
    add_command,
    add_model_arguments,
    add_output_argument,
    check_folder,
    choose_model,
    load_model_and_classes,
    read_class_names,
)
from .inputs import Job, find_files, plan_jobs

if TYPE_CHECKING:
    from PIL import Image

    from ..inference.segmenter import Segmenter
    from ..sliding_window_sed import SlidingWindow

EPILOG = """\
examples:
  sed-hf segment photo.jpg --model sed-base --classes sky grass "dog, puppy"
  sed-hf segment holiday/ 'more/**/*.png' --model sed-base --vocabulary ade20k_150 --topk 8
  sed-hf segment photo.jpg --model sed-base --vocabulary my-classes.txt --threshold 0.3
  sed-hf segment clip.mp4 --model sed-base --classes sky road car --batch-size 8

for photo.jpg it writes photo_overlay.jpg (for people), photo_labels.png (the class
index of each pixel) and photo.json (classes, their shares and probabilities); for
clip.mp4 clip_overlay.mp4, with the sound, and clip.json.

exit status: 0 all written, 1 some inputs could not be read or not be written as they
should, 2 refused or failed.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "segment",
        run,
        # argparse would put INPUT last, where --classes would swallow it.
        usage="%(prog)s INPUT [INPUT ...] (--classes NAME [NAME ...] | --vocabulary NAME_OR_FILE) [options]",
        help="label every pixel of images and videos with classes of your choice",
        description="Label every pixel of images or videos with one of the classes that you name.",
        epilog=EPILOG,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, video, folder of them, or quoted glob")
    add_model_arguments(parser)
    add_class_arguments(parser)
    parser.add_argument(
        "--everything-else",
        nargs="?",
        const="coco_stuff_171",
        metavar="NAME_OR_FILE",
        help="add a class for what is none of yours: all names of another vocabulary compete with yours, and together"
        " they are 'everything else' (default vocabulary: %(const)s)",
    )
    parser.add_argument(
        "--topk",
        type=whole_number,
        metavar="K",
        help="early rejection: drop classes that are nowhere among the K best, much faster with many classes;"
        " SED-fast is 8, 0 drops none (default: the model's own setting)",
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        metavar="P",
        help="leave pixels without a class where the best probability is below P (default: every pixel gets a class)",
    )
    parser.add_argument(
        "--sliding-window",
        type=positive_integer,
        metavar="PIXELS",
        help="cut large images into overlapping tiles of this edge, each seen at full detail; the model's own input"
        " size is a good one",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="least share of a tile that its neighbour covers too, from 0 to 0.75 (default: 0.25)",
    )
    parser.add_argument(
        "--global-view", action="store_true", help="average the tiles with the whole image seen at once"
    )
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        default=1,
        metavar="N",
        help="images, or frames of a video, at a time (default: %(default)s)",
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Segment images and videos; exit status 1 if one could not be read, or not be written as it should."""
    check_folder("--output", arguments.output)
    jobs = plan_jobs(find_files(arguments.inputs), arguments.output)
    images = [job for job in jobs if not job.is_video]
    videos = readable_videos([job for job in jobs if job.is_video])
    if not images and not videos:
        raise ValueError("none of the videos can be read")
    class_names = read_class_names(arguments)
    sliding_window = choose_sliding_window(arguments)
    model_source = choose_model(arguments.model)
    segmenter = load_segmenter(arguments, model_source, class_names, sliding_window)

    arguments.output.mkdir(parents=True, exist_ok=True)
    num_written = write_images(images, segmenter, model_source, arguments.batch_size)
    num_written += write_videos(videos, segmenter, model_source, arguments.batch_size)
    noun = "images and videos" if images and len(images) < len(jobs) else "images" if images else "videos"
    print(f"sed-hf: {num_written} of {len(jobs)} {noun} written to {printable(arguments.output)}")
    return 0 if num_written == len(jobs) else 1


# Options --------------------------------------------------------------------------------------------------------------


def choose_sliding_window(arguments: argparse.Namespace) -> SlidingWindow | None:
    """How to cut large images, if at all."""
    if arguments.sliding_window is None:
        for name in ("global_view", "overlap"):
            if getattr(arguments, name) not in (None, False):
                raise ValueError(f"--{name.replace('_', '-')}: expected only with --sliding-window PIXELS")
        return None

    from ..sliding_window_sed import SlidingWindow

    overlap = {} if arguments.overlap is None else {"overlap": arguments.overlap}
    return SlidingWindow(arguments.sliding_window, **overlap, global_view=arguments.global_view)


def load_segmenter(
    arguments: argparse.Namespace, model_source: str, class_names: list[str], sliding_window: SlidingWindow | None
) -> Segmenter:
    """Load the model and encode the classes."""
    from ..inference.segmenter import EVERYTHING_ELSE, Segmenter
    from ..inference.writers import unused_label

    others = []
    if arguments.everything_else is not None:
        from ..data.distractors import distractors

        if EVERYTHING_ELSE in class_names:
            raise ValueError(f"--everything-else adds a class of the name {EVERYTHING_ELSE!r}, which is one of yours")
        others = distractors(class_names, [arguments.everything_else])
    unused_label(len(class_names) + bool(others))  # refuses what no label map can hold
    model, processor, class_names, class_embeddings = load_model_and_classes(arguments, model_source, class_names)
    return Segmenter(
        model,
        processor,
        class_names,
        class_embeddings,
        topk=arguments.topk,
        threshold=arguments.threshold,
        sliding_window=sliding_window,
        everything_else=others,
    )


# Images ---------------------------------------------------------------------------------------------------------------


def write_images(jobs: Sequence[Job], segmenter: Segmenter, model_source: str, batch_size: int) -> int:
    """Segment images in batches, and return how many are written as they should be.

    Raises:
        NonFiniteLogitsError: The model gives values that are not numbers for an image.
    """
    from ..image_processing_sed import NonFiniteLogitsError

    num_written = 0
    with progress_bar(total=len(jobs), desc="Segmenting", unit="image", disable=len(jobs) < 2) as progress:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            images = read_images(batch)
            try:
                results = segmenter(list(images.values()), show_progress=sys.stderr.isatty())
            except NonFiniteLogitsError as error:
                raise NonFiniteLogitsError(error.index, str(list(images)[error.index].source)) from error
            for (job, image), result in zip(images.items(), results, strict=True):
                num_written += write_image(job, image, result, segmenter, model_source)
            progress.update(len(batch))
    return num_written


def read_images(jobs: Sequence[Job]) -> dict[Job, Image.Image]:
    """Read the images that can be read, and name the others on standard error with the reason."""
    from ..image_processing_sed import read_rgb

    images = {}
    for job in jobs:
        try:
            images[job] = read_rgb(job.source)
        except (OSError, ValueError) as error:
            say(f"skipped {error}")
    return images


def write_image(job: Job, image: Image.Image, result: dict, segmenter: Segmenter, model_source: str) -> bool:
    """Write the results of an image, and return whether they are all as they should be; if not, say why."""
    from ..inference.writers import write_results

    try:
        note = write_results(
            job.results, job.source, image, result, segmenter.class_names, segmenter.ignore_index, model_source
        )
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a full disk, for one, stops all
            raise
        note = f"not all results are written: {error}"
    if note:
        say(f"{job.source}: {note}")
    return note is None


# Videos ---------------------------------------------------------------------------------------------------------------


def readable_videos(jobs: Sequence[Job]) -> list[Job]:
    """The videos that can be read; the others are named on standard error with the reason.

    Raises:
        ValueError: There are videos, but PyAV is not installed.
    """
    if not jobs:
        return []
    check_video_extra(jobs[0].source)

    from ..inference.video import UnreadableVideoError, check_video

    readable = []
    for job in jobs:
        try:
            check_video(job.source)
            readable.append(job)
        except (OSError, UnreadableVideoError) as error:
            say(f"skipped {job.source}: {error}")
    return readable


def write_videos(jobs: Sequence[Job], segmenter: Segmenter, model_source: str, batch_size: int) -> int:
    """Segment videos in batches of frames, and return how many are written completely."""
    if not jobs:
        return 0

    from ..image_processing_sed import NonFiniteLogitsError
    from ..inference.video import UnreadableVideoError, segment_video

    num_written = 0
    for job in jobs:
        overlay, summary = job.results
        try:
            segment_video(job.source, overlay, summary, segmenter, model_name=model_source, batch_size=batch_size)
            num_written += 1
        except UnreadableVideoError as error:  # damaged in the middle
            say(f"stopped {job.source}: {error}")
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(error.index, str(job.source)) from error
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            say(f"skipped {job.source}: {error}")
    return num_written


def check_video_extra(given: object) -> None:
    """Refuse videos where PyAV is not installed.

    Raises:
        ValueError: It is not.
    """
    if find_spec("av") is None:
        raise ValueError(f"{given}: videos need PyAV: pip install '.[video]' in the clone of sed-hf")
