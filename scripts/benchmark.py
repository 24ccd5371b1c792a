"""Time and memory of SED, beside a plain decoder, on your machine: `python scripts/benchmark.py --output DIR`.

Every point of the sweep (classes, resolution, data type, ...) runs in a process of its own, whose peak memory is its
own, too. Points that `results.json` in the output folder holds are not measured again, so that an interrupted sweep
goes on, and a later one adds to it. Weights and inputs are random, but with a model folder they are its weights, a
generated scene, and the names of its classes and of others.
"""

import argparse
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Python searches a script's own folder first, where evaluate.py would hide the library `evaluate`.
sys.path.remove(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # for the plain decoder

import torch
import torch.nn.functional as F
from plain_decoder import plain_decode
from torch import Tensor

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDProcessor, SEDSemanticSegmentationOutput
from sed_hf.conversion import build_processor, config_from_open_clip
from sed_hf.data.distractors import distractors
from sed_hf.data.scenes import SceneDataset, scene_vocabulary
from sed_hf.data.vocabularies import load_vocabulary
from sed_hf.evaluation.environment import describe_environment
from sed_hf.inference.class_embeddings import ClassEmbeddingCache, encode_classes
from sed_hf.terminal import progress_bar, say
from sed_hf.training.optimizer import enable_gradient_checkpointing
from sed_hf.utils import atomic_path

VARIANTS = {"base": "convnext_base_w_320", "large": "convnext_large_d_320"}
PICTURE_SIZE = (640, 853)  # what post-processing enlarges the logits to
STAGES = {"aggregate_locations": "locations", "aggregate_classes": "classes", "skip_fusion": "fusion"}


@dataclass(frozen=True)
class Point:
    """One point of the sweep; its text is its name in `results.json`.

    Attributes:
        task: "segment", "train" (one step with gradient checkpointing) or "text" (the class names alone).
        model: "base", "large" or a model folder, the weights of which are then used.
        decoder: "fast" is that of the package, "plain" that of the tests.
        classes: T.
        size: Height and width of the network's input.
        dtype: Of weights and activations.
        topk: Early rejection; 0 is dense.
        batch_size: Pictures at a time.
        compiled: Whether `torch.compile` compiles the model.
    """

    task: str
    model: str
    decoder: str
    classes: int
    size: int
    dtype: str
    topk: int
    batch_size: int
    compiled: bool

    def __str__(self) -> str:
        name = f"{self.task} {self.model} {self.decoder} T={self.classes} {self.size} {self.dtype}"
        return f"{name} k={self.topk} B={self.batch_size}{' compiled' if self.compiled else ''}"


def main() -> None:
    """Measure what is not measured yet, and write the report after each point."""
    arguments = parse_arguments()
    if arguments.point:
        print(json.dumps(measure(Point(**json.loads(arguments.point)), arguments.device, arguments.repeats)))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    results_file = arguments.output / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    points = [point for point in plan(arguments) if str(point) not in results]
    for point in progress_bar(points, desc="Measuring", unit="point"):
        results[str(point)] = run_in_process_of_its_own(point, arguments)
        with atomic_path(results_file) as path:
            path.write_text(json.dumps(results, indent=1) + "\n")
        with atomic_path(arguments.output / "results.md") as path:
            path.write_text(to_markdown(results))
    draw_plots(results, arguments.output)
    print(to_markdown(results))


def parse_arguments() -> argparse.Namespace:
    """The options; each list is swept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder for the report")
    parser.add_argument("--tasks", nargs="+", default=["segment"], choices=["segment", "train", "text"])
    parser.add_argument("--models", nargs="+", default=["base"], metavar="M", help="base, large, or a model folder")
    parser.add_argument("--decoders", nargs="+", default=["fast", "plain"], choices=["fast", "plain"])
    parser.add_argument("--classes", nargs="+", type=int, default=[20, 150, 459], metavar="T")
    parser.add_argument("--sizes", nargs="+", type=int, default=[768], metavar="PIXELS", help="multiples of 32")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--topk", nargs="+", type=int, default=[0], metavar="K", help="early rejection; 0 is dense")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1], metavar="B")
    parser.add_argument("--compile", nargs="+", choices=["no", "yes"], default=["no"], help="torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3, help="measurements after a first one that does not count")
    parser.add_argument("--point", help=argparse.SUPPRESS)  # the process of one point
    arguments = parser.parse_args()
    if wrong := [size for size in arguments.sizes if size < 32 or size % 32]:
        parser.error(f"--sizes {wrong[0]}: expected a multiple of 32")
    for name in ("classes", "batch_sizes"):
        if min(getattr(arguments, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} {min(getattr(arguments, name))}: expected at least 1")
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats}: expected at least 1")
    return arguments


def plan(arguments: argparse.Namespace) -> Iterator[Point]:
    """All points that can be measured: training and text have neither rejection nor, for text, a decoder."""
    for values in itertools.product(
        arguments.tasks, arguments.models, arguments.decoders, arguments.classes, arguments.sizes, arguments.dtypes,
        arguments.topk, arguments.batch_sizes, [choice == "yes" for choice in arguments.compile],
    ):  # fmt: skip
        point = Point(*values)
        if point.task == "segment" or point.topk == 0:
            yield point


def run_in_process_of_its_own(point: Point, arguments: argparse.Namespace) -> dict[str, Any]:
    """What [`measure`] gives; or the last line of the error, such as running out of memory."""
    options = ["--point", json.dumps(asdict(point)), "--device", arguments.device, "--repeats", str(arguments.repeats)]
    process = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=False)
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last_line = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    say(f"{point}: {last_line}")
    return {**asdict(point), "error": last_line}


# One point -----------------------------------------------------------------------------------------------------------


def measure(point: Point, device: str, repeats: int) -> dict[str, Any]:
    """Seconds (median, minimum and maximum of the repeats) of each part, and the peak memory in GiB."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model, processor = load(point)
    model = model.to(device, getattr(torch, point.dtype)).to(memory_format=torch.channels_last).eval()
    task = {"segment": time_segmentation, "train": time_training_step, "text": time_text}[point.task]
    seconds, facts = task(point, model, processor, repeats)
    peak_gib = peak_memory(model.device)
    if point.task == "segment" and point.dtype != "float32":
        facts |= compare_with_float32(point, model, processor)
    return {
        **asdict(point),
        "seconds": {
            name: {"median": statistics.median(times), "min": min(times), "max": max(times)}
            for name, times in seconds.items()
        },
        "peak_memory_gib": peak_gib,
        **facts,
        "environment": {**describe_environment(model.device), "threads": torch.get_num_threads()},
    }


def load(point: Point) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """The model of a folder, or one with random weights."""
    if point.model not in VARIANTS:
        return SEDForSemanticSegmentation.from_pretrained(point.model), SEDProcessor.from_pretrained(point.model)
    config = SEDConfig() if point.model == "base" else config_from_open_clip(VARIANTS[point.model])
    return SEDForSemanticSegmentation(config), build_processor(config)


@torch.no_grad()
def time_segmentation(
    point: Point, model: SEDForSemanticSegmentation, processor: SEDProcessor, repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """A batch from pixels to label maps."""
    pixel_values, class_embeddings = make_inputs(point, model, processor)
    encode: Callable = torch.compile(model.image_encoder) if point.compiled else model.image_encoder
    decode: Callable = torch.compile(model.decoder) if point.compiled else model.decoder
    if point.decoder == "plain":
        decode = plain_decoder(model)
    seconds: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, Any] = {}
    for repeat in range(repeats + 1):
        parts: dict[str, float] = defaultdict(float)
        with timed(parts, "whole", model.device), timed_stages(parts, point, model):
            with timed(parts, "image encoder", model.device):
                features = encode(pixel_values)
            with timed(parts, "decoder", model.device):
                dense_embeddings = F.normalize(features.dense_embeddings, dim=1)
                decoded = decode(dense_embeddings, class_embeddings, features.hidden_states, point.topk or None)
            with timed(parts, "post-processing", model.device):
                outputs = SEDSemanticSegmentationOutput(
                    logits=decoded.logits, logit_classes=decoded.logit_classes, kept_classes=decoded.kept_classes
                )
                processor.post_process_semantic_segmentation(outputs, target_sizes=[PICTURE_SIZE] * point.batch_size)
        if decoded.kept_classes is not None:
            facts["kept_classes"] = decoded.kept_classes.sum(-1).float().mean(0).tolist()
        del features, decoded, outputs, dense_embeddings
        if repeat:  # the first warms up
            for name, part in parts.items():
                seconds[name].append(part)
    return seconds, facts


@torch.no_grad()
def compare_with_float32(point: Point, model: SEDForSemanticSegmentation, processor: SEDProcessor) -> dict[str, float]:
    """What a lower precision costs: the share of pixels with the label of float32, and the largest difference."""
    pixel_values, class_embeddings = make_inputs(point, model, processor)
    low = model(pixel_values, class_embeddings=class_embeddings, early_rejection_topk=point.topk).all_logits()
    torch.manual_seed(0)
    exact_model = load(point)[0].to(model.device).eval()
    high = exact_model(
        pixel_values.float(), class_embeddings=class_embeddings.float(), early_rejection_topk=point.topk
    ).all_logits()
    return {
        "same_label_as_float32": (low.argmax(1) == high.argmax(1)).float().mean().item(),
        "largest_difference_of_a_probability": (low.float().sigmoid() - high.sigmoid()).abs().max().item(),
    }


def plain_decoder(model: SEDForSemanticSegmentation) -> Callable:
    """The decoder of the tests, in the form of that of the package."""

    def decode(dense_embeddings: Tensor, class_embeddings: Tensor, hidden_states: Any, topk: int | None) -> Any:
        plain = plain_decode(model.decoder, dense_embeddings, class_embeddings, hidden_states, topk)
        if topk is None:
            return SEDSemanticSegmentationOutput(logits=plain.logits)
        kept = torch.zeros(1, len(plain.kept), len(class_embeddings), dtype=torch.bool)
        for stage, classes in enumerate(plain.kept):
            kept[0, stage, classes] = True
        return SEDSemanticSegmentationOutput(logits=plain.logits, logit_classes=plain.kept[-1], kept_classes=kept)

    return decode


def time_training_step(
    point: Point, model: SEDForSemanticSegmentation, processor: SEDProcessor, repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Forward, backward and optimizer step, with gradient checkpointing and the text encoder frozen."""
    model.train().text_encoder.requires_grad_(False)
    enable_gradient_checkpointing(model)
    if point.decoder == "plain":
        replace_decoder(model)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-6)
    pixel_values, class_embeddings = make_inputs(point, model, processor)
    labels = torch.randint(point.classes, (point.batch_size, point.size, point.size), device=model.device)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):  # a step takes so long that a first one is like any other
        parts: dict[str, float] = defaultdict(float)
        with timed(parts, "whole", model.device):
            with timed(parts, "forward", model.device):
                loss = model(pixel_values, class_embeddings=class_embeddings, labels=labels).loss
            with timed(parts, "backward", model.device):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for name, part in parts.items():
            seconds[name].append(part)
    return seconds, {}


def replace_decoder(model: SEDForSemanticSegmentation) -> None:
    """Let a model decode with the plain decoder, without checkpointing in it."""

    def forward(dense_embeddings: Tensor, class_embeddings: Tensor, hidden_states: Any, *_: Any) -> Any:
        plain = plain_decode(model.decoder, dense_embeddings, class_embeddings, hidden_states)
        return SEDSemanticSegmentationOutput(logits=plain.logits, aux_logits=tuple(plain.aux_logits))

    object.__setattr__(model.decoder, "forward", forward)


@torch.no_grad()
def time_text(
    point: Point, model: SEDForSemanticSegmentation, processor: SEDProcessor, repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """The first T names of ade20k_847 in all templates; "plain" pads every prompt to the full length."""
    names = load_vocabulary("ade20k_847")[: point.classes]
    inputs = processor(text=names, padding="max_length", return_tensors="pt").to(model.device)
    prompts = inputs["input_ids"].flatten(0, 1)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        parts: dict[str, float] = defaultdict(float)
        with timed(parts, "whole", model.device):
            if point.decoder == "plain":
                for batch in prompts.split(256):
                    model.text_encoder(input_ids=batch)
            else:
                model.get_class_embeddings(**inputs)
        seconds["whole"].append(parts["whole"])
    return seconds, {"prompts": len(prompts)}


def make_inputs(point: Point, model: SEDForSemanticSegmentation, processor: SEDProcessor) -> tuple[Tensor, Tensor]:
    """Pixel values (B, 3, size, size) and class embeddings (T, P, D)."""
    shape = (point.batch_size, 3, point.size, point.size)
    if point.model in VARIANTS:
        pixel_values = torch.randn(shape, device=model.device, dtype=model.dtype)
        return pixel_values.contiguous(memory_format=torch.channels_last), random_class_embeddings(point, model)
    dataset = SceneDataset("test", point.batch_size, size=point.size)
    scenes = [dataset[index]["image"] for index in range(point.batch_size)]
    size = {"height": point.size, "width": point.size}
    pixel_values = processor(images=scenes, input_size=size)["pixel_values"].to(model.device, model.dtype)
    names = [*scene_vocabulary(), *distractors(scene_vocabulary(), ["pascal_context_459", "ade20k_847"])]
    if point.classes > len(names):
        raise ValueError(f"--classes {point.classes}: expected at most {len(names)} with a model folder")
    class_embeddings = encode_classes(model, processor, names[: point.classes], ClassEmbeddingCache())
    return pixel_values.contiguous(memory_format=torch.channels_last), class_embeddings


def random_class_embeddings(point: Point, model: SEDForSemanticSegmentation) -> Tensor:
    """(T, P, D) of length 1, made in place so that memory holds them once."""
    shape = (len(model.config.prompt_templates), model.config.projection_dim)
    class_embeddings = torch.empty(point.classes, *shape, device=model.device, dtype=model.dtype)
    for chunk in class_embeddings.split(100):
        chunk.copy_(F.normalize(torch.randn(chunk.shape, device=model.device), dim=-1))
    return class_embeddings


@contextmanager
def timed(parts: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Add the seconds that the block takes."""
    synchronize(device)
    start = time.perf_counter()
    yield
    synchronize(device)
    parts[name] += time.perf_counter() - start


@contextmanager
def timed_stages(parts: dict[str, float], point: Point, model: SEDForSemanticSegmentation) -> Iterator[None]:
    """Time the parts of each decoder stage too; on a CPU, where that costs nothing and hides nothing."""
    if model.device.type != "cpu" or point.decoder == "plain" or point.compiled:
        yield
        return
    patched = []
    decoder: Any = model.decoder
    for number, stage in enumerate(decoder.stages, start=1):
        for method, part in STAGES.items():
            owner, attribute = (stage.skip_fusion, "forward") if method == "skip_fusion" else (stage, method)
            original = getattr(owner, attribute)

            def call(*args: Any, name: str = f"stage {number} {part}", original: Callable = original) -> Any:
                with timed(parts, name, model.device):
                    return original(*args)

            object.__setattr__(owner, attribute, call)
            patched.append((owner, attribute))
    try:
        yield
    finally:
        for owner, attribute in patched:
            object.__delattr__(owner, attribute)
    inside = sum(seconds for name, seconds in parts.items() if name.startswith("stage"))
    parts["cost map, guidance and heads"] = parts["decoder"] - inside


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """The most memory in GiB that this process held: on the device, or of a CPU process as a whole."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# Report --------------------------------------------------------------------------------------------------------------


def to_markdown(results: dict[str, dict[str, Any]]) -> str:
    """A table of all points, with the machine and the versions."""
    measured = [result for result in results.values() if "error" not in result]
    machines = {json.dumps(result["environment"], sort_keys=True) for result in measured}
    lines = []
    for machine in sorted(machines):
        environment = json.loads(machine)
        versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
        lines.append(f"{environment['hardware']}, {environment['threads']} threads; {versions}\n")
    lines += ["| point | whole | image encoder | decoder | encoder times a class | post-processing | peak memory |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, result in results.items():
        if "error" in result:
            lines.append(f"| {name} | {result['error'].replace('|', '/')} | | | | | |")
            continue
        seconds = result["seconds"]
        whole, encoder, decoder, post = (
            format_seconds(seconds.get(part)) for part in ("whole", "image encoder", "decoder", "post-processing")
        )
        ratio = ""
        if "decoder" in seconds:
            # Of as many pictures in both, so that the batch size cancels out.
            encoder_times = seconds["decoder"]["median"] / seconds["image encoder"]["median"]
            ratio = f"{encoder_times / result['classes']:.4f}"
        memory = f"{result['peak_memory_gib']:.2f} GiB"
        lines.append(f"| {name} | {whole} | {encoder} | {decoder} | {ratio} | {post} | {memory} |")
    lines += ["", *stage_table(results), *precision_table(results)]
    return "\n".join(lines) + "\n"


def stage_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Milliseconds a class of each part of the decoder."""
    rows = {name: result for name, result in results.items() if "stage 1 classes" in result.get("seconds", {})}
    if not rows:
        return []
    parts = [f"stage {number} {part}" for number in (1, 2, 3) for part in STAGES.values()]
    parts.append("cost map, guidance and heads")
    lines = ["Milliseconds a class:", "", "| point | " + " | ".join(parts) + " |", "|---" * (len(parts) + 1) + "|"]
    for name, result in rows.items():
        values = [f"{result['seconds'][part]['median'] / result['classes'] * 1e3:.2f}" for part in parts]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return lines


def precision_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """How far lower precision is from float32."""
    rows = {name: result for name, result in results.items() if "same_label_as_float32" in result}
    if not rows:
        return []
    lines = ["", "| point | pixels labelled as in float32 | largest difference of a probability |", "|---|---|---|"]
    for name, result in rows.items():
        share, difference = result["same_label_as_float32"], result["largest_difference_of_a_probability"]
        lines.append(f"| {name} | {100 * share:.2f} % | {difference:.4f} |")
    return lines


def format_seconds(times: dict[str, float] | None) -> str:
    """Median and range."""
    if times is None:
        return ""
    unit, scale = ("s", 1) if times["median"] >= 1 else ("ms", 1e3)
    median, least, most = (f"{times[key] * scale:.3g}" for key in ("median", "min", "max"))
    return f"{median} {unit} ({least}–{most})"


def draw_plots(results: dict[str, dict[str, Any]], folder: Path) -> None:
    """Time and memory against the number of classes, a line for each kind of point."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("benchmark.py: no plots without matplotlib: pip install '.[benchmark]'", file=sys.stderr)
        return
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results.values():
        if "error" not in result and result["task"] == "segment":
            lines[
                str(Point(**{key: result[key] for key in Point.__annotations__})).replace(f" T={result['classes']}", "")
            ].append(result)
    for quantity, label in (("time", "seconds, whole forward"), ("memory", "peak memory, GiB")):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel="classes T", ylabel=label, xscale="log", yscale="log")
        for name, line in sorted(lines.items()):
            line.sort(key=lambda result: result["classes"])
            values = [
                result["seconds"]["whole"]["median"] if quantity == "time" else result["peak_memory_gib"]
                for result in line
            ]
            axes.plot([result["classes"] for result in line], values, marker="o", label=name.removeprefix("segment "))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(folder / f"{quantity}.png", dpi=120)


if __name__ == "__main__":
    main()
