"""The training loop."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from .. import SEDForSemanticSegmentation, SEDProcessor
from ..conversion import build_processor, from_open_clip
from ..data.benchmarks import OWN_DATA, load_benchmark
from ..data.distractors import distractors
from ..data.scenes import SceneDataset
from ..evaluation import evaluate_benchmark, load_evaluation_set
from ..hub.load import load
from ..hub.save import push_hub_folder, save_hub_folder
from ..utils import atomic_path, require_file, short_error
from .alignment import TowerAlignment
from .checkpoints import (
    find_checkpoints,
    load_checkpoint,
    remove_incomplete,
    save_checkpoint,
    steps_done,
    unlogged_losses,
)
from .classes import TrainingClasses
from .data import build_training_samples, relabel, sample_vocabulary
from .optimizer import build_optimizer, build_schedule, enable_gradient_checkpointing, set_trainable
from .recipe import Recipe

LOG_FILE = "log.jsonl"


class NonFiniteLossError(RuntimeError):
    """The loss is not a number or infinite; the message gives the step and the files of the batch."""


def train(recipe: Recipe) -> Path:
    """Run a recipe, and return the Hub folder of the trained model.

    Raises:
        FileNotFoundError: There is no such model or data folder.
        ValueError: Images cannot be split evenly over processes and accumulation steps, or `output_dir` holds a run
            and `resume` is not set.
        NonFiniteLossError: The loss is not finite. A checkpoint is written first.
    """
    if recipe.data_dir is not None and not Path(recipe.data_dir).is_dir():
        raise FileNotFoundError(f"data_dir {recipe.data_dir}: expected a folder; there is none")
    output_dir = Path(recipe.output_dir)
    checkpoints = find_checkpoints(output_dir)
    if checkpoints and not recipe.resume:
        raise ValueError(f"output_dir: {output_dir} holds a run already; continue it with --resume, or choose another")
    accelerator = Accelerator(
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        mixed_precision=recipe.mixed_precision,
        log_with=recipe.tracker,
        project_dir=str(output_dir),
    )
    batch_size = images_per_batch(recipe, accelerator.num_processes)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe.allow_tf32
    set_seed(recipe.seed)

    dataset, class_names, ignore_index = load_training_data(recipe)
    model, processor = load_starting_model(recipe)
    model.config.ignore_index = ignore_index
    set_trainable(model, recipe)
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if recipe.distractor_vocabulary is not None:
        class_names = class_names + distractors(class_names, [recipe.distractor_vocabulary])
    classes = TrainingClasses(class_names, processor, model.to(accelerator.device))
    network: nn.Module = TowerAlignment(model) if recipe.objective == "alignment" else model
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe)

    start = steps_done(checkpoints[-1]) if checkpoints else 0
    samples = build_training_samples(dataset, recipe, ignore_index)
    dataloader = DataLoader(
        Subset(samples, range(start * recipe.images_per_step, len(samples))),
        batch_size=batch_size,
        num_workers=recipe.num_workers,
        persistent_workers=recipe.num_workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # or starting it would draw from the random state that a checkpoint restores
    )
    network, optimizer, dataloader = accelerator.prepare(network, optimizer, dataloader)
    accelerator.register_for_checkpointing(schedule)
    network.train()
    batches = iter(dataloader)
    if checkpoints:
        load_checkpoint(accelerator, checkpoints[-1])
    if accelerator.is_main_process:
        remove_incomplete(output_dir)

    evaluation_set = None
    if recipe.evaluate_on is not None:
        evaluation_set = load_evaluation_set(recipe.evaluate_on, recipe.evaluate_data_dir, recipe.evaluate_images)
    log = TrainingLog(accelerator, recipe, start, unlogged_losses(checkpoints[-1]) if checkpoints else [])
    if recipe.resume:
        accelerator.print(f"continuing after step {start}" if start else "no checkpoint to resume: starting at step 0")
    bar = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, disable=not accelerator.is_main_process)
    for step in bar:
        total_loss = torch.zeros((), device=accelerator.device)
        for part in range(recipe.gradient_accumulation_steps):
            batch = next(batches)
            with accelerator.accumulate(network):
                loss = compute_loss(network, batch, classes, recipe, ignore_index, seed=[recipe.seed, step, part])
                if not torch.isfinite(accelerator.gather(loss.detach())).all():
                    stop_at_non_finite_loss(accelerator, recipe, step, batch["file_name"], log.unlogged_losses())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(network.parameters(), recipe.max_grad_norm)
                optimizer.step()
                if accelerator.sync_gradients:
                    schedule.step()
                optimizer.zero_grad()
            total_loss += loss.detach() / recipe.gradient_accumulation_steps
        if values := log.record(step + 1, total_loss, grad_norm, schedule.get_last_lr()):
            bar.set_postfix(loss=f"{values['loss']:.4f}")
        if evaluation_set is not None and is_evaluation_due(step + 1, recipe):
            figures = evaluate_benchmark(network, processor, evaluation_set, progress_bar=f"step {step + 1}")
            log.write(step + 1, summary_figures(figures))
        if (step + 1) % recipe.checkpoint_every == 0 and step + 1 < recipe.steps:
            save_checkpoint(accelerator, output_dir, step + 1, recipe.keep_checkpoints, log.unlogged_losses())
    if start < recipe.steps:
        save_checkpoint(accelerator, output_dir, recipe.steps, recipe.keep_checkpoints)

    folder = output_dir / "model"
    state_dict = accelerator.get_state_dict(network)
    if accelerator.is_main_process:
        # The wrapper of the alignment objective puts "model." before each name.
        state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
        save_hub_folder(
            model.eval(),
            processor,
            folder,
            describe_run(recipe, accelerator.num_processes, log.last_line()),
            public_datasets(recipe),
            state_dict=state_dict,
            overwrite=True,
        )
        if recipe.push_to_hub is not None:
            push_hub_folder(folder, recipe.push_to_hub)
    accelerator.print(f"model written to {folder}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder


def images_per_batch(recipe: Recipe, num_processes: int) -> int:
    """Images that one process handles at once.

    Raises:
        ValueError: They cannot be split evenly.
    """
    parts = num_processes * recipe.gradient_accumulation_steps
    if recipe.images_per_step % parts:
        raise ValueError(
            f"images_per_step={recipe.images_per_step}: expected a multiple of {parts} ({num_processes} processes"
            f" × {recipe.gradient_accumulation_steps} accumulation steps)"
        )
    return recipe.images_per_step // parts


def load_training_data(recipe: Recipe) -> tuple[Any, list[str], int]:
    """The data set, its class names and its ignored label."""
    if recipe.dataset == "scenes":
        scenes = SceneDataset("train", recipe.steps * recipe.images_per_step, recipe.seed, recipe.crop_size)
        return scenes, scenes.class_names, 255
    assert recipe.data_dir is not None  # which the recipe has checked
    split = recipe.split or (None if recipe.dataset == OWN_DATA else "train")
    dataset = load_benchmark(recipe.dataset, recipe.data_dir, split)
    label = dataset.features["label"]
    return dataset, list(label.names), label.ignore_index


def load_starting_model(recipe: Recipe) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """The model that training starts from, and its processor."""
    if recipe.open_clip_variant is not None:
        model = from_open_clip(recipe.open_clip_variant, recipe.open_clip_pretrained)
        return model, build_processor(model.config)
    assert recipe.model is not None  # which the recipe has checked
    return load(recipe.model)


def compute_loss(
    network: nn.Module,
    batch: dict[str, Any],
    classes: TrainingClasses,
    recipe: Recipe,
    ignore_index: int,
    seed: list[int],
) -> Tensor:
    """The loss of a batch, with all classes or a sampled vocabulary."""
    labels, vocabulary = batch["labels"], None
    if recipe.classes_per_step is not None:
        num_classes = len(classes.names)
        sizes = (recipe.min_classes_per_step or recipe.classes_per_step, recipe.classes_per_step)
        vocabulary = sample_vocabulary(labels, num_classes, sizes, ignore_index, seed)
        labels = relabel(labels, vocabulary, num_classes, ignore_index)
    pixel_values = batch["pixel_values"].contiguous(memory_format=torch.channels_last)  # faster convolutions
    result = network(pixel_values=pixel_values, labels=labels, **classes.model_inputs(vocabulary))
    return result if isinstance(result, Tensor) else result.loss


def stop_at_non_finite_loss(
    accelerator: Accelerator, recipe: Recipe, step: int, files: list[str], losses: Sequence[Tensor]
) -> None:
    """Save what has been trained, with the losses that are not in the log yet, and stop."""
    folder = save_checkpoint(accelerator, Path(recipe.output_dir), step, recipe.keep_checkpoints, losses)
    raise NonFiniteLossError(
        f"the loss at step {step + 1} is not finite; process {accelerator.process_index} had {', '.join(files)}."
        f" The state before that step is in {folder}"
    )


class TrainingLog:
    """Loss, learning rate, gradient norm and throughput, to accelerate's tracker and to a JSON-lines file."""

    def __init__(self, accelerator: Accelerator, recipe: Recipe, start: int, losses: Sequence[float] = ()) -> None:
        self.accelerator = accelerator
        self.recipe = recipe
        self.path = Path(recipe.output_dir) / LOG_FILE
        self.losses = [torch.tensor(loss, device=accelerator.device) for loss in losses]
        self.num_timed = 0
        self.start_time = time.perf_counter()
        settings = {name: str(value) for name, value in asdict(recipe).items()}
        accelerator.init_trackers("train", config=settings)
        if accelerator.is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Lines that the interrupted run wrote after its last checkpoint will be written again.
            with atomic_path(self.path) as path:
                path.write_text("".join(f"{line}\n" for line in lines_until(self.path, start)))

    def record(
        self, step: int, loss: Tensor, grad_norm: Tensor, learning_rates: Sequence[float | Tensor]
    ) -> dict[str, float] | None:
        """Note a step; every `log_every` steps, write a line and return its values."""
        self.losses.append(loss)
        self.num_timed += 1
        if step % self.recipe.log_every and step != self.recipe.steps:
            return None
        now = time.perf_counter()
        mean_loss = self.accelerator.reduce(torch.stack(self.losses).mean(), reduction="mean")
        values = {
            "loss": mean_loss.item(),
            "learning_rate": float(max(learning_rates)),
            "grad_norm": float(grad_norm),
            "images_per_second": self.num_timed * self.recipe.images_per_step / (now - self.start_time),
        }
        self.losses, self.num_timed, self.start_time = [], 0, now
        self.write(step, values)
        return values

    def unlogged_losses(self) -> list[Tensor]:
        """The losses since the last line, each the mean over processes."""
        if self.losses:
            self.losses = list(self.accelerator.reduce(torch.stack(self.losses), reduction="mean").unbind())
        return self.losses

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write values of a step."""
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps({"step": step, **values}) + "\n")
            except OSError as error:  # which names no file when the disk is full
                raise OSError(error.errno, error.strerror, str(self.path)) from error

    def last_line(self) -> dict[str, float]:
        """The values written last; on the main process."""
        return json.loads(self.path.read_text().splitlines()[-1])


def lines_until(path: Path, step: int) -> list[str]:
    """The lines of a log up to a step; none if there is no log. A last line that was cut off is left out.

    Raises:
        OSError, ValueError: It is no log, or damaged.
    """
    if not path.exists():
        return []
    try:
        lines = require_file(path).read_text(encoding="utf-8").split("\n")[:-1]
        return [line for line in lines if json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected the log of a training run, a JSON object a line: {short_error(error)}"
        ) from error


def is_evaluation_due(step: int, recipe: Recipe) -> bool:
    """Whether to evaluate after so many steps."""
    return step == recipe.steps or (recipe.evaluate_every is not None and step % recipe.evaluate_every == 0)


def summary_figures(figures: dict[str, float | None]) -> dict[str, float]:
    """The figures of an evaluation that are of all classes or of a group, not of one class."""
    return {
        name: value for name, value in figures.items() if value is not None and not name.startswith(("IoU-", "ACC-"))
    }


def public_datasets(recipe: Recipe) -> list[str]:
    """The data sets that the model card names: none for pictures that nobody else has."""
    return [] if recipe.dataset in ("custom", "scenes") else [recipe.dataset]


def describe_run(recipe: Recipe, num_processes: int, results: dict[str, float]) -> str:
    """The part of the model card that says how the model was trained, and what came of it."""
    settings = {name: value for name, value in asdict(recipe).items() if value is not None and name != "resume"}
    settings["processes"] = num_processes
    settings |= {name: version(name) for name in ("sed-hf", "torch", "transformers", "timm", "accelerate")}
    tables = {"Training": settings, "Last line of the log": results}
    return "\n".join(
        f"## {title}\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in table.items()) + "\n"
        for title, table in tables.items()
    )
