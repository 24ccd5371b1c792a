"""`sed-hf export`: write programs that run without this package."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from ..hub.save import check_new_folder
from ..terminal import printable, say
from .arguments import (
    add_class_arguments,
    add_command,
    add_model_argument,
    choose_model,
    class_argument,
    load_model,
    read_class_names,
)

EPILOG = """\
examples:
  sed-hf export sed-base-onnx --model sed-base --vocabulary ade20k_150
  sed-hf export sed-base-torch --model sed-base --format torch

for ONNX it writes segmentation.onnx (images and class embeddings to logits),
text_encoder.onnx (prompts to embeddings), tokenizer.json, settings.json and, with
class names, classes.npz (their embeddings).
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "export",
        run,
        usage="%(prog)s OUT [--classes NAME [NAME ...] | --vocabulary NAME_OR_FILE] [options]",
        help="write programs that run without this package: ONNX, or torch.export",
        description="Write a model as programs that run without this package: ONNX files for onnxruntime, or programs"
        "\nof torch.export.",
        epilog=EPILOG,
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


def run(arguments: argparse.Namespace) -> int:
    """Export a model."""
    out = arguments.out
    check_new_folder(out)
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
    say(f"exporting {model_source}")
    export_model(model, processor, out, arguments.format, class_names, arguments.int8)
    print(f"sed-hf: {', '.join(sorted(path.name for path in out.iterdir()))} written to {printable(out)}")
    return 0
