"""The `sed-hf` command: segment pictures, encode vocabularies, convert checkpoints, start models, open the demo.

torch and transformers take seconds to import. Everything that needs them is imported inside functions, so that help
and refused arguments are immediate.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .data.vocabularies import load_vocabulary, vocabulary_names
from .model_source import check_model_source
from .segmentation import (
    find_pictures,
    plan_jobs,
    read_pictures,
    segment_pictures,
    unused_label,
    write_results,
)

if TYPE_CHECKING:
    from gradio import Blocks
    from torch import Tensor

    from . import SEDConfig, SEDForSemanticSegmentation, SEDProcessor
    from .sliding_window import SlidingWindow

MODEL_IN_THE_BOX = Path(__file__).with_name("model_in_the_box")

SEGMENT_EPILOG = """\
examples:
  sed-hf segment photo.jpg --model sed-base --classes sky grass "dog, puppy"
  sed-hf segment holiday/ 'more/**/*.png' --model sed-base --vocabulary ade20k_150 --topk 8
  sed-hf segment photo.jpg --model sed-base --vocabulary my-classes.txt --threshold 0.3

for photo.jpg it writes photo_overlay.jpg (for people), photo_labels.png (the class
index of each pixel) and photo.json (classes, their shares and probabilities).

exit status: 0 all pictures written, 1 some could not be read, 2 refused or failed.
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
ENCODE_EPILOG = """\
example:
  sed-hf encode ade20k.safetensors --model sed-base --vocabulary ade20k_847
  sed-hf segment photo.jpg --model sed-base --vocabulary ade20k.safetensors
"""
DEMO_EPILOG = """\
examples:
  sed-hf demo
  sed-hf demo --model sed-base --port 8000
  sed-hf demo --model sed-base --host 0.0.0.0
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process, and return its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError) as error:
        print(f"sed-hf: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sed-hf: interrupted", file=sys.stderr)
        return 130


# Arguments -----------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; the parsed arguments hold the command's function as `run`."""
    parser = argparse.ArgumentParser(
        prog="sed-hf", description="Open-vocabulary semantic segmentation with SED (CVPR 2024)."
    )
    parser.add_argument("--version", action="version", version=f"sed-hf {version('sed-hf')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_segment_command(commands)
    add_encode_command(commands)
    add_cache_command(commands)
    add_convert_command(commands)
    add_init_command(commands)
    add_demo_command(commands)
    return parser


def add_segment_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "segment",
        # argparse would put INPUT last, where --classes would swallow it.
        usage="%(prog)s INPUT [INPUT ...] (--classes NAME [NAME ...] | --vocabulary NAME_OR_FILE) [options]",
        help="label every pixel of pictures with classes of your choice",
        description="Label every pixel of pictures with one of the classes that you name.",
        epilog=SEGMENT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, folder of pictures, or quoted glob")
    add_model_arguments(parser)
    add_class_arguments(parser)
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
        type=probability,
        default=0.25,
        metavar="SHARE",
        help="share of a tile that its neighbour covers too (default: %(default)s)",
    )
    parser.add_argument(
        "--global-view", action="store_true", help="average the tiles with the whole picture seen at once"
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, default=1, metavar="N", help="pictures at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    parser.set_defaults(run=run_segment)


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
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="official .pth file; its code is never run")
    add_out_arguments(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="JSON",
        help="config.json of the model (default: SED-B or SED-L, whichever fits the checkpoint)",
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


def add_class_arguments(parser: argparse.ArgumentParser) -> None:
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument(
        "--classes", nargs="+", metavar="NAME", help='class names, one argument each; "dog, puppy" are synonyms'
    )
    classes.add_argument(
        "--vocabulary",
        metavar="NAME_OR_FILE",
        help=f"built-in vocabulary ({', '.join(vocabulary_names())}), text file with one class a line, JSON list, or"
        " .safetensors file of sed-hf encode",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="M",
        help="model folder, or OWNER/NAME on the Hugging Face Hub (default: the model in the box, which knows generated"
        " scenes alone)",
    )
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
    """Segment pictures; exit status 1 if one of them could not be read."""
    jobs = plan_jobs(find_pictures(arguments.inputs), arguments.output)
    class_names = read_class_names(arguments)
    no_class_label = unused_label(len(class_names))
    ignore_index = None if arguments.threshold is None else no_class_label
    model_source = choose_model(arguments.model)
    sliding_window = choose_sliding_window(arguments)

    from tqdm import tqdm

    model, processor, class_names, class_embeddings = load_model_and_classes(arguments, model_source, class_names)

    arguments.output.mkdir(parents=True, exist_ok=True)
    num_written = 0
    with tqdm(total=len(jobs), desc="Segmenting", unit="picture", disable=len(jobs) == 1) as progress:
        for start in range(0, len(jobs), arguments.batch_size):
            batch = jobs[start : start + arguments.batch_size]
            pictures = read_pictures(batch, processor)
            results = segment_pictures(
                model,
                processor,
                list(pictures.values()),
                class_embeddings,
                topk=arguments.topk,
                threshold=arguments.threshold,
                ignore_index=ignore_index,
                sliding_window=sliding_window,
            )
            for (job, picture), result in zip(pictures.items(), results, strict=True):
                write_results(job, picture, result, class_names, ignore_index, model_source)
            num_written += len(pictures)
            progress.update(len(batch))

    print(f"sed-hf: {num_written} of {len(jobs)} pictures written to {arguments.output}")
    return 0 if num_written == len(jobs) else 1


def choose_sliding_window(arguments: argparse.Namespace) -> SlidingWindow | None:
    """How to cut large pictures, if at all."""
    if arguments.sliding_window is None:
        if arguments.global_view:
            raise ValueError("--global-view: expected only with --sliding-window PIXELS")
        return None

    from .sliding_window import SlidingWindow

    return SlidingWindow(arguments.sliding_window, arguments.overlap, arguments.global_view)


# sed-hf encode, sed-hf cache -----------------------------------------------------------------------------------------


def run_encode(arguments: argparse.Namespace) -> int:
    """Encode class names to a file."""
    out = arguments.out
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"OUT {out}: expected a file whose name ends in .safetensors")
    class_names = read_class_names(arguments)
    model_source = choose_model(arguments.model)

    from .class_embeddings import save_class_embeddings, text_encoder_sha256

    model, processor, class_names, embeddings = load_model_and_classes(arguments, model_source, class_names)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_class_embeddings(out, class_names, embeddings, text_encoder_sha256(model, processor))
    print(f"sed-hf: {len(class_names)} classes written to {out}")
    return 0


def run_cache(arguments: argparse.Namespace) -> int:
    """Show or clear the cache."""
    from .class_embeddings import ClassEmbeddingCache

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

        from .class_embeddings import load_class_embeddings

        return load_class_embeddings(arguments.vocabulary)[0]
    return load_vocabulary(arguments.vocabulary)


def is_encoded_vocabulary(vocabulary: str | None) -> bool:
    """Whether `--vocabulary` names a file of `sed-hf encode`."""
    return vocabulary is not None and Path(vocabulary).suffix == ".safetensors"


def load_model_and_classes(
    arguments: argparse.Namespace, model_source: str, class_names: list[str]
) -> tuple[SEDForSemanticSegmentation, SEDProcessor, list[str], Tensor]:
    """The model, its processor, the class names, and their embeddings (T, P, D): from a file, the cache, or encoded."""
    from .class_embeddings import ClassEmbeddingCache, encode_classes, load_class_embeddings, text_encoder_sha256
    from .processing_sed import validate_class_names

    class_names = validate_class_names(class_names)
    print(f"sed-hf: loading {model_source}", file=sys.stderr)
    model, processor = load_model(model_source, arguments.device, arguments.dtype)
    if is_encoded_vocabulary(arguments.vocabulary):
        encoder = text_encoder_sha256(model, processor)
        _, class_embeddings = load_class_embeddings(arguments.vocabulary, encoder)
        return model, processor, class_names, class_embeddings.to(model.device)
    return model, processor, class_names, encode_classes(model, processor, class_names, ClassEmbeddingCache())


# sed-hf convert, sed-hf init -----------------------------------------------------------------------------------------


def run_convert(arguments: argparse.Namespace) -> int:
    """Convert an official checkpoint."""
    if not arguments.checkpoint.is_file():
        found = "a folder" if arguments.checkpoint.is_dir() else "nothing"
        raise FileNotFoundError(f"{arguments.checkpoint}: expected a checkpoint file, found {found}")
    if arguments.config and not arguments.config.is_file():
        raise FileNotFoundError(f"--config {arguments.config}: expected a config.json, found none")
    check_out(arguments.out, arguments.overwrite)

    from .conversion import convert_official_checkpoint

    config = read_config(arguments.config) if arguments.config else None
    save_model(convert_official_checkpoint(arguments.checkpoint, config=config), arguments.out)
    return 0


def run_init(arguments: argparse.Namespace) -> int:
    """Start a new model."""
    check_out(arguments.out, arguments.overwrite)

    from .conversion import from_open_clip

    towers = f"its towers hold {arguments.pretrained}" if arguments.pretrained else "its towers are random"
    state = f"untrained: its decoder is random, {towers}"
    save_model(
        from_open_clip(arguments.variant, pretrained=arguments.pretrained), arguments.out, f"The model is {state}."
    )
    print(f"sed-hf: the model is {state}; train it before use")
    return 0


def save_model(model: SEDForSemanticSegmentation, out: Path, description: str = "") -> None:
    """Write a model folder, in place of the one that may be there, with a description in its model card."""
    from .conversion import build_processor
    from .hub import save_hub_folder

    processor = build_processor(model.config)
    if out.exists():
        shutil.rmtree(out)
    save_hub_folder(model, processor, out, description=description)
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
        ValueError: The file is no JSON object, or its values make no model.
    """
    from huggingface_hub.errors import StrictDataclassError

    from . import SEDConfig

    try:
        return SEDConfig.from_json_file(path)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"--config {path}: {error}") from error


# sed-hf demo ---------------------------------------------------------------------------------------------------------


def run_demo(arguments: argparse.Namespace) -> int:
    """Serve the demo until it is interrupted."""
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


def serve_demo(
    source: str | None,
    device: str = "auto",
    dtype: str = "float32",
    *,
    host: str | None = None,
    port: int | None = None,
    root_path: str | None = None,
    share: bool = False,
) -> None:
    """Load a model, by default the one in the box, and serve the demo with it until the process is interrupted."""
    model_source = choose_model(source)
    if find_spec("gradio") is None:
        raise ValueError("the demo needs gradio: pip install '.[demo]' in the clone of sed-hf")
    model, processor = load_model(model_source, device, dtype)

    from .demo import build_demo, example_scenes, serve

    def build(folder: Path) -> Blocks:
        if source is None:
            return build_demo(model, processor, "the model in the box", example_scenes(folder))
        # Of a folder the name alone: where it lies is none of the visitors' business.
        name = Path(source).resolve().name if Path(source).exists() else source
        return build_demo(model, processor, name)

    serve(build, host=host, port=port, root_path=root_path, share=share)


# Models --------------------------------------------------------------------------------------------------------------


def choose_model(source: str | None) -> str:
    """The model that is asked for, or the one in the box; refused if it cannot be one."""
    if source is None:
        print(
            "sed-hf: no --model is given: taking the model in the box, a small SED that was trained on generated scenes"
            " (coloured shapes on textured grounds) and knows nothing else",
            file=sys.stderr,
        )
        return str(MODEL_IN_THE_BOX)
    check_model_source(source)
    return source


def load_model(source: str, device: str, dtype: str) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """Load a model in evaluation mode, and its processor.

    Args:
        source: Model folder or name on the Hub.
        device: "auto" or a torch device.
        dtype: Name of a torch dtype.

    Raises:
        OSError: There is no such model.
        ValueError: The device is not there.
    """
    import torch
    from transformers.utils import logging

    from . import SEDForSemanticSegmentation, SEDProcessor

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, is_available in available.items() if is_available)
    if not available[device]:
        raise ValueError(f"--device {device}: torch finds no such device here")
    logging.disable_progress_bar()
    model = SEDForSemanticSegmentation.from_pretrained(source, dtype=getattr(torch, dtype))
    return model.to(device).eval(), SEDProcessor.from_pretrained(source)
