"""Small training runs: a model that trains in milliseconds, a recipe for it, and what a run leaves."""

import json
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from sed_hf.data.scenes.model import build_tokenizer
from sed_hf.hub.save import save_hub_folder
from sed_hf.training.recipe import Recipe

TEMPLATES = ["{}", "a {}."]


def write_start_model(folder: Path, drops: bool = True) -> Path:
    """A model folder to train from, with dropout and drop path, or in double precision without.

    Adam turns the rounding of a gradient that is nearly zero into a part of the learning rate, so that only double
    precision can be compared where sums are taken in another order.
    """
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = SEDConfig(
        projection_dim=16,
        prompt_templates=TEMPLATES,
        vision_config={
            "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "ls_init_value": 0.5},
            "drop_path_rate": 0.2 if drops else 0.0,
            "projection": "mlp",
            "projection_dropout": 0.2 if drops else 0.0,
        },
        text_config={
            **{"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
            **{"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length},
            **{"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
        },
        decoder_hidden_sizes=[16, 16, 16, 16],
        skip_guidance_sizes=[8, 8, 8],
        cost_guidance_sizes=[8, 8, 8],
    )
    model = SEDForSemanticSegmentation(config)
    image_processor = SEDImageProcessor(do_resize=False, input_size={"height": 64, "width": 64})
    processor = SEDProcessor(image_processor, tokenizer, TEMPLATES)
    save_hub_folder(model if drops else model.double(), processor, folder)
    return folder


def small_recipe(output_dir: Path, model: Path, **values: object) -> Recipe:
    """Five steps of two scenes of 64 pixels, a checkpoint after every second."""
    defaults = {
        "dataset": "scenes", "num_workers": 0, "shortest_edge": None, "crop_size": 64, "steps": 5, "images_per_step": 2,
        "learning_rate": 3e-3, "image_encoder_lr_factor": 0.1, "max_grad_norm": 1.0, "log_every": 1,
        "checkpoint_every": 2, "classes_per_step": 10,
    }  # fmt: skip
    return Recipe(output_dir=str(output_dir), model=str(model), **{**defaults, **values})


def reset_accelerate() -> None:
    """Forget the processes and settings of a run, so that another one can have its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def assert_weights_equal(actual: Path, expected: Path, tolerance: float = 0) -> None:
    """Compare two folders of a model, or two checkpoints."""
    weights, expected_weights = (load_file(folder / "model.safetensors") for folder in (actual, expected))
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=tolerance)


def log_of(recipe: Recipe) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(recipe.output_dir) / "log.jsonl").read_text().splitlines()]


def losses_of(recipe: Recipe) -> list[float]:
    return [line["loss"] for line in log_of(recipe) if "loss" in line]
