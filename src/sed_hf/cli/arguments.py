"""Arguments that several commands share, and what they are turned into: class names, a model, class embeddings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.vocabularies import load_vocabulary, vocabulary_names
from ..hub.load import check_model_source
from ..hub.official import OFFICIAL
from ..terminal import say
from ..utils import some
from .inputs import is_image_or_video

if TYPE_CHECKING:
    from torch import Tensor

    from .. import SEDForSemanticSegmentation, SEDProcessor


def argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An argument of a command: what argparse's `add_argument` takes; the help states a default."""
    if "default" in options:
        options["help"] += " (default: %(default)s)"
    return names, options


CLASSES = (
    argument("--classes", nargs="+", metavar="NAME", help='one argument for each class; "dog, puppy" are synonyms'),
    argument(
        "--vocabulary",
        metavar="NAME_OR_FILE",
        help=f"built-in vocabulary ({', '.join(vocabulary_names())}), text file with one class on each line, JSON file"
        " (list, id2label or COCO's categories), or .safetensors file of sed-hf encode",
    ),
)
MODEL = argument(
    "--model",
    type=check_model_source,
    metavar="M",
    help=f"{', '.join(OFFICIAL)} (the authors' weights, downloaded once), a model folder, or OWNER/NAME on the Hub;"
    " by default toy, the bundled model, which knows only generated scenes",
)
DEVICE = (
    argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="auto: a GPU if there is one"),
    argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="float32",
        help="numbers to compute with; auto takes bfloat16 where the device has it",
    ),
)
OUTPUT = argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="folder for the results")
NEW_MODEL = (
    argument("out", type=Path, metavar="OUT", help="folder to write; must be new or empty"),
    argument("--overwrite", action="store_true", help="replace OUT if it is a model folder"),
)


def read_class_names(arguments: argparse.Namespace) -> list[str]:
    """The class names that are asked for; nothing is encoded yet. A hint is printed if they look like one too few."""
    vocabulary = arguments.vocabulary
    if bool(vocabulary) == bool(arguments.classes):
        raise ValueError("expected class names, either --classes NAME [NAME ...] or --vocabulary NAME_OR_FILE")
    if not vocabulary:  # from "sky , water" without quotes comes a comma by itself
        class_names = [name for name in arguments.classes if name.strip() != ","]
        if files := [name for name in class_names if is_image_or_video(Path(name))]:
            raise ValueError(f"--classes takes all that follows it: give {some(files)} before it")
    elif vocabulary.endswith(".safetensors"):
        from ..inference.class_embeddings import load_class_embeddings

        class_names, _ = load_class_embeddings(vocabulary)
    else:
        class_names = load_vocabulary(vocabulary)

    from ..inference.segmenter import hint_at_synonyms
    from ..processing_sed import validate_class_names

    class_names = validate_class_names(class_names, f"--vocabulary {vocabulary}" if vocabulary else "--classes")
    hint_at_synonyms(class_names, getattr(arguments, "everything_else", None))
    return class_names


def load_model_and_embeddings(
    arguments: argparse.Namespace, class_names: list[str]
) -> tuple[SEDForSemanticSegmentation, SEDProcessor, Tensor, str]:
    """The model, its processor, embeddings (T, P, D) from a file, the cache or encoded, and the encoder's hash."""
    from ..inference import class_embeddings

    model, processor = load_model(arguments.model, arguments.device, arguments.dtype)
    encoder = class_embeddings.text_encoder_sha256(model, processor)
    if str(arguments.vocabulary).endswith(".safetensors"):
        _, embeddings = class_embeddings.load_class_embeddings(arguments.vocabulary, encoder)
        return model, processor, embeddings.to(model.device, model.dtype), encoder
    cache = class_embeddings.ClassEmbeddingCache()
    embeddings = class_embeddings.encode_classes(model, processor, class_names, cache, encoder=encoder)
    return model, processor, embeddings, encoder


def load_model(source: str | None, device: str, dtype: str) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """Load a model and its processor, and say so; the arguments are those of [`sed_hf.hub.load.load`]."""
    say(f"loading {source or 'the bundled toy model, which knows only generated scenes; --model takes another'}")

    from transformers.utils import logging

    from ..hub.load import load

    logging.disable_progress_bar()
    return load(source, device, dtype)
