"""What is trained, at which learning rate and weight decay, and how the learning rate falls."""

from collections import defaultdict

from timm.layers.grn import GlobalResponseNorm
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from ..modeling_sed import SEDForSemanticSegmentation, SEDSpatialAggregation
from .recipe import Recipe


def set_trainable(model: SEDForSemanticSegmentation, recipe: Recipe) -> None:
    """Let gradients reach the parameters that the recipe trains, and no others."""
    model.requires_grad_(False)
    for module in trainable_modules(model, recipe):
        module.requires_grad_(True)
    trains_text = recipe.objective == "alignment" or recipe.finetuning == "text"
    model.config.freeze_text_encoder = not trains_text
    if recipe.objective == "alignment":
        model.logit_scale.requires_grad_(True)


def trainable_modules(model: SEDForSemanticSegmentation, recipe: Recipe) -> list[nn.Module]:
    """The modules that the recipe trains."""
    if recipe.objective == "alignment":
        return [model.image_encoder, model.text_encoder]
    trunk = model.image_encoder.trunk
    return {
        "full": [model.image_encoder, model.decoder],
        "last_stage": [trunk.stages[-1], trunk.head, model.image_encoder.projection, model.decoder],
        "frozen": [model.decoder],
        "auxiliary_heads": [model.decoder.auxiliary_heads],
        "text": [model.image_encoder, model.text_encoder, model.decoder],
    }[recipe.finetuning]


def enable_gradient_checkpointing(model: SEDForSemanticSegmentation) -> None:
    """Recompute encoder blocks and decoder stages in backward instead of holding their activations."""
    # transformers 5.23 renamed the method; version 6 will not know the old name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def build_optimizer(model: SEDForSemanticSegmentation, recipe: Recipe) -> AdamW:
    """AdamW over the trainable parameters, in groups of one learning rate and one weight decay each.

    Normalisation layers and embeddings have no weight decay; biases elsewhere do, and so do the LayerNorms inside the
    decoder's ConvNeXt blocks, as in the official training.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    exempt = (nn.LayerNorm, nn.GroupNorm, nn.Embedding, GlobalResponseNorm)
    decayed_norms = {id(block.norm) for block in model.modules() if isinstance(block, SEDSpatialAggregation)}
    for module_name, module in model.named_modules():
        decays = not isinstance(module, exempt) or id(module) in decayed_norms
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                learning_rate = recipe.learning_rate * learning_rate_factor(module_name, recipe)
                groups[learning_rate, recipe.weight_decay if decays else 0.0].append(parameter)
    return AdamW(
        [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()],
        lr=recipe.learning_rate,
    )


def learning_rate_factor(module_name: str, recipe: Recipe) -> float:
    """What the learning rate of a module is multiplied with."""
    if module_name.startswith("sed.image_encoder"):
        return recipe.image_encoder_lr_factor
    if module_name.startswith("sed.text_encoder"):
        return recipe.text_encoder_lr_factor
    return 1.0


def build_schedule(optimizer: AdamW, recipe: Recipe) -> LambdaLR:
    """Cosine decay to 0 over all steps, after the warm-up if there is one."""
    return get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.steps)
