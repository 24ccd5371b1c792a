"""Time and memory of SED on your machine, as a user gets them: `python scripts/benchmark.py --output DIR`.

Every point of the sweep (classes, resolution, data type, ...) runs in a process of its own, whose peak memory is its
own, too: `from_pretrained`, the processor, one call of the model, post-processing. Points that `results.json` in the
output folder holds are not measured again, so that a sweep can be continued and extended. The weights are random, and
so is the image, but with a model folder they are its weights, a generated scene, and the names of its classes and of
others. Three tables are printed instead of a sweep: --trace, --compile, --loader.
"""

import argparse
import itertools
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
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
from sed_hf.data.transforms import TrainingTransform
from sed_hf.data.vocabularies import load_vocabulary
from sed_hf.evaluation.environment import describe_environment
from sed_hf.inference.class_embeddings import ClassEmbeddingCache, encode_classes
from sed_hf.terminal import positive_integer, progress_bar, say
from sed_hf.training.data import TrainingSamples
from sed_hf.training.optimizer import enable_gradient_checkpointing
from sed_hf.utils import atomic_path, write_file

VARIANTS = {"base": "convnext_base_w_320", "large": "convnext_large_d_320"}
PEERS = ("clipseg", "sam3")
IMAGE_SIZE = (853, 640)  # width and height of what is segmented
PLAIN_DECODER = Path(__file__).parents[1] / "tests" / "plain_decoder.py"
COMPILE_MODES = ("eager", "torch.compile(model)", "model.compile_decoder()")


@dataclass(frozen=True)
class Point:
    """One point of the sweep; its text is its name in `results.json`."""

    task: str  # "segment", "train" (a step with gradient checkpointing) or "text" (class names only)
    model: str  # "base", "large", a model folder, whose weights are then used, or one of `PEERS`
    decoder: str  # "fast" is that of the package, "plain" that of the tests
    classes: int
    size: int  # height and width of the network's input
    dtype: str
    topk: int  # early rejection; 0 is dense
    batch_size: int

    def __str__(self) -> str:
        name = f"{self.task} {self.model} {self.decoder} T={self.classes} {self.size} {self.dtype}"
        return f"{name} k={self.topk} B={self.batch_size}"


def main() -> None:
    """Measure what is not measured yet, and write the report after each point."""
    arguments = parse_arguments()
    if arguments.point:
        print(json.dumps(measure(Point(**json.loads(arguments.point)), arguments)))
    elif arguments.compile_mode:
        print(json.dumps(time_compiled(arguments.compile_mode, arguments)))
    elif arguments.trace:
        print(trace_table(arguments))
    elif arguments.compile:
        print(compile_table(arguments))
    elif arguments.loader:
        print(loader_table(arguments))
    else:
        sweep(arguments)


def parse_arguments() -> argparse.Namespace:
    """The options; each list is swept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder for the report")
    parser.add_argument("--tasks", nargs="+", default=["segment"], choices=["segment", "train", "text"])
    parser.add_argument("--models", nargs="+", default=["base"], metavar="M", help="base, large or a model folder")
    parser.add_argument("--peers", action="store_true", help="CLIPSeg and SAM 3 of transformers, with random weights")
    parser.add_argument("--decoders", nargs="+", default=["fast", "plain"], choices=["fast", "plain"])
    parser.add_argument("--classes", nargs="+", type=positive_integer, default=[20, 150, 459], metavar="T")
    parser.add_argument("--sizes", nargs="+", type=int, default=[768], metavar="PIXELS", help="multiples of 32")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--topk", nargs="+", type=int, default=[0], metavar="K", help="early rejection; 0 is dense")
    parser.add_argument("--batch-sizes", nargs="+", type=positive_integer, default=[1], metavar="B")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--repeats", type=positive_integer, default=3, help="measurements after a first one that does not count"
    )
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--trace", action="store_true", help="what a GPU would be asked for, counted without one")
    table.add_argument("--compile", action="store_true", help="time to compile and to run, at several sizes")
    table.add_argument("--loader", action="store_true", help="training images that one worker loads in a second")
    parser.add_argument("--point", help=argparse.SUPPRESS)  # the process of one point
    parser.add_argument("--compile-mode", help=argparse.SUPPRESS)  # the process of one way to compile
    arguments = parser.parse_args()
    if wrong := [size for size in arguments.sizes if size < 32 or size % 32]:
        parser.error(f"--sizes {wrong[0]}: expected a multiple of 32")
    return arguments


def sweep(arguments: argparse.Namespace) -> None:
    """Measure the points that are not in the report yet, and write it after each."""
    results_file = arguments.output / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    points = {str(point): point for point in plan(arguments)}
    for name in progress_bar([name for name in points if name not in results], desc="Measuring", unit="point"):
        point = asdict(points[name])
        results[name] = point | run_in_process_of_its_own(["--point", json.dumps(point)], arguments)
        write_file(results_file, json.dumps(results, indent=1) + "\n")
        write_file(arguments.output / "results.md", to_markdown(results))
    print(to_markdown(results))


def plan(arguments: argparse.Namespace) -> Iterator[Point]:
    """All points that can be measured: only segmentation by the package's decoder has rejection."""
    for values in itertools.product(
        arguments.tasks, arguments.models, arguments.decoders, arguments.classes, arguments.sizes, arguments.dtypes,
        arguments.topk, arguments.batch_sizes,
    ):  # fmt: skip
        point = Point(*values)
        if point.topk == 0 or (point.task == "segment" and point.decoder == "fast"):
            yield point
    if arguments.peers:
        for model, classes, dtype in itertools.product(PEERS, arguments.classes, arguments.dtypes):
            yield Point("segment", model, "", classes, 0, dtype, 0, 1)


def run_in_process_of_its_own(options: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """What this script prints as JSON with further options; or the last line of the error, such as lack of memory."""
    options = [*options, "--device", arguments.device, "--repeats", str(arguments.repeats)]
    command = [sys.executable, __file__, *options, "--output", str(arguments.output)]
    # What was compiled before would make compiling look fast.
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last_line = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    say(f"{options[1]}: {last_line}")
    return {"error": last_line}


# One point -----------------------------------------------------------------------------------------------------------


def measure(point: Point, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds (median, minimum and maximum of the repeats) of each part, and the peak memory in GiB."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device(arguments.device)
    stopwatch = Stopwatch(device)
    if point.model in PEERS:
        facts = time_peer(point, device, stopwatch, arguments.repeats)
    else:
        folder = model_folder(point.model, arguments.output)
        task = {"segment": time_segmentation, "train": time_training_step, "text": time_text}[point.task]
        facts = task(point, folder, device, stopwatch, arguments.repeats)
    return {
        "seconds": {
            name: {"median": statistics.median(times), "min": min(times), "max": max(times)}
            for name, times in stopwatch.seconds().items()
        },
        "peak_memory_gib": peak_memory(device),
        **facts,
        "environment": {**describe_environment(device), "threads": torch.get_num_threads()},
    }


def model_folder(name: str, output: Path) -> Path:
    """A model folder; that of a variant gets random weights, once."""
    if name not in VARIANTS:
        return Path(name)
    folder = output / "models" / name
    if not folder.exists():
        config = config_from_open_clip(VARIANTS[name])
        with atomic_path(folder) as path:
            SEDForSemanticSegmentation(config).save_pretrained(path)
            build_processor(config).save_pretrained(path)
    return folder


def load(point: Point, folder: Path, device: torch.device) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """A model as a user loads it."""
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

    def forward(self, cost_map: Any, encoder_hidden_states: Any, *_: Any) -> SEDSemanticSegmentationOutput:
        """What the package's decoder returns."""
        plain = self.decode(self.decoder, *cost_map, encoder_hidden_states)
        return SEDSemanticSegmentationOutput(logits=plain.logits, aux_logits=tuple(plain.aux_logits))


@torch.inference_mode()
def time_segmentation(
    point: Point, folder: Path, device: torch.device, stopwatch: "Stopwatch", repeats: int
) -> dict[str, Any]:
    """A batch of images to label maps."""
    model, processor = load(point, folder, device)
    images, class_embeddings = make_inputs(point, model, processor)
    stopwatch.watch(model, "forward")
    stopwatch.watch(model.image_encoder, "image encoder")
    stopwatch.watch(model.decoder, "decoder")
    facts: dict[str, Any] = {}
    for repeat in range(repeats + 1):
        with stopwatch.time("whole"):
            with stopwatch.time("processor"):
                inputs = processor(images=images, return_tensors="pt").to(device)
            outputs = model(**inputs, class_embeddings=class_embeddings, early_rejection_topk=point.topk)
            with stopwatch.time("post-processing"):
                sizes = [IMAGE_SIZE[::-1]] * point.batch_size
                processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        if outputs.kept_classes is not None:
            facts["kept_classes"] = outputs.kept_classes.sum(-1).float().mean(0).tolist()
        if repeat == 0:
            stopwatch.restart()
        del inputs, outputs
    facts["peak_memory_gib"] = peak_memory(device)
    if point.dtype != "float32":
        stopwatch.stop()
        facts |= compare_with_float32(point, folder, model, processor)
    return facts


def compare_with_float32(
    point: Point, folder: Path, model: SEDForSemanticSegmentation, processor: SEDProcessor
) -> dict[str, float]:
    """What a lower precision costs: the share of pixels with the label of float32, and the largest difference."""
    images, class_embeddings = make_inputs(point, model, processor)
    exact = SEDForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32).to(model.device).eval()
    inputs = processor(images=images, return_tensors="pt").to(model.device)
    low, high = (
        each(**inputs, class_embeddings=class_embeddings, early_rejection_topk=point.topk).all_logits().float()
        for each in (model, exact)
    )
    return {
        "same_label_as_float32": (low.argmax(1) == high.argmax(1)).float().mean().item(),
        "largest_difference_of_a_probability": (low.sigmoid() - high.sigmoid()).abs().max().item(),
    }


def time_training_step(
    point: Point, folder: Path, device: torch.device, stopwatch: "Stopwatch", repeats: int
) -> dict[str, Any]:
    """Forward, backward and optimizer step, with gradient checkpointing and the text encoder frozen."""
    model, processor = load(point, folder, device)
    enable_gradient_checkpointing(model)
    images, class_embeddings = make_inputs(point, model, processor)
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"].to(device)
    step = training_step(model, model, pixel_values, class_embeddings)
    for _ in range(repeats):  # a step takes so long that a first one is like any other
        with stopwatch.time("whole"):
            step()
    return {}


def training_step(
    model: SEDForSemanticSegmentation, call: Callable[..., Any], pixel_values: Tensor, class_embeddings: Tensor
) -> Callable[[], None]:
    """A training step, by `call`, the model or what it was compiled to."""
    model.train().text_encoder.requires_grad_(False)
    labels = torch.zeros(pixel_values[:, 0].shape, device=model.device, dtype=torch.int64)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def step() -> None:
        call(pixel_values, class_embeddings=class_embeddings, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.01)
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.inference_mode()
def time_text(point: Point, folder: Path, device: torch.device, stopwatch: "Stopwatch", repeats: int) -> dict[str, Any]:
    """The first T names of ade20k_847 in all templates; "plain" pads every prompt to the full length."""
    model, processor = load(Point(**{**asdict(point), "decoder": "fast"}), folder, device)
    names = load_vocabulary("ade20k_847")[: point.classes]
    inputs = processor(text=names, padding="max_length", return_tensors="pt").to(device)
    prompts = inputs["input_ids"].flatten(0, 1)
    for _ in range(repeats):
        with stopwatch.time("whole"):
            if point.decoder == "plain":
                for batch in prompts.split(256):
                    model.text_encoder(input_ids=batch)
            else:
                model.get_class_embeddings(**inputs)
    return {"prompts": len(prompts)}


@torch.inference_mode()
def time_peer(point: Point, device: torch.device, stopwatch: "Stopwatch", repeats: int) -> dict[str, Any]:
    """One image with T names by a model that transformers ships, with random weights; its text is encoded before."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, Sam3Config, Sam3Model

    dtype = getattr(torch, point.dtype)
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
        prompts = torch.randint(1, 40000, (point.classes, 8), device=device)
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
    return {}


def make_inputs(
    point: Point, model: SEDForSemanticSegmentation, processor: SEDProcessor
) -> tuple[list[Image.Image], Tensor]:
    """Images, and class embeddings (T, P, D)."""
    if point.model in VARIANTS:
        noise = torch.randint(256, (*IMAGE_SIZE[::-1], 3), dtype=torch.uint8).numpy()
        return [Image.fromarray(noise)] * point.batch_size, random_class_embeddings(point.classes, model)
    dataset = SceneDataset("test", point.batch_size, size=point.size)
    scenes = [dataset[index]["image"] for index in range(point.batch_size)]
    names = [*scene_vocabulary(), *distractors(scene_vocabulary(), ["pascal_context_459", "ade20k_847"])]
    if point.classes > len(names):
        raise ValueError(f"--classes {point.classes}: expected at most {len(names)} with a model folder")
    return scenes, encode_classes(model, processor, names[: point.classes], ClassEmbeddingCache())


def random_class_embeddings(num_classes: int, model: SEDForSemanticSegmentation) -> Tensor:
    """(T, P, D) of length 1, made in place so that memory holds them once."""
    shape = (num_classes, len(model.config.prompt_templates), model.config.projection_dim)
    class_embeddings = torch.empty(shape, device=model.device, dtype=model.dtype)
    for chunk in class_embeddings.split(100):
        chunk.copy_(F.normalize(torch.randn(chunk.shape, device=model.device), dim=-1))
    return class_embeddings


class Stopwatch:
    """Seconds of named parts; on a GPU by its own events, so that nothing waits for it until the end."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.hooks: list[Any] = []
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
        self.hooks += [
            module.register_forward_pre_hook(lambda *_: starts.append(self._mark())),
            module.register_forward_hook(lambda *_: self.marks[name].append((starts.pop(), self._mark()))),
        ]

    def stop(self) -> None:
        """Measure no module any more."""
        for hook in self.hooks:
            hook.remove()

    def seconds(self) -> dict[str, list[float]]:
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
    import resource  # which Windows lacks

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# Compilation and loading ---------------------------------------------------------------------------------------------


def compile_table(arguments: argparse.Namespace) -> str:
    """Seconds of the first call and of a later one, for each way to compile and each number of classes and size."""
    sweep = [*map(str, ("--models", *arguments.models, "--classes", *arguments.classes, "--sizes", *arguments.sizes))]
    columns = {mode: run_in_process_of_its_own(["--compile-mode", mode, *sweep], arguments) for mode in COMPILE_MODES}
    rows = [["", *(f"{mode}, {call}" for mode in COMPILE_MODES for call in ("first", "later"))]]
    for name in columns["eager"]:
        pairs = [column.get(name, [column.get("error", "–")] * 2) for column in columns.values()]
        rows.append([name, *(f"{cell:.2f} s" if isinstance(cell, float) else cell for pair in pairs for cell in pair)])
    return markdown_table(rows)


def time_compiled(mode: str, arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """Seconds of the first call and the median of later ones, in a process that compiles as it meets new sizes."""
    device, last_size = torch.device(arguments.device), arguments.sizes[-1]
    results: dict[str, list[Any]] = {}
    shapes = {
        "segment": [(classes, arguments.sizes[0]) for classes in arguments.classes]
        + [(arguments.classes[-1], size) for size in arguments.sizes[1:]],
        "train": [(arguments.classes[0] + more, last_size) for more in (0, 10)],
    }
    for task in shapes:
        torch.compiler.reset()
        point = Point(task, arguments.models[0], "fast", 0, last_size, "float32", 0, 1)
        model, _ = load(point, model_folder(point.model, arguments.output), device)
        call: Callable = torch.compile(model) if mode == "torch.compile(model)" else model
        if mode == "model.compile_decoder()":
            model.compile_decoder(dynamic=task == "segment")
        for classes, size in shapes[task]:
            pixel_values = torch.randn(1, 3, size, size, device=device)
            class_embeddings = random_class_embeddings(classes, model)
            step: Callable = partial(call, pixel_values, class_embeddings=class_embeddings)
            if task == "train":
                step = training_step(model, call, pixel_values, class_embeddings)
            stopwatch = Stopwatch(device)
            try:
                with torch.set_grad_enabled(task == "train"):
                    for _ in range(arguments.repeats + 1):
                        with stopwatch.time("call"):
                            step()
                first, *later = stopwatch.seconds()["call"]
                results[f"{task} T={classes} {size}"] = [first, statistics.median(later)]
            except torch._dynamo.exc.TorchDynamoException as error:  # the other rows still say something
                results[f"{task} T={classes} {size}"] = [type(error).__name__] * 2
    return results


class StoredScenes:
    """A generated scene as a data set stores images, as a JPEG and a PNG of 640×480 pixels, again and again."""

    def __init__(self) -> None:
        scene = SceneDataset("train", 1, size=640)[0]
        label = Image.fromarray(np.asarray(scene["label"]).astype(np.uint8))
        self.files = [BytesIO(), BytesIO()]
        for image, file, kind in zip((scene["image"], label), self.files, ("JPEG", "PNG"), strict=True):
            image.crop((0, 0, 640, 480)).save(file, kind)

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = (Image.open(file) for file in self.files)
        return {"image": image.convert("RGB"), "label": label, "file_name": str(index)}


def loader_table(arguments: argparse.Namespace) -> str:
    """Images of 768×768 that one worker of the training loader prepares in a second."""
    rows = [["augmentation", "images a second of a worker"]]
    for name, color_jitter in (("all", True), ("without colour jitter", False)):
        transform = TrainingTransform(768, 2666, 768, color_jitter, horizontal_flip=True, ignore_index=255)
        samples = TrainingSamples(StoredScenes(), 1000, seed=0, transform=transform)
        start, count = time.perf_counter(), 20 * arguments.repeats
        for position in range(count):
            samples[position]
        rows.append([name, f"{count / (time.perf_counter() - start):.1f}"])
    return markdown_table(rows)


# Trace ---------------------------------------------------------------------------------------------------------------


class Trace(TorchDispatchMode):
    """Counts the operations that are no views, the bytes that they read and write, and those with tensors on the host.

    Bytes are counted without caches, so that they compare versions of the code rather than predict milliseconds.
    """

    MAKE_NOTHING = frozenset({
        "_unsafe_view", "device", "empty", "empty_like", "empty_strided", "is_same_size", "lift_fresh", "new_empty",
        "new_empty_strided",
    })  # fmt: skip

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
        if name not in self.MAKE_NOTHING and not func.is_view:
            self.kernels[name] += 1
            self.num_bytes += sum(stored_bytes(tensor) for tensor in tensors.values())
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in written)
        return outputs


def stored_bytes(tensor: Tensor) -> int:
    """The bytes that reading a tensor takes: what is expanded is read once."""
    lengths = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return torch.Size(lengths).numel() * tensor.element_size()


def trace(task: str, classes: int, dtype: torch.dtype, batch_size: int = 1, size: int = 768) -> Trace:
    """What a forward of SED-B, with its loss for the task "train", asks of a GPU; needs none.

    Its tensors hold no numbers: where the code would wait for one, the trace ends with an error.
    """
    with torch.device("meta"):
        model = SEDForSemanticSegmentation(SEDConfig()).to(dtype)
    counts = Trace()
    with FakeTensorMode(allow_non_fake_inputs=True), pretended_gpu():
        model = model.to_empty(device="cuda").train(task == "train")
        model.text_encoder.requires_grad_(False)
        pixel_values = torch.empty(batch_size, 3, size, size, device="cuda", dtype=dtype)
        shape = (classes, len(model.config.prompt_templates), model.config.projection_dim)
        class_embeddings = torch.empty(shape, device="cuda", dtype=dtype)
        labels = torch.zeros(batch_size, size, size, device="cuda", dtype=torch.int64) if task == "train" else None
        with torch.set_grad_enabled(task == "train"), counts:
            model(pixel_values, class_embeddings=class_embeddings, labels=labels)
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


def trace_table(arguments: argparse.Namespace) -> str:
    """The counts of each point."""
    rows = [["SED-B", "kernels", "GB", "operations with host tensors"]]
    for task, classes, dtype, batch_size, size in itertools.product(
        arguments.tasks, arguments.classes, arguments.dtypes, arguments.batch_sizes, arguments.sizes
    ):
        counts = trace(task, classes, getattr(torch, dtype), batch_size, size)
        name = f"{task} T={classes} {size} {dtype} B={batch_size}"
        rows.append([name, *map(str, (counts.kernels.total(), round(counts.num_bytes / 1e9, 1), counts.host.total()))])
    return markdown_table(rows)


# Report --------------------------------------------------------------------------------------------------------------


def to_markdown(results: dict[str, dict[str, Any]]) -> str:
    """A table of all points, with the machine and the versions."""
    lines = []
    environments = {json.dumps(result["environment"]) for result in results.values() if "error" not in result}
    for environment in map(json.loads, sorted(environments)):
        versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
        lines.append(f"{environment['hardware']}, {environment['threads']} threads; {versions}\n\n")
    parts = ("whole", "forward", "image encoder", "decoder", "post-processing")
    rows = [["point", *parts, "encoder times a class", "peak memory", "labels as in float32"]]
    for name, result in results.items():
        if "error" in result:
            rows.append([name, result["error"], *[""] * (len(rows[0]) - 2)])
            continue
        seconds, ratio, same = result["seconds"], "", ""
        if "decoder" in seconds:  # of as many images in both, so that the batch size cancels out
            encoder_times = seconds["decoder"]["median"] / seconds["image encoder"]["median"]
            ratio = f"{encoder_times / result['classes']:.4f}"
        if "same_label_as_float32" in result:
            same = f"{result['same_label_as_float32']:.2%}"
        cells = [format_seconds(seconds.get(part)) for part in parts]
        rows.append([name, *cells, ratio, f"{result['peak_memory_gib']:.2f} GiB", same])
    return "".join(lines) + markdown_table(rows) + "\n"


def markdown_table(rows: list[list[str]]) -> str:
    """A table, the first row being its header."""
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def format_seconds(times: dict[str, float] | None) -> str:
    """Median and range."""
    if times is None:
        return ""
    unit, scale = ("s", 1) if times["median"] >= 1 else ("ms", 1e3)
    median, least, most = (f"{times[key] * scale:.3g}" for key in ("median", "min", "max"))
    return f"{median} {unit} ({least}–{most})"


if __name__ == "__main__":
    main()
