"""Exported programs beside their model: largest difference of logits, time, and mean IoU of generated scenes.

    sed-hf export outputs/onnx --model sed-base
    python scripts/check_export.py outputs/onnx --model sed-base --sizes 256 512 768 --classes 20 150 459

Pictures are generated scenes, resized; classes are those of scenes, and names of other vocabularies. All programs take
the same class embeddings.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Python searches a script's own folder first, where evaluate.py would hide the library `evaluate`.
sys.path.remove(str(Path(__file__).resolve().parent))

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.argument_types import positive_integer
from sed_hf.data.distractors import distractors
from sed_hf.data.scenes import SceneDataset, scene_vocabulary
from sed_hf.data.vocabularies import vocabulary_names
from sed_hf.evaluation.environment import describe_environment
from sed_hf.hub.load import TOY_MODEL
from sed_hf.image_processing_sed import most_probable_class
from sed_hf.inference.class_embeddings import ClassEmbeddingCache, encode_classes
from sed_hf.metrics import MeanIoU

Run = Callable[[Tensor, Tensor], Tensor]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exports", nargs="+", type=Path, metavar="FOLDER", help="folders of sed-hf export")
    parser.add_argument("--model", default=str(TOY_MODEL), metavar="M", help="the model that was exported")
    parser.add_argument("--sizes", nargs="+", type=positive_integer, default=[192], metavar="N", help="input sizes")
    parser.add_argument("--classes", nargs="+", type=positive_integer, default=[104], metavar="T", help="vocabularies")
    parser.add_argument("--scenes", type=positive_integer, metavar="N", help="also compare the mean IoU of N scenes")
    parser.add_argument("--output", type=Path, metavar="JSON", help="file for the figures")
    arguments = parser.parse_args()
    for folder in arguments.exports:
        if not any(folder.glob("segmentation.*")):
            parser.error(f"{folder}: expected a folder of sed-hf export, and there is no segmentation program in it")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    model = SEDForSemanticSegmentation.from_pretrained(arguments.model).eval()
    processor = SEDProcessor.from_pretrained(arguments.model)
    programs = {"eager": eager(model)} | {str(folder): load_program(folder) for folder in arguments.exports}
    names = scene_vocabulary()
    names += distractors(names, vocabulary_names())
    embeddings = encode_classes(model, processor, names[: max(arguments.classes)], ClassEmbeddingCache())

    points = [(size, count) for size in arguments.sizes for count in arguments.classes]
    figures: dict[str, Any] = {
        "environment": describe_environment(torch.device("cpu")),
        "model": arguments.model,
        "points": [],
    }
    for size, count in tqdm(points, desc="Sizes and vocabularies"):
        figures["points"] += compare(programs, processor, embeddings[:count], size)
    if arguments.scenes:
        scenes = SceneDataset("test", arguments.scenes)
        classes = encode_classes(model, processor, scene_vocabulary(), ClassEmbeddingCache())
        figures["scenes"] = compare_mean_iou(programs, processor, scenes, classes)
    report(figures)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


def eager(model: SEDForSemanticSegmentation) -> Run:
    """The model itself, with every class decoded."""

    @torch.no_grad()
    def run(pixel_values: Tensor, class_embeddings: Tensor) -> Tensor:
        return model(pixel_values, class_embeddings=class_embeddings, early_rejection_topk=0, return_dict=True).logits

    return run


def load_program(folder: Path) -> Run:
    """The program of an exported folder, of either format."""
    if (folder / "segmentation.pt2").is_file():
        return torch.no_grad()(torch.export.load(folder / "segmentation.pt2").module())

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # which would take cores from torch
    session = onnxruntime.InferenceSession(folder / "segmentation.onnx", options, providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor, class_embeddings: Tensor) -> Tensor:
        inputs = {"pixel_values": pixel_values.numpy(), "class_embeddings": class_embeddings.numpy()}
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return run


def compare(
    programs: dict[str, Run], processor: SEDProcessor, class_embeddings: Tensor, size: int
) -> list[dict[str, Any]]:
    """Largest difference from the model, and seconds for the faster of two runs, of each program."""
    picture = SceneDataset("test", 1)[0]["image"].resize((size, size), Image.Resampling.BICUBIC)
    input_size = {"height": size, "width": size}
    pixel_values = processor(images=picture, do_resize=False, input_size=input_size)["pixel_values"]
    points = []
    for name, run in programs.items():
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            logits = run(pixel_values, class_embeddings)
            seconds.append(time.perf_counter() - start)
        if name == "eager":
            expected = logits
        difference = (logits - expected).abs().max().item()
        figures = {"size": size, "classes": len(class_embeddings), "difference": difference, "seconds": min(seconds)}
        points.append({"program": name, **figures})
    return points


def compare_mean_iou(
    programs: dict[str, Run], processor: SEDProcessor, scenes: SceneDataset, class_embeddings: Tensor
) -> list[dict[str, Any]]:
    """Mean IoU of scenes, and seconds for a scene, of each program."""
    metrics = {name: MeanIoU(class_names=scenes.class_names) for name in programs}
    seconds = dict.fromkeys(programs, 0.0)
    for scene in tqdm([*range(len(scenes))], desc="Scenes"):
        example = scenes[scene]
        pixel_values = processor(images=example["image"])["pixel_values"]
        for name, run in programs.items():
            start = time.perf_counter()
            logits = run(pixel_values, class_embeddings)
            seconds[name] += time.perf_counter() - start
            _, prediction = most_probable_class([logits[0]], example["label"].shape, torch.sigmoid)
            metrics[name].add_batch(predictions=[prediction], references=[example["label"]])
    return [
        {
            "program": name,
            "scenes": len(scenes),
            "mIoU": metric.compute()["mIoU"],
            "seconds": seconds[name] / len(scenes),
        }
        for name, metric in metrics.items()
    ]


def report(figures: dict[str, Any]) -> None:
    """Print tables."""
    print(json.dumps(figures["environment"]))
    for rows in (figures["points"], figures.get("scenes", [])):
        if rows:
            print_table(rows)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print(
            "| "
            + " | ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
            + " |"
        )


if __name__ == "__main__":
    main()
