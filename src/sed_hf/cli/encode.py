"""Encode class names once, to a file that segment takes as --vocabulary, also on other machines.

Example:
  sed-hf encode ade20k.safetensors --model sed-b --vocabulary ade20k_847
  sed-hf segment photo.jpg --model sed-b --vocabulary ade20k.safetensors
"""

import argparse
from pathlib import Path

from ..terminal import printable
from .arguments import CLASSES, DEVICE, MODEL, argument, load_model_and_embeddings, read_class_names

ARGUMENTS = [
    argument("out", type=Path, metavar="OUT", help="file to write; its name ends in .safetensors"),
    *(*CLASSES, MODEL, *DEVICE),
]


def run(arguments: argparse.Namespace) -> int:
    """Encode class names to a file."""
    out = arguments.out
    if out.suffix != ".safetensors":
        raise ValueError(f"OUT {out}: expected a file whose name ends in .safetensors")
    class_names = read_class_names(arguments)
    *_, embeddings, encoder = load_model_and_embeddings(arguments, class_names)

    from ..inference.class_embeddings import save_class_embeddings

    save_class_embeddings(out, class_names, embeddings, encoder)
    print(f"sed-hf: {len(class_names)} classes written to {printable(out)}")
    return 0
