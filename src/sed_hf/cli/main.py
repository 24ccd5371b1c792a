"""The `sed-hf` command: segment pictures and videos, encode vocabularies, convert checkpoints, export, demo.

torch and transformers take seconds to import. Everything that needs them is imported inside functions, so that help
and refused arguments are immediate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.vocabularies import load_vocabulary, vocabulary_names
from ..hub.load import TOY_MODEL, check_model_source
from ..inference.segmenter import (
    Job,
    UnreadablePictureError,
    VideoJob,
    find_files,
    plan_jobs,
    read_picture,
    read_pictures,
    segment_pictures,
    unused_label,
    write_results,
)
from ..utils import atomic_path, run_command, short_error

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from .. import SEDConfig, SEDForSemanticSegmentation, SEDProcessor
    from ..sliding_window_sed import SlidingWindow

EVERYTHING_ELSE = "everything else"
LIBAVFORMAT_OF_FFMPEG_8_1 = (62, 12)

SEGMENT_EPILOG = """\
examples:
  sed-hf segment photo.jpg --model sed-base --classes sky grass "dog, puppy"
  sed-hf segment holiday/ 'more/**/*.png' --model sed-base --vocabulary ade20k_150 --topk 8
  sed-hf segment photo.jpg --model sed-base --vocabulary my-classes.txt --threshold 0.3
  sed-hf segment clip.mp4 --model sed-base --classes sky road car --batch-size 8
  sed-hf segment camera:0 --model sed-base --classes person wall floor

for photo.jpg it writes photo_overlay.jpg (for people), photo_labels.png (the class
index of each pixel) and photo.json (classes, their shares and probabilities); for
clip.mp4 clip_overlay.mp4, with the sound, and clip.json. A camera opens a live window.

exit status: 0 all written, 1 some inputs could not be read, 2 refused or failed.
"""
CONVERT_EPILOG = """\
examples:
  sed-hf convert model_final.pth sed-base
  sed-hf segment photo.jpg --model sed-base --classes sky grass dog
"""
INIT_EPILOG = """\
examples:
  sed-hf init convnext_base_w_320 sed-base-start --pretrained laion_aesthetic_s13b_b82k
  sed-hf init convnext_large_d_320 sed-large-start --pretrained laion2b_s29b_b131k_ft_soup
"""
EXPLAIN_EPILOG = """\
example:
  sed-hf explain photo.jpg --model sed-base --classes sky grass "dog, puppy"

for photo.jpg it writes photo_explain.png and photo_explain.json.
"""
ENCODE_EPILOG = """\
example:
  sed-hf encode ade20k.safetensors --model sed-base --vocabulary ade20k_847
  sed-hf segment photo.jpg --model sed-base --vocabulary ade20k.safetensors
"""
EXPORT_EPILOG = """\
examples:
  sed-hf export sed-base-onnx --model sed-base --vocabulary ade20k_150
  sed-hf export sed-base-torch --model sed-base --format torch

for ONNX it writes segmentation.onnx (pictures and class embeddings to logits),
text_encoder.onnx (prompts to embeddings), tokenizer.json, settings.json and, with
class names, classes.npz (their embeddings).
"""
PUSH_EPILOG = """\
example:
  sed-hf push sed-base YOU/sed-base --private
"""
DEMO_EPILOG = """\
examples:
  sed-hf demo
  sed-hf demo --model sed-base --port 8000
  sed-hf demo --model sed-base --host 0.0.0.0
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process, and return its exit status.

    Raises:
        SystemExit: Arguments are wrong, or the command was interrupted.
    """
    arguments = build_parser().parse_args(argv)
    return run_command("sed-hf", lambda: arguments.run(arguments))


# Arguments -----------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; the parsed arguments hold the command's function as `run`."""
    parser = argparse.ArgumentParser(
        prog="sed-hf", description="Open-vocabulary semantic segmentation with SED (CVPR 2024)."
    )
    parser.add_argument("--version", action="version", version=f"sed-hf {version('sed-hf')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_segment_command(commands)
    add_explain_command(commands)
    add_encode_command(commands)
    add_cache_command(commands)
    add_convert_command(commands)
    add_init_command(commands)
    add_export_command(commands)
    add_push_command(commands)
    add_demo_command(commands)
    return parser


def add_segment_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "segment",
        # argparse would put INPUT last, where --classes would swallow it.
        usage="%(prog)s INPUT [INPUT ...] (--classes NAME [NAME ...] | --vocabulary NAME_OR_FILE) [options]",
        help="label every pixel of pictures and videos with classes of your choice",
        description="Label every pixel of pictures, videos or a camera with one of the classes that you name.",
        epilog=SEGMENT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="picture, video, folder of them, or quoted glob; or camera:N alone, counted from 0, for a live window",
    )
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
        help="cut large pictures into overlapping tiles of this edge, each seen at full detail; the model's own input"
        " size is a good one",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="least share of a tile that its neighbour covers too, from 0 to 0.75 (default: 0.25)",
    )
    parser.add_argument(
        "--global-view", action="store_true", help="average the tiles with the whole picture seen at once"
    )
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        default=1,
        metavar="N",
        help="pictures, or frames of a video, at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    parser.set_defaults(run=run_segment)


def add_explain_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "explain",
        usage="%(prog)s PICTURE (--classes NAME [NAME ...] | --vocabulary NAME_OR_FILE) [options]",
        help="draw what the model sees of each class, to debug class names",
        description="Draw what the model sees of each class in a picture: the cost map, the heads before each stage and"
        " after the last, and where early rejection drops a class.",
        epilog=EXPLAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="picture")
    add_model_arguments(parser)
    add_class_arguments(parser)
    parser.add_argument(
        "--topk",
        type=positive_integer,
        default=8,
        metavar="K",
        help="the K of the early rejection to report on (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=positive_integer, default=12, metavar="N", help="classes to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    parser.set_defaults(run=run_explain)


def add_encode_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "encode",
        usage="%(prog)s OUT (--classes NAME [NAME ...] | --vocabulary NAME_OR_FILE) [options]",
        help="encode class names to a file that segment takes as --vocabulary",
        description="Encode class names once, to a file that `sed-hf segment --vocabulary` and other machines take.",
        epilog=ENCODE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write; its name ends in .safetensors")
    add_model_arguments(parser)
    add_class_arguments(parser)
    parser.set_defaults(run=run_encode)


def add_cache_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "cache",
        help="show or clear the cache of encoded class names",
        description="Show where encoded class names are cached, and how much that is.",
    )
    parser.add_argument("--clear", action="store_true", help="remove them")
    parser.set_defaults(run=run_cache)


def add_convert_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert an official checkpoint to a model folder",
        description="Convert an official SED checkpoint to a model folder for --model, from_pretrained or the Hub.",
        epilog=CONVERT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="official .pth, .pkl or .safetensors; no code is run"
    )
    add_out_arguments(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="JSON",
        help="config.json of the model (default: SED-B or SED-L, whichever fits the checkpoint)",
    )
    parser.add_argument(
        "--ignore-extra", action="store_true", help="drop tensors that the model has no place for (default: refuse)"
    )
    parser.set_defaults(run=run_convert)


def add_init_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "init",
        help="start a new model from CLIP weights of open_clip",
        description="Write a model folder to train from: the towers of an open_clip ConvNeXt and a fresh decoder.",
        epilog=INIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "variant",
        metavar="VARIANT",
        help="ConvNeXt model of open_clip; convnext_base_w_320 makes SED-B, convnext_large_d_320 SED-L",
    )
    add_out_arguments(parser)
    parser.add_argument(
        "--pretrained", metavar="TAG", help="weights in open_clip, or a file (default: random weights, no download)"
    )
    parser.set_defaults(run=run_init)


def add_export_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        usage="%(prog)s OUT [--classes NAME [NAME ...] | --vocabulary NAME_OR_FILE] [options]",
        help="write programs that run without this package: ONNX, or torch.export",
        description="Write a model as programs that run without this package: ONNX files for onnxruntime, or programs"
        " of torch.export.",
        epilog=EXPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must be new or empty")
    add_model_argument(parser)
    add_class_arguments(parser, required=False)
    parser.add_argument(
        "--format",
        choices=["onnx", "torch"],
        default="onnx",
        help="onnx for onnxruntime, torch for torch.export.load (default: %(default)s)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="hold the weights of matrix products in 8 bits, for smaller ONNX files on CPUs",
    )
    parser.set_defaults(run=run_export)


def add_push_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "push",
        help="upload a model folder to the Hugging Face Hub",
        description="Upload a model folder, code and model card included, to the Hugging Face Hub. Log in first, with"
        " `hf auth login`.",
        epilog=PUSH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="model folder")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="model repository; made if it is missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.set_defaults(run=run_push)


def add_out_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a model folder")


def add_demo_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="open a demo in the browser",
        description="Open a demo in the browser: upload a picture, type class names, see the result.",
        epilog=DEMO_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help="address to listen at; 0.0.0.0 lets other computers in (default: 127.0.0.1, this computer alone)",
    )
    parser.add_argument("--port", type=port_number, metavar="N", help="port (default: the first free from 7860)")
    parser.add_argument("--root-path", metavar="PATH", help="path under which a reverse proxy shows the demo")
    parser.add_argument("--share", action="store_true", help="also make a public link through gradio's servers")
    parser.set_defaults(run=run_demo)


def add_class_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    classes = parser.add_mutually_exclusive_group(required=required)
    classes.add_argument(
        "--classes", nargs="+", metavar="NAME", help='class names, one argument each; "dog, puppy" are synonyms'
    )
    classes.add_argument(
        "--vocabulary",
        metavar="NAME_OR_FILE",
        help=f"built-in vocabulary ({', '.join(vocabulary_names())}), text file with one class a line, JSON list, or"
        " .safetensors file of sed-hf encode",
    )


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="M",
        help="model folder, or OWNER/NAME on the Hugging Face Hub (default: the model in the box, which knows generated"
        " scenes alone)",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="where to run; auto takes a GPU if there is one (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="numbers to compute with; the 16-bit ones are faster on a GPU (default: %(default)s)",
    )


def whole_number(text: str) -> int:
    """An argument that is a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def positive_integer(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def port_number(text: str) -> int:
    """An argument that is the number of a TCP port."""
    number = positive_integer(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got {text!r}")
    return number


def probability(text: str) -> float:
    """An argument that is a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a probability from 0 to 1, got {text!r}")
    return value


# sed-hf segment ------------------------------------------------------------------------------------------------------


def run_segment(arguments: argparse.Namespace) -> int:
    """Segment pictures and videos, or a camera; exit status 1 if an input could not be read."""
    check_folder("--output", arguments.output)
    jobs = plan_jobs(find_files(arguments.inputs), arguments.output)
    pictures = [job for job in jobs if isinstance(job, Job)]
    videos = readable_videos([job for job in jobs if isinstance(job, VideoJob)])
    if not pictures and not videos:
        raise ValueError("none of the videos can be read")
    segmenter = prepare_segmenter(arguments)

    arguments.output.mkdir(parents=True, exist_ok=True)
    num_written = write_pictures(pictures, segmenter, arguments.batch_size) if pictures else 0
    num_written += write_videos(videos, segmenter, arguments.batch_size)

    noun = "pictures and videos" if pictures and len(pictures) < len(jobs) else "pictures" if pictures else "videos"
    print(f"sed-hf: {num_written} of {len(jobs)} {noun} written to {arguments.output}")
    return 0 if num_written == len(jobs) else 1


@dataclass(frozen=True)
class Segmenter:
    """What segments and names the results, as the arguments ask for it.

    Attributes:
        segment: `segment_pictures` of the model with the classes and options; it takes a list of RGB pictures.
        processor: Of the model.
        class_names: The T class names.
        ignore_index: Label of pixels that have no class; `None`: all have one.
        model_source: The model, for the summary.
    """

    segment: Callable[[list[Image.Image]], list[dict[str, np.ndarray]]]
    processor: SEDProcessor
    class_names: list[str]
    ignore_index: int | None
    model_source: str


def prepare_segmenter(arguments: argparse.Namespace) -> Segmenter:
    """Check the arguments, then load the model and encode the classes."""
    class_names = read_class_names(arguments)
    competing_names = read_competing_names(arguments, class_names)
    no_class_label = unused_label(len(class_names) + bool(competing_names))
    ignore_index = None if arguments.threshold is None else no_class_label
    model_source = choose_model(arguments.model)
    sliding_window = choose_sliding_window(arguments)
    model, processor, class_names, class_embeddings = load_model_and_classes(arguments, model_source, class_names)
    everything_else = None
    if competing_names:
        class_embeddings = append_classes(model, processor, class_embeddings, competing_names)
        everything_else = len(class_names)
        class_names = [*class_names, EVERYTHING_ELSE]
    segment = partial(
        segment_pictures,
        model,
        processor,
        class_embeddings=class_embeddings,
        topk=arguments.topk,
        threshold=arguments.threshold,
        ignore_index=ignore_index,
        sliding_window=sliding_window,
        everything_else=everything_else,
    )
    return Segmenter(segment, processor, class_names, ignore_index, model_source)


def write_pictures(jobs: Sequence[Job], segmenter: Segmenter, batch_size: int) -> int:
    """Segment pictures in batches, and return how many could be read and are written."""
    from tqdm import tqdm

    num_written = 0
    with tqdm(total=len(jobs), desc="Segmenting", unit="picture", disable=len(jobs) == 1) as progress:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            pictures = read_pictures(batch, segmenter.processor)
            results = segmenter.segment(list(pictures.values()))
            for (job, picture), result in zip(pictures.items(), results, strict=True):
                write_results(
                    job, picture, result, segmenter.class_names, segmenter.ignore_index, segmenter.model_source
                )
            num_written += len(pictures)
            progress.update(len(batch))
    return num_written


def readable_videos(jobs: Sequence[VideoJob]) -> list[VideoJob]:
    """The videos that can be read; the others are named on standard error with the reason.

    Raises:
        ValueError: There are videos, but PyAV is not installed.
    """
    if not jobs:
        return []
    check_video_extra(jobs[0].video)

    from ..inference.video import UnreadableVideoError, check_video

    readable = []
    for job in jobs:
        try:
            check_video(job.video)
            readable.append(job)
        except UnreadableVideoError as error:
            print(f"sed-hf: skipped {job.video}: {error}", file=sys.stderr)
    return readable


def write_videos(jobs: Sequence[VideoJob], segmenter: Segmenter, batch_size: int) -> int:
    """Segment videos in batches of frames, and return how many are written completely."""
    if not jobs:
        return 0

    from ..inference.video import UnreadableVideoError, segment_video

    num_written = 0
    for job in jobs:
        try:
            segment_video(
                job,
                segmenter.segment,
                segmenter.class_names,
                model_name=segmenter.model_source,
                ignore_index=segmenter.ignore_index,
                batch_size=batch_size,
            )
            num_written += 1
        except UnreadableVideoError as error:  # damaged in the middle
            print(f"sed-hf: stopped {job.video}: {error}", file=sys.stderr)
    return num_written


def check_video_extra(given: object) -> None:
    """Refuse videos and cameras where PyAV is not installed, or too old."""
    if find_spec("av") is None:
        raise ValueError(f"{given}: videos and cameras need PyAV: pip install '.[video]' in the clone of sed-hf")

    import av

    # Older ones finish an MP4 file that was written in fragments with its frames in the wrong places.
    if av.library_versions["libavformat"] < LIBAVFORMAT_OF_FFMPEG_8_1:
        raise ValueError(
            f"{given}: videos and cameras need PyAV with FFmpeg 8.1 or later, got PyAV {av.__version__} with an older"
            " one: pip install '.[video]' in the clone of sed-hf"
        )


def run_explain(arguments: argparse.Namespace) -> int:
    """Explain one picture."""
    if not arguments.picture.is_file():
        raise FileNotFoundError(f"{arguments.picture}: expected a picture; there is no such file")
    check_folder("--output", arguments.output)
    class_names = read_class_names(arguments)
    model_source = choose_model(arguments.model)

    from .. import SEDImageProcessor
    from ..inference.explain import explain_picture
    from ..inference.explain_figure import draw_explanation, summarize

    try:
        picture = read_picture(arguments.picture, SEDImageProcessor())
    except UnreadablePictureError as error:
        raise ValueError(f"{arguments.picture}: expected a picture: {error}") from error
    model, processor, class_names, class_embeddings = load_model_and_classes(arguments, model_source, class_names)
    explanation = explain_picture(model, processor, picture, class_embeddings, arguments.topk)

    arguments.output.mkdir(parents=True, exist_ok=True)
    figure, summary = (arguments.output / f"{arguments.picture.stem}_explain{suffix}" for suffix in (".png", ".json"))
    with atomic_path(figure) as path:
        draw_explanation(picture, explanation, class_names, arguments.topk, arguments.rows).save(path, format="PNG")
    with atomic_path(summary) as path:
        content = summarize(explanation, class_names, arguments.topk)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"sed-hf: {figure} and {summary.name} written")
    return 0


def check_folder(argument: str, folder: Path) -> None:
    """Refuse what is no folder and cannot become one.

    Raises:
        FileExistsError: It is a file, or lies below one.
    """
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                what = "it" if path == folder else path
                raise FileExistsError(f"{argument} {folder}: expected a folder, but {what} is a file")
            return


def choose_sliding_window(arguments: argparse.Namespace) -> SlidingWindow | None:
    """How to cut large pictures, if at all."""
    if arguments.sliding_window is None:
        for name in ("global_view", "overlap"):
            if getattr(arguments, name) not in (None, False):
                raise ValueError(f"--{name.replace('_', '-')}: expected only with --sliding-window PIXELS")
        return None

    from ..sliding_window_sed import SlidingWindow

    overlap = {} if arguments.overlap is None else {"overlap": arguments.overlap}
    return SlidingWindow(arguments.sliding_window, **overlap, global_view=arguments.global_view)


# sed-hf encode, sed-hf cache -----------------------------------------------------------------------------------------


def run_encode(arguments: argparse.Namespace) -> int:
    """Encode class names to a file."""
    out = arguments.out
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"OUT {out}: expected a file whose name ends in .safetensors")
    class_names = read_class_names(arguments)
    model_source = choose_model(arguments.model)

    from ..inference.class_embeddings import save_class_embeddings, text_encoder_sha256

    model, processor, class_names, embeddings = load_model_and_classes(arguments, model_source, class_names)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_class_embeddings(out, class_names, embeddings, text_encoder_sha256(model, processor))
    print(f"sed-hf: {len(class_names)} classes written to {out}")
    return 0


def run_cache(arguments: argparse.Namespace) -> int:
    """Show or clear the cache."""
    from ..inference.class_embeddings import ClassEmbeddingCache

    cache = ClassEmbeddingCache()
    num_classes, num_bytes = cache.size()
    if arguments.clear:
        cache.clear()
    state = "removed from" if arguments.clear else "in"
    print(f"sed-hf: {num_classes} classes, {num_bytes / 2**20:.0f} MiB {state} {cache.directory}")
    return 0


def read_class_names(arguments: argparse.Namespace) -> list[str]:
    """The names that are asked for, with the vocabulary file read but nothing encoded."""
    if not arguments.vocabulary:
        return arguments.classes
    if is_encoded_vocabulary(arguments.vocabulary):
        if not Path(arguments.vocabulary).is_file():
            raise FileNotFoundError(f"--vocabulary {arguments.vocabulary}: no such file")

        from ..inference.class_embeddings import load_class_embeddings

        return load_class_embeddings(arguments.vocabulary)[0]
    return load_vocabulary(arguments.vocabulary)


def class_argument(arguments: argparse.Namespace) -> str:
    """What errors about class names call them."""
    return f"--vocabulary {arguments.vocabulary}" if arguments.vocabulary else "--classes"


def read_competing_names(arguments: argparse.Namespace, class_names: list[str]) -> list[str]:
    """The names of which "everything else" is made: those of a vocabulary that are not asked for."""
    if arguments.everything_else is None:
        return []
    if EVERYTHING_ELSE in class_names:
        raise ValueError(f"--everything-else adds a class of the name {EVERYTHING_ELSE!r}, which is one of yours")

    from ..data.distractors import distractors

    return distractors(class_names, [arguments.everything_else])


def is_encoded_vocabulary(vocabulary: str | None) -> bool:
    """Whether `--vocabulary` names a file of `sed-hf encode`."""
    return vocabulary is not None and Path(vocabulary).suffix == ".safetensors"


def load_model_and_classes(
    arguments: argparse.Namespace, model_source: str, class_names: list[str]
) -> tuple[SEDForSemanticSegmentation, SEDProcessor, list[str], Tensor]:
    """The model, its processor, the class names, and their embeddings (T, P, D): from a file, the cache, or encoded."""
    from ..inference.class_embeddings import (
        ClassEmbeddingCache,
        encode_classes,
        load_class_embeddings,
        text_encoder_sha256,
    )
    from ..processing_sed import validate_class_names

    class_names = validate_class_names(class_names, class_argument(arguments))
    print(f"sed-hf: loading {model_source}", file=sys.stderr)
    model, processor = load_model(model_source, arguments.device, arguments.dtype)
    if is_encoded_vocabulary(arguments.vocabulary):
        encoder = text_encoder_sha256(model, processor)
        _, class_embeddings = load_class_embeddings(arguments.vocabulary, encoder)
        return model, processor, class_names, class_embeddings.to(model.device)
    return model, processor, class_names, encode_classes(model, processor, class_names, ClassEmbeddingCache())


def append_classes(
    model: SEDForSemanticSegmentation, processor: SEDProcessor, class_embeddings: Tensor, class_names: list[str]
) -> Tensor:
    """Class embeddings (T, P, D) and those of more names after them."""
    import torch

    from ..inference.class_embeddings import ClassEmbeddingCache, encode_classes

    return torch.cat([class_embeddings, encode_classes(model, processor, class_names, ClassEmbeddingCache())])


# sed-hf convert, sed-hf init -----------------------------------------------------------------------------------------


def run_convert(arguments: argparse.Namespace) -> int:
    """Convert an official checkpoint."""
    check_out(arguments.out, arguments.overwrite)

    from ..conversion import convert_official_checkpoint

    config = read_config(arguments.config) if arguments.config else None
    save_model(convert_official_checkpoint(arguments.checkpoint, config, arguments.ignore_extra), arguments.out)
    return 0


def run_init(arguments: argparse.Namespace) -> int:
    """Start a new model."""
    check_out(arguments.out, arguments.overwrite)

    from ..conversion import from_open_clip

    towers = f"its towers hold {arguments.pretrained}" if arguments.pretrained else "its towers are random"
    state = f"untrained: its decoder is random, {towers}"
    save_model(
        from_open_clip(arguments.variant, pretrained=arguments.pretrained), arguments.out, f"The model is {state}."
    )
    print(f"sed-hf: the model is {state}; train it before use")
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Export a model."""
    out = arguments.out
    check_folder("OUT", out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"OUT {out}: expected a new or empty folder")
    if arguments.int8 and arguments.format != "onnx":
        raise ValueError(f"--int8: expected with --format onnx, got {arguments.format}")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if arguments.format == "onnx" and missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install '.[export]' in the clone of sed-hf")
    class_names = read_class_names(arguments) if arguments.classes or arguments.vocabulary else []
    model_source = choose_model(arguments.model)

    from ..hub.export import export_model
    from ..processing_sed import validate_class_names

    class_names = validate_class_names(class_names, class_argument(arguments)) if class_names else []
    model, processor = load_model(model_source, "cpu", "float32")
    print(f"sed-hf: exporting {model_source}", file=sys.stderr)
    export_model(model, processor, out, arguments.format, class_names, arguments.int8)
    print(f"sed-hf: {', '.join(sorted(path.name for path in out.iterdir()))} written to {out}")
    return 0


def run_push(arguments: argparse.Namespace) -> int:
    """Upload a model folder."""
    owner, _, name = arguments.repo_id.partition("/")
    if not owner or not name or "/" in name:
        raise ValueError(f"{arguments.repo_id}: expected a repository as OWNER/NAME")

    from ..hub.save import push_hub_folder

    address = push_hub_folder(arguments.folder, arguments.repo_id, private=arguments.private or None)
    print(f"sed-hf: uploaded to {address}")
    return 0


def save_model(model: SEDForSemanticSegmentation, out: Path, description: str = "") -> None:
    """Write a model folder, in place of the one that may be there, with a description in its model card."""
    from ..conversion import build_processor
    from ..hub.save import save_hub_folder

    save_hub_folder(model, build_processor(model.config), out, description=description, overwrite=True)
    print(f"sed-hf: model written to {out}")


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse to write where something is, unless it is a model folder that may be replaced.

    Raises:
        FileExistsError: There is something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{out}: expected a new or empty folder; --overwrite replaces a model folder")
    # The old folder will be removed with all it holds, so a slip of the keyboard must not name any folder.
    if not (out / "config.json").is_file():
        raise FileExistsError(f"{out}: --overwrite replaces model folders only, and there is no config.json in it")


def read_config(path: Path) -> SEDConfig:
    """Read a configuration.

    Raises:
        OSError: There is no such file.
        ValueError: It is not JSON, or its values are not those of a model.
    """
    from huggingface_hub.errors import StrictDataclassError

    from .. import SEDConfig

    try:
        return SEDConfig.from_json_file(path)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"--config {path}: {short_error(error)}") from error


# sed-hf demo ---------------------------------------------------------------------------------------------------------


def run_demo(arguments: argparse.Namespace) -> int:
    """Serve the demo until it is interrupted."""
    choose_model(arguments.model)
    if find_spec("gradio") is None:
        raise ValueError("the demo needs gradio: pip install '.[demo]' in the clone of sed-hf")

    from ..demo import serve_demo

    serve_demo(
        arguments.model,
        arguments.device,
        arguments.dtype,
        host=arguments.host,
        port=arguments.port,
        root_path=arguments.root_path,
        share=arguments.share,
    )
    return 0


# Models --------------------------------------------------------------------------------------------------------------


def choose_model(source: str | None) -> str:
    """The model that is asked for, or the one in the box; refused if it cannot be one."""
    if source is None:
        print(
            "sed-hf: no --model is given: taking the model in the box, a small SED that was trained on generated scenes"
            " (coloured shapes on textured grounds) and knows nothing else",
            file=sys.stderr,
        )
        return str(TOY_MODEL)
    return check_model_source(source)


def load_model(source: str, device: str, dtype: str) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """Load a model in evaluation mode, and its processor.

    Args:
        source: Model folder or name on the Hub.
        device: "auto" or a torch device.
        dtype: Name of a torch dtype.

    Raises:
        OSError: There is no such model.
        ValueError: The device is not there, or the model is damaged.
    """
    from transformers.utils import logging

    from ..hub.load import load

    logging.disable_progress_bar()
    return load(source, device, dtype)
