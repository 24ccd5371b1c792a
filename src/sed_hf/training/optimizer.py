"""What is trained, and at which learning rate and weight decay."""

from collections import defaultdict

from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.optim import AdamW

from ..modeling_sed import SEDForSemanticSegmentation, SEDSpatialAggregation
from .recipe import Recipe


def set_trainable(model: SEDForSemanticSegmentation, recipe: Recipe) -> None:
    """Let gradients reach the parameters that the recipe trains, and no others."""
    trunk = model.image_encoder.trunk
    trained = {
        "full": [model.image_encoder, model.decoder],
        "last_stage": [trunk.stages[-1], trunk.head, model.image_encoder.projection, model.decoder],
        "frozen": [model.decoder],
        "auxiliary_heads": [model.decoder.auxiliary_heads],
        "text": [model.image_encoder, model.text_encoder, model.decoder],
    }[recipe.finetuning]
    if recipe.objective == "alignment":
        trained = [model.image_encoder, model.text_encoder]
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    model.logit_scale.requires_grad_(recipe.objective == "alignment")
    model.config.freeze_text_encoder = model.text_encoder not in trained


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
    decayed_norms = {block.norm for block in model.modules() if isinstance(block, SEDSpatialAggregation)}
    for module_name, module in model.named_modules():
        learning_rate = recipe.learning_rate
        if module_name.startswith("sed.image_encoder"):
            learning_rate *= recipe.image_encoder_lr_factor
        elif module_name.startswith("sed.text_encoder"):
            learning_rate *= recipe.text_encoder_lr_factor
        decays = not isinstance(module, exempt) or module in decayed_norms
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                groups[learning_rate, recipe.weight_decay if decays else 0.0].append(parameter)
    return AdamW([{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()])


def skip_steps_where(optimizer: AdamW, found_inf: Tensor) -> None:
    """Let an optimizer do nothing while a number on the device is 1, as a gradient scaler does, but waiting for none.

    Only torch's fused implementation can; so steps are counted on the device.
    """
    for group in optimizer.param_groups:
        group["fused"] = True
        for parameter in group["params"]:
            if state := optimizer.state.get(parameter):
                state["step"] = state["step"].to(parameter.device)
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]
