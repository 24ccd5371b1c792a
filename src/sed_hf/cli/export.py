"""Write programs that run without this package: ONNX files for onnxruntime, or programs of torch.export.

Examples:
  sed-hf export sed-b-onnx --model sed-b --vocabulary ade20k_150
  sed-hf export sed-b-torch --model sed-b --format torch

for ONNX it writes segmentation.onnx (images and class embeddings to logits),
text_encoder.onnx (prompts to embeddings), tokenizer.json, settings.json and, with
class names, classes.npz (their embeddings).
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from ..hub.save import check_new_folder
from ..terminal import printable, say
from .arguments import CLASSES, MODEL, argument, load_model, read_class_names

ARGUMENTS = [
    argument("out", type=Path, metavar="OUT", help="folder to write; must be new or empty"),
    *(*CLASSES, MODEL),
    argument("--format", choices=["onnx", "torch"], default="onnx", help="for onnxruntime, or for torch.export.load"),
]


def run(arguments: argparse.Namespace) -> int:
    """Export a model."""
    out = arguments.out
    check_new_folder(out)
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if arguments.format == "onnx" and missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install '.[export]' in the clone of sed-hf")
    class_names = read_class_names(arguments) if arguments.classes or arguments.vocabulary else []

    from ..hub.export import export_model

    model, processor = load_model(arguments.model, "cpu", "float32")
    say(f"exporting to {out}")
    export_model(model, processor, out, arguments.format, class_names)
    print(f"sed-hf: {', '.join(sorted(path.name for path in out.iterdir()))} written to {printable(out)}")
    return 0
