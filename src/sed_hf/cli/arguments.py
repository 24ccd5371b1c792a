"""Arguments that several commands share, and what they are turned into: class names, a model, class embeddings."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.vocabularies import load_vocabulary, vocabulary_names
from ..hub.load import check_model_source
from ..hub.official import OFFICIAL
from ..terminal import say

if TYPE_CHECKING:
    from torch import Tensor

    from .. import SEDForSemanticSegmentation, SEDProcessor


def add_command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], **kwargs: Any
) -> argparse.ArgumentParser:
    """The parser of a new command; `kwargs` are those of `ArgumentParser`, whose epilog keeps its lines."""
    parser = commands.add_parser(name, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
    parser.set_defaults(run=run)
    return parser


def add_class_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add `--classes` and `--vocabulary`, one of which is to be given."""
    classes = parser.add_mutually_exclusive_group(required=required)
    classes.add_argument(
        "--classes", nargs="+", metavar="NAME", help='class names, one argument each; "dog, puppy" are synonyms'
    )
    classes.add_argument(
        "--vocabulary",
        metavar="NAME_OR_FILE",
        help=f"built-in vocabulary ({', '.join(vocabulary_names())}), text file with one class on each line, JSON file"
        " (list, id2label or COCO's categories), or .safetensors file of sed-hf encode",
    )


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    parser.add_argument(
        "--model",
        metavar="M",
        help=f"{', '.join(OFFICIAL)} (the authors' weights, downloaded once), a model folder, or OWNER/NAME on the"
        " Hugging Face Hub (default: the bundled toy model, which knows only generated scenes)",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, and where and with which numbers it runs."""
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


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--output`, a folder for several results."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )


def add_model_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `OUT`, the folder of a model to write, and `--overwrite`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a model folder")


def check_folder(argument: str, folder: Path) -> None:
    """Refuse a path that is not a folder and cannot become one.

    Raises:
        FileExistsError: It is a file, or lies below one.
    """
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                what = "it" if path == folder else path
                raise FileExistsError(f"{argument} {folder}: expected a folder, but {what} is a file")
            return


# Class names ----------------------------------------------------------------------------------------------------------


def read_class_names(arguments: argparse.Namespace) -> list[str]:
    """The class names that are asked for; nothing is encoded yet. A hint is printed if they look like one too few."""
    if not arguments.vocabulary:
        # From "sky, water, gravel" without quotes come "sky," and "water,".
        class_names = [name.strip(" ,") for name in arguments.classes if name.strip() != ","]
    elif is_encoded_vocabulary(arguments.vocabulary):
        from ..inference.class_embeddings import load_class_embeddings

        class_names = load_class_embeddings(arguments.vocabulary)[0]
    else:
        class_names = load_vocabulary(arguments.vocabulary)
    if len(class_names) == 1 and "," in class_names[0] and getattr(arguments, "everything_else", None) is None:
        names = [name.strip() for name in class_names[0].split(",")]
        say(f"{class_names[0]!r} is one class; for {len(names)}, write --classes {shlex.join(names)}")
    return class_names


def class_argument(arguments: argparse.Namespace) -> str:
    """What errors about class names call them."""
    return f"--vocabulary {arguments.vocabulary}" if arguments.vocabulary else "--classes"


def is_encoded_vocabulary(vocabulary: str | None) -> bool:
    """Whether `--vocabulary` names a file of `sed-hf encode`."""
    return vocabulary is not None and Path(vocabulary).suffix == ".safetensors"


# Models ---------------------------------------------------------------------------------------------------------------


def choose_model(source: str | None) -> str:
    """The model that is asked for, or the bundled toy model; refused if it cannot be one."""
    if source is None:
        say(
            "no --model is given: taking the bundled toy model, a small SED that was trained on generated scenes"
            " (coloured shapes on textured grounds) and knows nothing else"
        )
    return check_model_source(source)


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
    model, processor = load_model(model_source, arguments.device, arguments.dtype)
    if is_encoded_vocabulary(arguments.vocabulary):
        encoder = text_encoder_sha256(model, processor)
        _, class_embeddings = load_class_embeddings(arguments.vocabulary, encoder)
        return model, processor, class_names, class_embeddings.to(model.device, model.dtype)
    return model, processor, class_names, encode_classes(model, processor, class_names, ClassEmbeddingCache())


def load_model(source: str, device: str, dtype: str) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """Load a model and its processor, and say so; the arguments are those of [`sed_hf.hub.load.load`]."""
    say(f"loading {source}")

    from transformers.utils import logging

    from ..hub.load import load

    logging.disable_progress_bar()
    return load(source, device, dtype)
