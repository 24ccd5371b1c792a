"""`sed-hf encode`: encode class names to a file."""

import argparse
from pathlib import Path

from ..terminal import printable
from .arguments import (
    add_class_arguments,
    add_command,
    add_model_arguments,
    choose_model,
    load_model_and_classes,
    read_class_names,
)

EPILOG = """\
example:
  sed-hf encode ade20k.safetensors --model sed-base --vocabulary ade20k_847
  sed-hf segment photo.jpg --model sed-base --vocabulary ade20k.safetensors
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "encode",
        run,
        usage="%(prog)s OUT (--classes NAME [NAME ...] | --vocabulary NAME_OR_FILE) [options]",
        help="encode class names to a file that segment takes as --vocabulary",
        description="Encode class names once, to a file that `sed-hf segment --vocabulary` and other machines take.",
        epilog=EPILOG,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write; its name ends in .safetensors")
    add_model_arguments(parser)
    add_class_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Encode class names to a file."""
    out = arguments.out
    if out.suffix != ".safetensors":
        raise ValueError(f"OUT {out}: expected a file whose name ends in .safetensors")
    class_names = read_class_names(arguments)
    model_source = choose_model(arguments.model)

    from ..inference.class_embeddings import save_class_embeddings, text_encoder_sha256

    model, processor, class_names, embeddings = load_model_and_classes(arguments, model_source, class_names)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_class_embeddings(out, class_names, embeddings, text_encoder_sha256(model, processor))
    print(f"sed-hf: {len(class_names)} classes written to {printable(out)}")
    return 0
