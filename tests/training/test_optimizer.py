"""What is trained, and its learning rate and weight decay, against the rules of the official training."""

from collections.abc import Callable

import pytest
from torch import nn

from sed_hf import SEDForSemanticSegmentation
from sed_hf.training.optimizer import build_optimizer, set_trainable
from sed_hf.training.recipe import Recipe

TOWERS = ("sed.image_encoder.", "sed.text_encoder.")
LAST_STAGE = tuple(f"sed.image_encoder.{name}." for name in ("trunk.stages.3", "trunk.head", "projection"))


def settings_by_name(model: SEDForSemanticSegmentation, **values: object) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter that a recipe trains."""
    recipe = Recipe(output_dir="out", model="start", dataset="scenes", **values)
    set_trainable(model, recipe)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in build_optimizer(model, recipe).param_groups
        for parameter in group["params"]
    }


def test_parameter_groups_follow_the_official_rules(make_tiny_model: Callable) -> None:
    model, expected = make_tiny_model(), {}
    settings = settings_by_name(model)
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(module_name, recurse=False):
            if name.startswith("sed.text_encoder") or name == "sed.logit_scale":
                continue
            learning_rate = 2e-6 if name.startswith("sed.image_encoder") else 2e-4
            is_exempt = isinstance(module, nn.LayerNorm | nn.GroupNorm) and ".spatial_block.norm." not in name
            expected[name] = (pytest.approx(learning_rate), 0.0 if is_exempt else 1e-4)
    assert settings == expected


@pytest.mark.parametrize(
    ("values", "prefixes"),
    [
        ({"finetuning": "full"}, (TOWERS[0], "decoder.")),
        ({"finetuning": "last_stage"}, (*LAST_STAGE, "decoder.")),
        ({"finetuning": "frozen"}, ("decoder.",)),
        ({"finetuning": "auxiliary_heads"}, ("decoder.auxiliary_heads.",)),
        ({"finetuning": "text"}, (*TOWERS, "decoder.")),
        ({"objective": "alignment"}, (*TOWERS, "sed.logit_scale")),
    ],
)
def test_what_is_trained_is_what_the_recipe_says(make_tiny_model: Callable, values: dict, prefixes: tuple) -> None:
    model = make_tiny_model()
    trained = set(settings_by_name(model, **values))
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert model.config.freeze_text_encoder == (TOWERS[1] not in prefixes)
