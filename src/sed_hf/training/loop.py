"""The training loop."""

import json
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    set_seed,
)
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.data import DataLoader, Subset
from transformers import get_cosine_schedule_with_warmup

from ..conversion import build_processor, from_open_clip
from ..evaluation import evaluate_benchmark, load_evaluation_set
from ..evaluation.environment import describe_environment, require_launched_processes
from ..hub.load import load
from ..hub.save import check_new_folder, save_hub_folder
from ..terminal import progress_bar
from ..utils import write_file
from .alignment import TowerAlignment
from .checkpoints import find_checkpoints, load_checkpoint, save_checkpoint
from .data import TrainingClasses, load_training_data, sample_vocabulary
from .optimizer import build_optimizer, enable_gradient_checkpointing, set_trainable, skip_steps_where
from .recipe import Recipe

OF_THIS_MACHINE = {"output_dir", "data_dir", "evaluate_data_dir", "resume"}  # no model card states these


def train(recipe: Recipe) -> Path:
    """Run a recipe and return the Hub folder of the trained model.

    Raises:
        ValueError: `output_dir` holds a run and `resume` is not set, the processes cannot do what the recipe says, or
            the loss is not finite; then a checkpoint is written first.
    """
    run = TrainingRun(recipe)
    run.evaluate(run.start)  # if the run was interrupted before it had
    losses, start_time = [], time.perf_counter()
    is_silent = not run.accelerator.is_main_process
    bar = progress_bar(range(run.start, recipe.steps), initial=run.start, total=recipe.steps, disable=is_silent)
    for step in bar:
        loss, grad_norm = run.train_step(step)
        losses.append(loss)
        done = step + 1
        is_last = done == recipe.steps
        is_saved = is_last or done % recipe.checkpoint_every == 0
        is_logged = is_saved or done % recipe.log_every == 0  # so that a resumed run logs the same means
        if is_logged or run.accelerator.scaler is not None:  # which waits for every step anyway
            run.check_losses(done, losses)
        if is_logged:
            now = time.perf_counter()
            values = {
                "loss": torch.stack(losses).mean().item(),
                "learning_rate": max(run.schedule.get_last_lr()),
                "grad_norm": float(grad_norm),
                "images_per_second": len(losses) * recipe.images_per_step / (now - start_time),
            }
            run.log(done, values)
            bar.set_postfix(loss=f"{values['loss']:.4f}")
            losses, start_time = [], now
        if is_saved:
            save_checkpoint(run.accelerator, run.output_dir, done, recipe.keep_checkpoints)
        run.evaluate(done)
    return run.save_model()


class TrainingRun:
    """What a recipe asks for, prepared for all processes; with `resume` as the last checkpoint has left it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.output_dir = Path(recipe.output_dir)
        self.log_file = self.output_dir / "log.jsonl"
        checkpoints = find_checkpoints(self.output_dir)
        if checkpoints and not recipe.resume:
            raise ValueError(f"{self.output_dir} holds a run already; continue it with --resume, or choose another")
        check_new_folder(self.output_dir / "model", overwrite=bool(checkpoints))
        self.start = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
        self.accelerator = build_accelerator(recipe)
        samples, self.class_names, ignore_index = load_training_data(recipe)
        if recipe.evaluate_on is not None:
            data_dir, limit = recipe.evaluate_data_dir, recipe.evaluate_images
            self.evaluation_set = load_evaluation_set(recipe.evaluate_on, data_dir, limit)
        if recipe.open_clip_variant is not None:
            self.model = from_open_clip(recipe.open_clip_variant, recipe.open_clip_pretrained)
            self.processor = build_processor(self.model.config)
        else:
            self.model, self.processor = load(recipe.model)
            if self.model.dtype in (torch.float16, torch.bfloat16):  # in which most small steps are lost
                self.model.float()
        input_size = dict(self.processor.image_processor.input_size)
        if {recipe.crop_size} != set(input_size.values()):
            scale = f"the model is given images of {input_size}, which show objects at another scale"
            self.accelerator.print(f"crop_size {recipe.crop_size}: {scale}")
        self.model.config.ignore_index = ignore_index
        set_trainable(self.model, recipe)
        if not self.model.config.freeze_text_encoder:
            self.model.set_classes(None)  # or saved ones would stay those of the untrained encoder
        if recipe.gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        if self.accelerator.distributed_type != DistributedType.FSDP:  # which shards only contiguous parameters
            self.model.to(memory_format=torch.channels_last)  # as their gradients are, so that DDP need not copy them
        self.classes = TrainingClasses(self.class_names, self.processor, self.model.to(self.accelerator.device))
        optimizer = build_optimizer(self.model, recipe)
        loader = DataLoader(
            Subset(samples, range(self.start * recipe.images_per_step, len(samples))),
            batch_size=recipe.images_per_step // recipe.gradient_accumulation_steps,
            num_workers=recipe.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # or starting it would draw from the random state of a checkpoint
        )
        self.network, self.optimizer, self.schedule, loader = self.accelerator.prepare(
            TowerAlignment(self.model) if recipe.objective == "alignment" else self.model,
            optimizer,
            get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.steps),
            loader,
        )
        register_fsdp_forward_method(self.model, "get_class_embeddings")  # which evaluations call by itself
        self.network.train()
        self.start_log()
        if checkpoints:
            self.restore(checkpoints[-1])
        self.has_failed = torch.zeros((), device=self.accelerator.device)  # 1 from a loss on that is not finite
        self.files: deque[list[str]] = deque(maxlen=recipe.log_every)  # of each step
        if self.accelerator.scaler is None:
            skip_steps_where(self.optimizer.optimizer, self.has_failed)
        if recipe.resume:
            self.accelerator.print(f"continuing after step {self.start} of {recipe.steps}")
        self.batches = iter(loader)

    def train_step(self, step: int) -> tuple[Tensor, Tensor]:
        """Do one step, and return the loss over all processes and the norm of the gradient before clipping.

        Nothing waits for a GPU here, unless a gradient scaler does, or a vocabulary is drawn.
        """
        accelerator, recipe = self.accelerator, self.recipe
        # Processes drop different channels and blocks, in each step those that belong to it.
        seed = np.random.SeedSequence([recipe.seed, step, accelerator.process_index]).generate_state(1)
        torch.manual_seed(int(seed[0]))
        step_loss = torch.zeros((), device=accelerator.device)
        self.files.append([])
        for part in range(recipe.gradient_accumulation_steps):
            batch = next(self.batches)
            self.files[-1] += batch["file_name"]
            with accelerator.accumulate(self.network):
                loss = compute_loss(self.network, batch, self.classes, recipe, seed=[recipe.seed, step, part])
                step_loss += accelerator.reduce(loss.detach(), "mean") / recipe.gradient_accumulation_steps
                self.has_failed.logical_or_(~step_loss.isfinite())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    max_norm = recipe.max_grad_norm or torch.inf
                    grad_norm = accelerator.clip_grad_norm_(self.network.parameters(), max_norm)
                self.optimizer.step()
                self.schedule.step()  # in the last part, unless a gradient scaler has skipped the step
                self.optimizer.zero_grad()
        return step_loss, grad_norm

    def check_losses(self, done: int, losses: list[Tensor]) -> None:
        """Check that the losses of the last of `done` steps are finite.

        Otherwise the optimizer has skipped all steps from the first such loss on: what is saved is the state before it.
        """
        is_finite = torch.stack(losses).isfinite().tolist()
        if all(is_finite):
            return
        num_failed = len(losses) - is_finite.index(False)
        if self.accelerator.scaler is None:  # which holds the schedule, too
            self.set_back_schedule(num_failed)
        saved = save_checkpoint(self.accelerator, self.output_dir, done - num_failed, self.recipe.keep_checkpoints)
        raise ValueError(
            f"the loss at step {done - num_failed + 1} is not finite; process {self.accelerator.process_index} had"
            f" {', '.join(self.files[-num_failed])}. The state before that step is in {saved}"
        )

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint, but with the rates, the weight decay and the accumulation of this recipe."""
        groups = self.optimizer.param_groups
        stated = [{name: group[name] for name in ("initial_lr", "weight_decay")} for group in groups]
        load_checkpoint(self.accelerator, checkpoint)
        for group, settings in zip(self.optimizer.param_groups, stated, strict=True):
            group.update(settings)
        self.schedule.scheduler.base_lrs = [settings["initial_lr"] for settings in stated]
        self.set_back_schedule(0)
        self.accelerator.step = 0  # of parts, which may be others now; no step is under way

    def set_back_schedule(self, num_steps: int) -> None:
        """Set the schedule back by so many steps, and the learning rates to what it gives there."""
        self.schedule.scheduler.last_epoch -= num_steps + 1
        self.schedule.scheduler.step()

    def start_log(self) -> None:
        """Start accelerate's tracker, and a log with the lines of the steps that are done."""
        self.accelerator.init_trackers("train", {name: str(value) for name, value in asdict(self.recipe).items()})
        text = self.log_file.read_text(encoding="utf-8") if self.start and self.log_file.is_file() else ""
        lines = text.split("\n")[:-1]  # without one that was cut off
        lines = [line for line in lines if json.loads(line)["step"] <= self.start]
        self.evaluated_steps = {json.loads(line)["step"] for line in lines if "mIoU" in line}
        if self.accelerator.is_main_process:
            write_file(self.log_file, "".join(f"{line}\n" for line in lines))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step to accelerate's tracker and to the log."""
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with self.log_file.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def evaluate(self, done: int) -> None:
        """Log the figures of the evaluation set, of all classes and of groups, where they are due and not logged."""
        every = self.recipe.evaluate_every
        is_due = every is not None and done > 0 and (done == self.recipe.steps or done % every == 0)
        if not is_due or done in self.evaluated_steps:
            return
        figures = evaluate_benchmark(
            self.accelerator.unwrap_model(self.network),
            self.processor,
            self.evaluation_set,
            num_workers=self.recipe.num_workers,
            progress_bar=f"step {done}",
        )
        known = {name: value for name, value in figures.items() if value is not None}
        self.log(done, {name: value for name, value in known.items() if not name.startswith(("IoU-", "ACC-"))})

    def save_model(self) -> Path:
        """Write the Hub folder of the model, and end the run."""
        folder = self.output_dir / "model"
        state_dict = self.accelerator.get_state_dict(self.network)
        if self.accelerator.is_main_process:
            # As they are named without torch.compile, and without the wrapper of the alignment objective.
            state_dict = {name.replace("_orig_mod.", "").removeprefix("model."): x for name, x in state_dict.items()}
            save_hub_folder(
                self.model.eval(),
                self.processor,
                folder,
                self.describe(),
                [] if self.recipe.dataset in ("custom", "scenes") else [self.recipe.dataset],
                state_dict=state_dict,
                overwrite=True,
                class_names=self.class_names,
            )
        self.accelerator.print(f"model written to {folder}")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return folder

    def describe(self) -> str:
        """The part of the model card that says how the model was trained, and what came of it."""
        settings = {name: value for name, value in asdict(self.recipe).items() if name not in OF_THIS_MACHINE}
        recipe, environment = (
            f"```yaml\n{yaml.safe_dump(values, sort_keys=False)}```"
            for values in (settings, describe_environment(self.accelerator.device))
        )
        last_line = "".join(self.log_file.read_text().splitlines()[-1:])
        classes = "; ".join(self.class_names)
        return f"## Training\n\nClasses: {classes}\n\n{recipe}\n\n{environment}\n\nLast line of the log: `{last_line}`"


def build_accelerator(recipe: Recipe) -> Accelerator:
    """The processes of a run, and their settings."""
    accelerator = Accelerator(
        # Unlike the argument, a plugin wins over what a launcher says.
        gradient_accumulation_plugin=GradientAccumulationPlugin(recipe.gradient_accumulation_steps),
        dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # no copies of gradients
        mixed_precision=recipe.mixed_precision,
        log_with=recipe.tracker,
        project_dir=recipe.output_dir,
    )
    require_launched_processes()
    parts = accelerator.num_processes * recipe.gradient_accumulation_steps
    if recipe.images_per_step % parts:
        raise ValueError(
            f"images_per_step={recipe.images_per_step}: expected a multiple of {parts}"
            f" ({accelerator.num_processes} processes × {recipe.gradient_accumulation_steps} accumulation steps)"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision=fp16: expected bf16 or no on a CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe.allow_tf32
    torch.backends.cudnn.benchmark = recipe.min_classes_per_step is None  # otherwise sizes change with each batch
    set_seed(recipe.seed)  # what is initialised is the same on all processes
    return accelerator


def compute_loss(
    network: nn.Module, batch: dict[str, Any], classes: TrainingClasses, recipe: Recipe, seed: list[int]
) -> Tensor:
    """The loss of a batch, with all classes or with a vocabulary drawn for the batches of all processes."""
    labels, inputs = batch["labels"], classes.inputs
    if recipe.classes_per_step is not None:
        sizes = (recipe.min_classes_per_step or recipe.classes_per_step, recipe.classes_per_step)
        vocabulary = sample_vocabulary(labels, classes.num_classes, sizes, classes.ignore_index, seed)
        ignored = labels == classes.ignore_index
        labels = torch.searchsorted(vocabulary, labels).masked_fill(ignored, classes.ignore_index)
        inputs = classes.select(vocabulary)
    pixel_values = batch["pixel_values"].contiguous(memory_format=torch.channels_last)  # faster convolutions
    return network(pixel_values=pixel_values, labels=labels, **inputs).loss
