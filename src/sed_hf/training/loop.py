"""The training loop."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.data import DataLoader, Subset

from ..data.distractors import distractors
from ..evaluation import evaluate_benchmark, load_evaluation_set
from ..evaluation.report import markdown_table
from ..hub.save import push_hub_folder, save_hub_folder
from ..terminal import progress_bar
from .alignment import TowerAlignment
from .checkpoints import load_checkpoint, save_checkpoint, steps_done
from .classes import TrainingClasses, present_classes, relabel, sample_vocabulary
from .data import load_training_data
from .log import TrainingLog
from .optimizer import build_optimizer, build_schedule, enable_gradient_checkpointing, set_trainable
from .recipe import Recipe
from .setup import build_accelerator, checkpoint_to_resume, images_per_batch, load_starting_model, model_folder


class NonFiniteLossError(ValueError):
    """The loss is not a number or infinite; the message gives the step and the files of the batch."""


def train(recipe: Recipe) -> Path:
    """Run a recipe and return the Hub folder of the trained model.

    Raises:
        OSError: There is no such model or data set, or something cannot be written.
        ValueError: Images cannot be split evenly over processes and accumulation steps, the launcher's settings are
            not those of the run, or `output_dir` holds a run and `resume` is not set.
        NonFiniteLossError: The loss is not finite. A checkpoint is written first.
    """
    run = TrainingRun(recipe)
    is_main_process = run.accelerator.is_main_process
    steps = range(run.start, recipe.steps)
    bar = progress_bar(steps, initial=run.start, total=recipe.steps, disable=not is_main_process)
    for step in bar:
        loss, grad_norm = run.train_step(step)
        if line := run.log.record(step + 1, loss, grad_norm, run.schedule.get_last_lr()):
            bar.set_postfix(loss=f"{line['loss']:.4f}")
        is_last = step + 1 == recipe.steps
        if recipe.evaluate_every is not None and (is_last or (step + 1) % recipe.evaluate_every == 0):
            run.log.write(step + 1, run.evaluate(f"step {step + 1}"))
        if is_last or (step + 1) % recipe.checkpoint_every == 0:
            run.save_checkpoint(step + 1)
    return run.save_model()


class TrainingRun:
    """What a recipe asks for, prepared for all processes; with `resume` as the last checkpoint has left it.

    Attributes:
        start: The number of steps that are done.
    """

    def __init__(self, recipe: Recipe) -> None:
        checkpoint = checkpoint_to_resume(recipe)
        self.recipe = recipe
        self.output_dir = Path(recipe.output_dir)
        self.start = 0 if checkpoint is None else steps_done(checkpoint)
        self.accelerator = build_accelerator(recipe)
        samples, class_names, self.ignore_index = load_training_data(recipe)
        self.evaluation_set = None
        if recipe.evaluate_on is not None:
            self.evaluation_set = load_evaluation_set(
                recipe.evaluate_on, recipe.evaluate_data_dir, recipe.evaluate_images
            )
        if recipe.distractor_vocabulary is not None:
            class_names = class_names + distractors(class_names, [recipe.distractor_vocabulary])

        self.model, self.processor = load_starting_model(recipe)
        self.model.config.ignore_index = self.ignore_index
        set_trainable(self.model, recipe)
        if recipe.gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        if self.accelerator.distributed_type == DistributedType.FSDP:  # which shards only contiguous parameters
            self.model.to(memory_format=torch.contiguous_format)
        self.classes = TrainingClasses(class_names, self.processor, self.model.to(self.accelerator.device))
        optimizer = build_optimizer(self.model, recipe)
        self.schedule = build_schedule(optimizer, recipe)
        self.network, self.optimizer, dataloader = self.accelerator.prepare(
            TowerAlignment(self.model) if recipe.objective == "alignment" else self.model,
            optimizer,
            DataLoader(
                Subset(samples, range(self.start * recipe.images_per_step, len(samples))),
                batch_size=images_per_batch(recipe, self.accelerator.num_processes),
                num_workers=recipe.num_workers,
                pin_memory=self.accelerator.device.type == "cuda",
                generator=torch.Generator(),  # or starting it would draw from the random state of a checkpoint
            ),
        )
        register_fsdp_forward_method(self.model, "get_class_embeddings")  # which evaluations call by itself
        self.network.train()
        self.log = TrainingLog(self.accelerator, recipe, self.start)
        self.accelerator.register_for_checkpointing(self.schedule, self.log)
        set_seed(recipe.seed, device_specific=True)  # processes drop different channels and blocks
        if checkpoint is not None:
            load_checkpoint(self.accelerator, checkpoint)
        if recipe.resume:
            self.accelerator.print(f"continuing after step {self.start}" if checkpoint else "no checkpoint to resume")
        self.batches = iter(dataloader)

    def train_step(self, step: int) -> tuple[Tensor, Tensor]:
        """Do one step, and return the loss over all processes and the norm of the gradient before clipping.

        Raises:
            NonFiniteLossError: The loss is not finite. Nothing is changed, and a checkpoint is written.
        """
        accelerator, parts = self.accelerator, self.recipe.gradient_accumulation_steps
        step_loss = torch.zeros((), device=accelerator.device)
        for part in range(parts):
            batch = next(self.batches)
            with accelerator.accumulate(self.network):
                seed = [self.recipe.seed, step, part]
                loss = compute_loss(self.network, batch, self.classes, self.recipe, self.ignore_index, seed)
                mean_loss = accelerator.reduce(loss.detach(), "mean")
                if not mean_loss.isfinite():
                    saved, files = self.save_checkpoint(step), ", ".join(batch["file_name"])
                    raise NonFiniteLossError(
                        f"the loss at step {step + 1} is not finite; process {accelerator.process_index} had {files}."
                        f" The state before that step is in {saved}"
                    )
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(self.network.parameters(), self.recipe.max_grad_norm)
                self.optimizer.step()
                if accelerator.sync_gradients and not self.optimizer.step_was_skipped:  # by a gradient scaler
                    self.schedule.step()
                self.optimizer.zero_grad()
            step_loss += mean_loss / parts
        return step_loss, grad_norm

    def evaluate(self, title: str) -> dict[str, float]:
        """The figures of the evaluation set that are of all classes or of a group of them."""
        figures = evaluate_benchmark(
            self.accelerator.unwrap_model(self.network),
            self.processor,
            self.evaluation_set,
            num_workers=self.recipe.num_workers,
            progress_bar=title,
        )
        is_of_class = ("IoU-", "ACC-")
        return {
            name: value for name, value in figures.items() if value is not None and not name.startswith(is_of_class)
        }

    def save_checkpoint(self, step: int) -> Path:
        """Write a checkpoint after `step` steps."""
        return save_checkpoint(self.accelerator, self.output_dir, step, self.recipe.keep_checkpoints)

    def save_model(self) -> Path:
        """Write the Hub folder of the model, upload it if that is asked for, and end the run."""
        folder = model_folder(self.recipe)
        state_dict = self.accelerator.get_state_dict(self.network)
        if self.accelerator.is_main_process:
            # The wrapper of the alignment objective puts "model." before each name.
            state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
            save_hub_folder(
                self.model.eval(),
                self.processor,
                folder,
                describe_run(self.recipe, self.accelerator.num_processes, self.log.last),
                [] if self.recipe.dataset in ("custom", "scenes") else [self.recipe.dataset],
                state_dict=state_dict,
                overwrite=True,
            )
            if self.recipe.push_to_hub is not None:
                push_hub_folder(folder, self.recipe.push_to_hub)
        self.accelerator.print(f"model written to {folder}")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return folder


def compute_loss(
    network: nn.Module,
    batch: dict[str, Any],
    classes: TrainingClasses,
    recipe: Recipe,
    ignore_index: int,
    seed: list[int],
) -> Tensor:
    """The loss of a batch, with all classes or with a vocabulary drawn for the batches of all processes."""
    labels, vocabulary = batch["labels"], None
    if recipe.classes_per_step is not None:
        num_classes = len(classes.names)
        sizes = (recipe.min_classes_per_step or recipe.classes_per_step, recipe.classes_per_step)
        present = present_classes(labels, num_classes, ignore_index)
        vocabulary = sample_vocabulary(present, num_classes, sizes, seed)
        labels = relabel(labels, vocabulary, num_classes, ignore_index)
    pixel_values = batch["pixel_values"].contiguous(memory_format=torch.channels_last)  # faster convolutions
    result = network(pixel_values=pixel_values, labels=labels, **classes.model_inputs(vocabulary))
    return result if isinstance(result, Tensor) else result.loss


def describe_run(recipe: Recipe, num_processes: int, results: dict[str, float]) -> str:
    """The part of the model card that says how the model was trained, and what came of it."""
    settings = {name: value for name, value in asdict(recipe).items() if value is not None and name != "resume"}
    settings["processes"] = num_processes
    settings |= {name: version(name) for name in ("sed-hf", "torch", "transformers", "timm", "accelerate")}
    parts = []
    for title, values in {"Training": settings, "Last line of the log": results}.items():
        rows = [[name, str(value)] for name, value in values.items()]
        parts.append(
            f"## {title}\n\n{markdown_table([['setting' if values is settings else 'figure', 'value'], *rows])}\n"
        )
    return "\n".join(parts)
