"""Time and memory of SED on your machine, as a user gets them: `python scripts/benchmark.py --output DIR`.

Every point of the sweep (classes, resolution, data type, ...) runs in a process of its own, whose peak memory is its
own, too: `from_pretrained`, the processor, one call of the model, post-processing. Points that `results.json` in the
output folder holds are not measured again, so that a sweep can be continued and extended. The weights are random, and
so is the image, but with a model folder they are its weights, a generated scene, and the names of its classes and of
others.

Models that transformers ships, `clipseg` and `sam3`, join with random weights (`--models base clipseg sam3`); `--trace`
counts what a GPU would be asked to do, without one.
"""

import argparse
import itertools
import json
import platform
import resource
import runpy
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
PEERS = ("clipseg", "sam3")
IMAGE_SIZE = (853, 640)  # width and height of what is segmented
PLAIN_DECODER = Path(__file__).parents[1] / "tests" / "plain_decoder.py"


@dataclass(frozen=True)
class Point:
    """One point of the sweep; its text is its name in `results.json`.

    Attributes:
        task: "segment", "train" (one step with gradient checkpointing) or "text" (class names only).
        model: "base", "large", a model folder, whose weights are then used, or one of `PEERS`.
        decoder: "fast" is that of the package, "plain" that of the tests.
        classes: T.
        size: Height and width of the network's input.
        dtype: Of weights and activations.
        topk: Early rejection; 0 is dense.
        batch_size: Images at a time.
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
        if self.model in PEERS:
            return f"{self.task} {self.model} T={self.classes} {self.dtype}"
        name = f"{self.task} {self.model} {self.decoder} T={self.classes} {self.size} {self.dtype}"
        return f"{name} k={self.topk} B={self.batch_size}{' compiled' if self.compiled else ''}"


def main() -> None:
    """Measure what is not measured yet, and write the report after each point."""
    arguments = parse_arguments()
    if arguments.point:
        print(json.dumps(measure(Point(**json.loads(arguments.point)), arguments)))
        return
    if arguments.trace:
        print_traces(arguments)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    results_file = arguments.output / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    points = {str(point): point for point in plan(arguments)}
    for name in progress_bar([name for name in points if name not in results], desc="Measuring", unit="point"):
        results[name] = run_in_process_of_its_own(points[name], arguments)
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
    parser.add_argument(
        "--models", nargs="+", default=["base"], metavar="M", help="base, large, a model folder, clipseg or sam3"
    )
    parser.add_argument("--decoders", nargs="+", default=["fast", "plain"], choices=["fast", "plain"])
    parser.add_argument("--classes", nargs="+", type=int, default=[20, 150, 459], metavar="T")
    parser.add_argument("--sizes", nargs="+", type=int, default=[768], metavar="PIXELS", help="multiples of 32")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--topk", nargs="+", type=int, default=[0], metavar="K", help="early rejection; 0 is dense")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1], metavar="B")
    parser.add_argument("--compile", nargs="+", choices=["no", "yes"], default=["no"], help="torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3, help="measurements after a first one that does not count")
    parser.add_argument("--trace", action="store_true", help="count kernels, bytes and host tensors instead of timing")
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
    """All points that can be measured: only segmentation has rejection, and peers only segment."""
    for values in itertools.product(
        arguments.tasks, arguments.models, arguments.decoders, arguments.classes, arguments.sizes, arguments.dtypes,
        arguments.topk, arguments.batch_sizes, [choice == "yes" for choice in arguments.compile],
    ):  # fmt: skip
        point = Point(*values)
        if point.task == "segment" or (point.topk == 0 and point.model not in PEERS):
            yield point


def run_in_process_of_its_own(point: Point, arguments: argparse.Namespace) -> dict[str, Any]:
    """What [`measure`] gives; or the last line of the error, such as running out of memory."""
    options = ["--point", json.dumps(asdict(point)), "--device", arguments.device, "--repeats", str(arguments.repeats)]
    command = [sys.executable, __file__, *options, "--output", str(arguments.output)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last_line = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    say(f"{point}: {last_line}")
    return {**asdict(point), "error": last_line}


# One point -----------------------------------------------------------------------------------------------------------


def measure(point: Point, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds (median, minimum and maximum of the repeats) of each part, and the peak memory in GiB."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device(arguments.device)
    if point.model in PEERS:
        task = time_peer
    else:
        save_random_model(point.model, arguments.output)
        task = {"segment": time_segmentation, "train": time_training_step, "text": time_text}[point.task]
    seconds, facts = task(point, arguments.output / "models" / point.model, device, arguments.repeats)
    return {
        **asdict(point),
        "seconds": {
            name: {"median": statistics.median(times), "min": min(times), "max": max(times)}
            for name, times in seconds.items()
        },
        "peak_memory_gib": facts.pop("peak_memory_gib", None) or peak_memory(device),
        **facts,
        "environment": {**describe_environment(device), "threads": torch.get_num_threads()},
    }


Times = dict[str, list[float]]


def save_random_model(variant: str, output: Path) -> None:
    """Write the model folder of a variant with random weights, once."""
    folder = output / "models" / variant
    if variant not in VARIANTS or folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = config_from_open_clip(VARIANTS[variant])
    with atomic_path(folder) as path:
        SEDForSemanticSegmentation(config).save_pretrained(path)
        build_processor(config).save_pretrained(path)


def load(point: Point, folder: Path, device: torch.device) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """A model as a user loads it."""
    folder = folder if point.model in VARIANTS else Path(point.model)
    model = SEDForSemanticSegmentation.from_pretrained(folder, dtype=getattr(torch, point.dtype)).to(device).eval()
    processor = SEDProcessor.from_pretrained(folder, trust_remote_code=False)
    processor.image_processor.input_size = {"height": point.size, "width": point.size}
    if point.decoder == "plain":
        model.decoder = PlainDecoder(model.decoder)
    return model, processor


class PlainDecoder(nn.Module):
    """The decoder of the tests, one operation of the paper after the other, in the place of the package's own."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.decode = runpy.run_path(str(PLAIN_DECODER))["plain_decode"]

    def forward(
        self, cost_map: Any, encoder_hidden_states: Any, early_rejection_topk: int | None = None, *_: Any
    ) -> SEDSemanticSegmentationOutput:
        """What the package's decoder returns."""
        plain = self.decode(self.decoder, *cost_map, encoder_hidden_states, early_rejection_topk)
        output = SEDSemanticSegmentationOutput(logits=plain.logits, aux_logits=tuple(plain.aux_logits))
        if early_rejection_topk is not None:
            output.logit_classes = plain.kept[-1]
            num_classes = len(cost_map.class_embeddings)
            output.kept_classes = torch.zeros(1, len(plain.kept), num_classes, dtype=torch.bool)
            for stage, classes in enumerate(plain.kept):
                output.kept_classes[0, stage, classes] = True
        return output


@torch.inference_mode()
def time_segmentation(point: Point, folder: Path, device: torch.device, repeats: int) -> tuple[Times, dict[str, Any]]:
    """A batch of images to label maps."""
    model, processor = load(point, folder, device)
    images, class_embeddings = make_inputs(point, model, processor)
    call: Callable = torch.compile(model) if point.compiled else model
    stopwatch = Stopwatch(device)
    if not point.compiled:
        stopwatch.watch(model.get_submodule(image_encoder_name(model)), "image encoder")
        stopwatch.watch(model.decoder, "decoder")
    facts: dict[str, Any] = {}
    for repeat in range(repeats + 1):
        with stopwatch.time("whole"):
            with stopwatch.time("processor"):
                inputs = processor(images=images, return_tensors="pt").to(device, model.dtype)
            outputs = call(**inputs, class_embeddings=class_embeddings, early_rejection_topk=point.topk or None)
            with stopwatch.time("post-processing"):
                sizes = [IMAGE_SIZE[::-1]] * point.batch_size
                processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        if outputs.kept_classes is not None:
            facts["kept_classes"] = outputs.kept_classes.sum(-1).float().mean(0).tolist()
        if repeat == 0:
            facts["first_seconds"] = stopwatch.seconds()["whole"][0]  # with warming up and compiling
            stopwatch.restart()
        del inputs, outputs
    facts["peak_memory_gib"] = peak_memory(device)
    if point.dtype != "float32":
        facts |= compare_with_float32(point, folder, model, processor)
    return stopwatch.seconds(), facts


def image_encoder_name(model: SEDForSemanticSegmentation) -> str:
    """Where a model holds its image encoder."""
    return next(name for name, _ in model.named_modules() if name.endswith("image_encoder"))


def compare_with_float32(
    point: Point, folder: Path, model: SEDForSemanticSegmentation, processor: SEDProcessor
) -> dict[str, float]:
    """What a lower precision costs: the share of pixels with the label of float32, and the largest difference."""
    images, class_embeddings = make_inputs(point, model, processor)
    inputs = processor(images=images, return_tensors="pt").to(model.device)
    low = model(
        inputs["pixel_values"].to(model.dtype), class_embeddings=class_embeddings, early_rejection_topk=point.topk
    )
    exact = SEDForSemanticSegmentation.from_pretrained(folder if point.model in VARIANTS else point.model)
    exact = exact.to(model.device).eval()
    high = exact(**inputs, class_embeddings=class_embeddings.float(), early_rejection_topk=point.topk)
    low, high = low.all_logits().float(), high.all_logits()
    return {
        "same_label_as_float32": (low.argmax(1) == high.argmax(1)).float().mean().item(),
        "largest_difference_of_a_probability": (low.sigmoid() - high.sigmoid()).abs().max().item(),
    }


def time_training_step(point: Point, folder: Path, device: torch.device, repeats: int) -> tuple[Times, dict[str, Any]]:
    """Forward, backward and optimizer step, with gradient checkpointing and the text encoder frozen."""
    model, processor = load(point, folder, device)
    enable_gradient_checkpointing(model.train())
    model.get_submodule(image_encoder_name(model).replace("image", "text")).requires_grad_(False)
    images, class_embeddings = make_inputs(point, model, processor)
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"].to(device, model.dtype)
    labels = torch.randint(point.classes, (point.batch_size, point.size, point.size), device=device)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-6)
    step: Callable = torch.compile(model) if point.compiled else model
    stopwatch = Stopwatch(device)
    for _ in range(repeats):  # a step takes so long that a first one is like any other
        with stopwatch.time("whole"):
            with stopwatch.time("forward"):
                loss = step(pixel_values, class_embeddings=class_embeddings, labels=labels).loss
            with stopwatch.time("backward"):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return stopwatch.seconds(), {}


@torch.inference_mode()
def time_text(point: Point, folder: Path, device: torch.device, repeats: int) -> tuple[Times, dict[str, Any]]:
    """The first T names of ade20k_847 in all templates; "plain" pads every prompt to the full length."""
    model, processor = load(Point(**{**asdict(point), "decoder": "fast"}), folder, device)
    names = load_vocabulary("ade20k_847")[: point.classes]
    inputs = processor(text=names, padding="max_length", return_tensors="pt").to(device)
    prompts = inputs["input_ids"].flatten(0, 1)
    text_encoder = model.get_submodule(image_encoder_name(model).replace("image", "text"))
    stopwatch = Stopwatch(device)
    for _ in range(repeats):
        with stopwatch.time("whole"):
            if point.decoder == "plain":
                for batch in prompts.split(256):
                    text_encoder(input_ids=batch)
            else:
                model.get_class_embeddings(**inputs)
    return stopwatch.seconds(), {"prompts": len(prompts)}


@torch.inference_mode()
def time_peer(point: Point, folder: Path, device: torch.device, repeats: int) -> tuple[Times, dict[str, Any]]:
    """One image with T names by a model that transformers ships, with random weights; its text is encoded before."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, Sam3Config, Sam3Model

    dtype = getattr(torch, point.dtype)
    stopwatch = Stopwatch(device)
    prompts = torch.randint(1, 40000, (point.classes, 8), device=device)
    if point.model == "clipseg":
        clipseg = CLIPSegForImageSegmentation(CLIPSegConfig()).to(device, dtype).eval()
        pixel_values = torch.randn(1, 3, 352, 352, device=device, dtype=dtype)
        conditions = torch.randn(point.classes, clipseg.config.projection_dim, device=device, dtype=dtype)

        def segment() -> None:  # it takes an image for each name
            for part in conditions.split(10):
                clipseg(pixel_values=pixel_values.expand(len(part), -1, -1, -1), conditional_embeddings=part)

    else:
        sam3 = Sam3Model(Sam3Config()).to(device, dtype).eval()
        size = sam3.config.vision_config.image_size
        pixel_values = torch.randn(1, 3, size, size, device=device, dtype=dtype)
        texts = [sam3.get_text_features(input_ids=prompt[None], return_dict=True) for prompt in prompts]

        def segment() -> None:
            vision = sam3.get_vision_features(pixel_values=pixel_values)
            for text in texts:
                sam3(vision_embeds=vision, text_embeds=text)

    for repeat in range(repeats + 1):
        with stopwatch.time("whole"):
            segment()
        if repeat == 0:
            stopwatch.restart()
    return stopwatch.seconds(), {}


def make_inputs(
    point: Point, model: SEDForSemanticSegmentation, processor: SEDProcessor
) -> tuple[list[Image.Image], Tensor]:
    """Images, and class embeddings (T, P, D)."""
    if point.model in VARIANTS:
        noise = torch.randint(256, (*IMAGE_SIZE[::-1], 3), dtype=torch.uint8).numpy()
        return [Image.fromarray(noise)] * point.batch_size, random_class_embeddings(point, model)
    dataset = SceneDataset("test", point.batch_size, size=point.size)
    scenes = [dataset[index]["image"] for index in range(point.batch_size)]
    names = [*scene_vocabulary(), *distractors(scene_vocabulary(), ["pascal_context_459", "ade20k_847"])]
    if point.classes > len(names):
        raise ValueError(f"--classes {point.classes}: expected at most {len(names)} with a model folder")
    return scenes, encode_classes(model, processor, names[: point.classes], ClassEmbeddingCache())


def random_class_embeddings(point: Point, model: SEDForSemanticSegmentation) -> Tensor:
    """(T, P, D) of length 1, made in place so that memory holds them once."""
    shape = (len(model.config.prompt_templates), model.config.projection_dim)
    class_embeddings = torch.empty(point.classes, *shape, device=model.device, dtype=model.dtype)
    for chunk in class_embeddings.split(100):
        chunk.copy_(F.normalize(torch.randn(chunk.shape, device=model.device), dim=-1))
    return class_embeddings


class Stopwatch:
    """Seconds of named parts; on a GPU by its own events, so that nothing waits for it until the end."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Forget what was measured."""
        self.marks: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Measure a block."""
        start = self._mark()
        yield
        self.marks[name].append((start, self._mark()))

    def watch(self, module: nn.Module, name: str) -> None:
        """Measure each call of a module."""
        starts: list[Any] = []
        module.register_forward_pre_hook(lambda *_: starts.append(self._mark()))
        module.register_forward_hook(lambda *_: self.marks[name].append((starts.pop(), self._mark())))

    def seconds(self) -> Times:
        """All measurements of each part."""
        if not self.is_cuda:
            return {name: [end - start for start, end in pairs] for name, pairs in self.marks.items()}
        torch.cuda.synchronize()
        return {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in self.marks.items()}

    def _mark(self) -> Any:
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_memory(device: torch.device) -> float:
    """The most memory in GiB that this process held: on the device, or of a CPU process as a whole."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# Trace ---------------------------------------------------------------------------------------------------------------


class Trace(TorchDispatchMode):
    """Counts the operations that are no views, the bytes that they read and write, and those with tensors on the host.

    Bytes are counted without caches, so that they compare versions of the code rather than predict milliseconds.
    """

    # fmt: off
    VIEWS = frozenset({
        "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "device", "diagonal", "empty",
        "empty_like", "empty_strided", "expand", "is_same_size", "lift_fresh", "narrow", "new_empty",
        "new_empty_strided", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
        "unbind", "unflatten", "unfold", "unsqueeze", "view",
    })
    # fmt: on

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.host: Counter[str] = Counter()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        written = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in [*tensors.values(), *written]):
            self.host[name] += 1
        if name.rstrip("_") not in self.VIEWS and not func.is_view:
            self.kernels[name] += 1
            self.num_bytes += sum(stored_bytes(tensor) for tensor in tensors.values())
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in written)
        return outputs


def stored_bytes(tensor: Tensor) -> int:
    """The bytes that reading a tensor takes: what is expanded is read once."""
    lengths = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return torch.Size(lengths).numel() * tensor.element_size()


def trace(task: str, classes: int, dtype: torch.dtype, batch_size: int = 1, size: int = 768) -> Trace:
    """What a forward of SED-B asks of a GPU, with the loss and backward for the task "train"; needs no GPU."""
    with torch.device("meta"):
        model = SEDForSemanticSegmentation(SEDConfig()).to(dtype)
    config = model.config
    counts = Trace()
    with FakeTensorMode(allow_non_fake_inputs=True), pretended_gpu():
        model = model.to_empty(device="cuda").train(task == "train")
        model.get_submodule(image_encoder_name(model).replace("image", "text")).requires_grad_(False)
        inputs = {
            "pixel_values": torch.empty(batch_size, 3, size, size, device="cuda", dtype=dtype),
            "class_embeddings": torch.empty(
                classes, len(config.prompt_templates), config.projection_dim, device="cuda", dtype=dtype
            ),
        }
        if task == "train":
            inputs["labels"] = torch.zeros(batch_size, size, size, device="cuda", dtype=torch.int64)
        with nullcontext() if task == "train" else torch.no_grad(), counts:
            outputs = model(**inputs)
            if task == "train":
                outputs.loss.backward()
    return counts


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let tensors be faked on a GPU that is not there."""
    current_device = torch.cuda.current_device
    torch.cuda.current_device = lambda: 0
    try:
        yield
    finally:
        torch.cuda.current_device = current_device


def print_traces(arguments: argparse.Namespace) -> None:
    """The counts of each point, as a table."""
    print("| point | kernels | GB | operations with host tensors |\n|---|---|---|---|")
    for task, classes, dtype, batch_size, size in itertools.product(
        arguments.tasks, arguments.classes, arguments.dtypes, arguments.batch_sizes, arguments.sizes
    ):
        counts = trace(task, classes, getattr(torch, dtype), batch_size, size)
        name = f"{task} base T={classes} {size} {dtype} B={batch_size}"
        print(f"| {name} | {counts.kernels.total()} | {counts.num_bytes / 1e9:.1f} | {counts.host.total()} |")


# Report --------------------------------------------------------------------------------------------------------------


def to_markdown(results: dict[str, dict[str, Any]]) -> str:
    """A table of all points, with the machine and the versions."""
    measured = [result for result in results.values() if "error" not in result]
    lines = []
    for machine in sorted({json.dumps(result["environment"], sort_keys=True) for result in measured}):
        environment = json.loads(machine)
        versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
        lines.append(f"{environment['hardware']}, {environment['threads']} threads; {versions}\n")
    parts = ("whole", "image encoder", "decoder", "post-processing")
    lines += [f"| point | {' | '.join(parts)} | encoder times a class | peak memory | labels as in float32 |"]
    lines += ["|---" * 8 + "|"]
    for name, result in results.items():
        if "error" in result:
            lines.append(f"| {name} | {result['error'].replace('|', '/')} |" + " |" * 6)
            continue
        seconds = result["seconds"]
        cells = [format_seconds(seconds.get(part)) for part in parts]
        ratio = ""
        if "decoder" in seconds:  # of as many images in both, so that the batch size cancels out
            encoder_times = seconds["decoder"]["median"] / seconds["image encoder"]["median"]
            ratio = f"{encoder_times / result['classes']:.4f}"
        same = f"{result['same_label_as_float32']:.2%}" if "same_label_as_float32" in result else ""
        cells += [ratio, f"{result['peak_memory_gib']:.2f} GiB", same]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
        print("benchmark.py: no plots without matplotlib: pip install matplotlib", file=sys.stderr)
        return
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, result in results.items():
        if "error" not in result and result["task"] == "segment":
            lines[name.replace(f" T={result['classes']}", "")].append(result)
    for quantity, label in (("time", "seconds, whole"), ("memory", "peak memory, GiB")):
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
