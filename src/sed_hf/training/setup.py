"""What a training run starts from: processes, checkpoint, model."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from .. import SEDForSemanticSegmentation, SEDProcessor
from ..conversion import build_processor, from_open_clip
from ..evaluation.environment import require_launched_processes
from ..hub.load import load
from ..hub.save import check_new_folder
from .checkpoints import find_checkpoints
from .recipe import Recipe


def model_folder(recipe: Recipe) -> Path:
    """Where the trained model is written."""
    return Path(recipe.output_dir) / "model"


def checkpoint_to_resume(recipe: Recipe) -> Path | None:
    """The checkpoint that the run continues from; `None` if it starts at the beginning.

    Raises:
        ValueError: `output_dir` holds a run and `resume` is not set.
        FileExistsError: Something else lies where the model is to be written.
    """
    checkpoints = find_checkpoints(Path(recipe.output_dir))
    if checkpoints and not recipe.resume:
        raise ValueError(
            f"output_dir: {recipe.output_dir} holds a run already; continue it with --resume, or choose another"
        )
    check_new_folder(model_folder(recipe), overwrite=bool(checkpoints))
    return checkpoints[-1] if checkpoints else None


def build_accelerator(recipe: Recipe) -> Accelerator:
    """The processes of a run, and their settings.

    Raises:
        ValueError: The launcher asks for what the run would not do.
    """
    accelerator = Accelerator(
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        mixed_precision=recipe.mixed_precision,
        log_with=recipe.tracker,
        project_dir=recipe.output_dir,
    )
    require_launched_processes()
    if accelerator.gradient_accumulation_steps != recipe.gradient_accumulation_steps:
        raise ValueError(
            f"the launcher sets gradient_accumulation_steps={accelerator.gradient_accumulation_steps}, the recipe"
            f" {recipe.gradient_accumulation_steps}: expected the same"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision=fp16: expected bf16 or no on a CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe.allow_tf32
    torch.backends.cudnn.benchmark = recipe.min_classes_per_step is None  # otherwise sizes change with each batch
    set_seed(recipe.seed)  # what is initialised is the same on all processes
    return accelerator


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


def load_starting_model(recipe: Recipe) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """The model that training starts from, and its processor."""
    if recipe.open_clip_variant is not None:
        model = from_open_clip(recipe.open_clip_variant, recipe.open_clip_pretrained)
        return model, build_processor(model.config)
    return load(recipe.model)
