"""`sed-hf explain`: draw what the model sees of each class."""

import argparse
import json
from pathlib import Path

from ..argument_types import positive_integer
from ..terminal import printable
from ..utils import atomic_path
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

EPILOG = """\
example:
  sed-hf explain photo.jpg --model sed-base --classes sky grass "dog, puppy"

for photo.jpg it writes photo_explain.png and photo_explain.json.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "explain",
        run,
        usage="%(prog)s IMAGE (--classes NAME [NAME ...] | --vocabulary NAME_OR_FILE) [options]",
        help="draw what the model sees of each class, to debug class names",
        description="Draw what the model sees of each class in an image: the cost map, the heads before each stage and"
        "\nafter the last, and where early rejection drops a class.",
        epilog=EPILOG,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="image")
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
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Explain one image."""
    check_folder("--output", arguments.output)
    class_names = read_class_names(arguments)
    model_source = choose_model(arguments.model)

    from ..image_processing_sed import read_rgb

    image = read_rgb(arguments.image)
    model, processor, class_names, class_embeddings = load_model_and_classes(arguments, model_source, class_names)

    from ..inference.explain import draw_explanation, explain_image, explanation_summary

    explanation = explain_image(model, processor, image, class_names, class_embeddings, arguments.topk)
    arguments.output.mkdir(parents=True, exist_ok=True)
    figure, summary = (arguments.output / f"{arguments.image.stem}_explain{suffix}" for suffix in (".png", ".json"))
    with atomic_path(figure) as path:
        draw_explanation(image, explanation, arguments.rows).save(path, format="PNG")
    with atomic_path(summary) as path:
        content = explanation_summary(explanation)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"sed-hf: {printable(figure)} and {printable(summary.name)} written")
    return 0
