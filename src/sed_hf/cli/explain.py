"""Draw what the model sees of each class, to debug class names.

It draws the cost map, the heads before each stage and after the last, and where early rejection
drops a class.

Example:
  sed-hf explain photo.jpg --model sed-b --classes sky grass "dog, puppy"

for photo.jpg it writes photo_explain.png and photo_explain.json.
"""

import argparse
from pathlib import Path

from ..terminal import positive_integer, printable
from .arguments import CLASSES, DEVICE, MODEL, OUTPUT, argument, load_model_and_embeddings, read_class_names

ARGUMENTS = [
    argument("image", type=Path, metavar="IMAGE", help="image"),
    *(*CLASSES, MODEL, *DEVICE),
    argument("--topk", type=positive_integer, default=8, metavar="K", help="K of the early rejection to report on"),
    argument("--rows", type=positive_integer, default=12, metavar="N", help="classes to draw"),
    OUTPUT,
]


def run(arguments: argparse.Namespace) -> int:
    """Explain one image."""
    class_names = read_class_names(arguments)

    from ..image_processing_sed import read_rgb
    from ..inference.explain import explain_image, write_explanation

    image = read_rgb(arguments.image)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model, processor, class_embeddings, _ = load_model_and_embeddings(arguments, class_names)
    explanation = explain_image(model, processor, image, class_names, class_embeddings, arguments.topk)
    figure = arguments.output / f"{arguments.image.stem}_explain.png"
    write_explanation(figure, image, explanation, arguments.rows)
    print(f"sed-hf: {printable(figure)} and {printable(figure.stem)}.json written")
    return 0
