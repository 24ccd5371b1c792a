"""Models smaller than those of `conftest`, so that an example takes milliseconds, with seeded weights."""

from functools import cache
from typing import Any

import torch
from torch import nn

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from sed_hf.conversion import build_clip_tokenizer
from sed_hf.modeling_sed import SEDDecoder

TEMPLATES = ["a photo of a {}.", "itap of my {}.", "{}"]
ENCODER_HIDDEN_SIZES = [4, 6, 8, 10]


@cache
def small_model(dtype: torch.dtype = torch.float32) -> SEDForSemanticSegmentation:
    """A model in evaluation mode, of three prompt templates. Tests must leave it as it is."""
    return make_small_model().to(dtype)


def make_small_model(**kwargs: Any) -> SEDForSemanticSegmentation:
    """The same with a configuration of one's own, to change at will."""
    config = SEDConfig(
        projection_dim=16,
        prompt_templates=TEMPLATES,
        vision_config={
            "architecture": "convnext_large",
            "model_args": {"depths": [1, 1, 1, 1], "dims": ENCODER_HIDDEN_SIZES},
        },
        text_config={"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2},
        **{
            "decoder_hidden_sizes": [16, 16, 8, 8],
            "skip_guidance_sizes": [8, 4, 4],
            "cost_guidance_sizes": [8, 4, 4],
            "group_norm_group_size": 8,
            **kwargs,
        },
    )
    return seed_weights(SEDForSemanticSegmentation(config)).eval()


@cache
def small_processor(edge: int = 64) -> SEDProcessor:
    """The processor of `small_model`, for inputs of edge × edge pixels."""
    image_processor = SEDImageProcessor(size={"shortest_edge": 48, "longest_edge": 192}, input_size=edge)
    return SEDProcessor(image_processor, build_clip_tokenizer(), TEMPLATES)


def make_decoder(settings: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> SEDDecoder:
    """A decoder on its own, in evaluation mode, of some settings of `SEDConfig`."""
    return seed_weights(SEDDecoder(SEDConfig(**settings), ENCODER_HIDDEN_SIZES), seed).to(dtype).eval()


@torch.no_grad()
def seed_weights(module: nn.Module, seed: int = 0) -> Any:
    """Draw every parameter from a seed, so that activations stay near 1 and no part of the model is without effect."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(values * (1.5 / fan_in) ** 0.5)
        else:
            parameter.copy_(0.5 + 0.2 * values)
    return module
