"""The settings of one training run, from a YAML file and the command line."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

MAY_BE_ZERO = {"learning_rate", "image_encoder_lr_factor", "text_encoder_lr_factor", "weight_decay", "max_grad_norm"}
MAY_BE_ZERO |= {"num_workers", "warmup_steps", "seed"}


@dataclass(kw_only=True)
class Recipe:
    """The settings of a training run. The defaults are those of the official training of SED-B."""

    output_dir: str = HfArg(help="Folder for checkpoints, logs and the trained model.")

    model: str | None = HfArg(default=None, help="Model folder, Hub repository, or name such as toy, to start from.")
    open_clip_variant: str | None = HfArg(default=None, help="Start from this ConvNeXt of open_clip, without model.")
    open_clip_pretrained: str | None = HfArg(default=None, help="Weights of open_clip_variant: a tag or a file.")
    objective: Literal["segmentation", "alignment"] = HfArg(
        default="segmentation", help="segmentation trains SED; alignment only trains the two towers, before it."
    )
    finetuning: Literal["full", "last_stage", "frozen", "auxiliary_heads", "text"] = HfArg(
        default="full", help="What is trained beside the decoder; auxiliary_heads trains nothing else."
    )

    dataset: str = HfArg(default="coco_stuff_171", help="Benchmark, 'custom', or 'scenes' for generated scenes.")
    data_dir: str | None = HfArg(default=None, help="Folder of the data set; none for scenes.")
    split: str | None = HfArg(default=None, help="Defaults to train, or to all images of own data without splits.")
    num_workers: int = HfArg(default=4, help="Processes that read images, for each training process.")

    shortest_edge: int | None = HfArg(default=768, help="Resize the shortest side to this many pixels.")
    longest_edge: int = HfArg(default=2666, help="At most this many pixels for the longest side.")
    crop_size: int = HfArg(default=768, help="Side of the random crop, in pixels; a multiple of 32.")
    color_jitter: bool = HfArg(default=True, help="SSD-style colour jitter.")
    horizontal_flip: bool = HfArg(default=True, help="Flip half of the images.")
    classes_per_step: int | None = HfArg(default=None, help="Train with a batch's classes and others up to so many.")
    min_classes_per_step: int | None = HfArg(default=None, help="Draw their number for each batch, from this on.")
    distractor_vocabulary: str | None = HfArg(default=None, help="Vocabulary of more classes, which no image shows.")

    steps: int = HfArg(default=80_000, help="Optimizer steps.")
    images_per_step: int = HfArg(default=4, help="Images of one step, over all processes.")
    gradient_accumulation_steps: int = HfArg(default=1, help="Parts in which a process takes its images.")
    learning_rate: float = HfArg(default=2e-4, help="Learning rate of the decoder.")
    image_encoder_lr_factor: float = HfArg(default=0.01, help="Times the learning rate, image encoder.")
    text_encoder_lr_factor: float = HfArg(default=0.01, help="Times the learning rate, text encoder.")
    weight_decay: float = HfArg(default=1e-4, help="Of AdamW.")
    warmup_steps: int = HfArg(default=0, help="Steps of linear warm-up before the cosine decay to 0.")
    max_grad_norm: float = HfArg(default=0.01, help="Clip the gradient of the whole model to this norm; 0 does not.")
    gradient_checkpointing: bool = HfArg(default=False, help="Recompute activations in backward.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = HfArg(
        default=None, help="Defaults to accelerate's setting."
    )
    allow_tf32: bool = HfArg(default=True, help="TF32 matrix products on GPUs that have them.")
    seed: int = HfArg(default=0, help="Seed of the order of the data, augmentation and dropout.")

    log_every: int = HfArg(default=20, help="Steps between two lines of the log; each checkpoint adds one.")
    tracker: str = HfArg(default="tensorboard", help="Tracker of accelerate: tensorboard, wandb, ...")
    checkpoint_every: int = HfArg(default=5_000, help="Steps between two checkpoints.")
    keep_checkpoints: int = HfArg(default=2, help="Checkpoints to keep; older ones are removed.")
    evaluate_every: int | None = HfArg(default=None, help="Steps between two evaluations.")
    evaluate_on: str | None = HfArg(default=None, help="Benchmark, or 'scenes', to evaluate on.")
    evaluate_data_dir: str | None = HfArg(default=None, help="Folder of evaluate_on.")
    evaluate_images: int | None = HfArg(default=None, help="Only evaluate on the first images.")
    resume: bool = HfArg(default=False, help="Continue from the last checkpoint in output_dir.")

    def __post_init__(self) -> None:
        """Check what would be wrong without a word, or only after a long time."""
        if (self.model is None) == (self.open_clip_variant is None):
            raise ValueError("model, open_clip_variant: expected exactly one of them")
        if self.dataset != "scenes" and self.data_dir is None:
            raise ValueError(f"data_dir: expected the folder of {self.dataset}")
        if (self.evaluate_every is None) != (self.evaluate_on is None):
            raise ValueError("evaluate_every, evaluate_on: expected both or none of them")
        if self.evaluate_on is not None and self.objective == "alignment":
            raise ValueError("evaluate_on: expected none with the objective alignment, which trains no decoder")
        if (self.min_classes_per_step or 0) > (self.classes_per_step or 0):
            raise ValueError(
                f"min_classes_per_step={self.min_classes_per_step}: expected at most classes_per_step,"
                f" which is {self.classes_per_step}"
            )
        for name, value in vars(self).items():
            least = 0 if name in MAY_BE_ZERO else 1
            if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value < math.inf:
                raise ValueError(f"{name}={value}: expected a number of at least {least}")


def load_recipe(arguments: Sequence[str]) -> Recipe:
    """Read `--config FILE` and the values that override it, e.g. `--learning_rate 1e-4`."""
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path, metavar="YAML", help="e.g. configs/sed_convnext_base.yaml")
    known, overrides = config_parser.parse_known_args(arguments)
    stated = {}
    if known.config is not None:
        try:
            stated = yaml.safe_load(known.config.read_bytes())
        except yaml.YAMLError as error:
            raise ValueError(f"config: {known.config} is not YAML: {error}") from error
        if not isinstance(stated, dict):
            raise ValueError(f"config: {known.config} holds {type(stated).__name__}, expected settings by name")
        if stated.get("mixed_precision") is False:
            stated["mixed_precision"] = "no"  # which YAML takes for false

    parser = HfArgumentParser(Recipe, parents=[config_parser], allow_abbrev=False)
    # The file's values are checked as the command line's are. Only null has no form there.
    optional = [name for name, kind in get_type_hints(Recipe).items() if NoneType in get_args(kind)]
    nulls = {name: None for name in optional if stated.get(name, "") is None}
    parser.set_defaults(**nulls)
    given = [f"--{name}={value}" for name, value in stated.items() if name not in nulls]
    namespace = vars(parser.parse_args([*given, *overrides]))
    del namespace["config"]
    return Recipe(**namespace)
