"""Parameter groups and learning rates, against the rules of the spec."""

import math
from collections.abc import Callable

import pytest
from torch import nn
from torch.optim import AdamW

from sed_hf import SEDForSemanticSegmentation
from sed_hf.training.optimizer import build_optimizer, build_schedule, set_trainable
from sed_hf.training.recipe import Recipe


def make_recipe(**values: object) -> Recipe:
    return Recipe(**{"output_dir": "out", "model": "start", "dataset": "scenes", **values})


def settings_by_name(model: SEDForSemanticSegmentation, optimizer: AdamW) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_parameter_groups_follow_the_official_rules(make_tiny_model: Callable) -> None:
    model, recipe = make_tiny_model(), make_recipe()
    set_trainable(model, recipe)
    settings = settings_by_name(model, build_optimizer(model, recipe))

    expected = {}
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(module_name, recurse=False):
            if name.startswith("sed.text_encoder") or name == "sed.logit_scale":
                continue
            learning_rate = 2e-6 if name.startswith("sed.image_encoder") else 2e-4
            is_exempt = isinstance(module, nn.LayerNorm | nn.GroupNorm) and ".spatial_block.norm." not in name
            expected[name] = (pytest.approx(learning_rate), 0.0 if is_exempt else 1e-4)
    assert settings == expected
    assert settings["decoder.stages.0.spatial_block.norm.bias"][1] == 1e-4
    assert settings["decoder.stages.0.class_attention.mlp_norm.weight"][1] == 0
    assert settings["decoder.cost_embedding.bias"][1] == 1e-4


def test_learning_rate_falls_as_a_cosine_without_warm_up(make_tiny_model: Callable) -> None:
    model, recipe = make_tiny_model(), make_recipe(steps=80_000)
    set_trainable(model, recipe)
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe)
    factor = schedule.lr_lambdas[0]
    for step in (0, 1, 40_000, 79_999, 80_000):
        assert factor(step) == pytest.approx((1 + math.cos(math.pi * step / 80_000)) / 2, abs=1e-12)
    assert max(schedule.get_last_lr()) == 2e-4
    assert min(schedule.get_last_lr()) == pytest.approx(2e-6)


@pytest.mark.parametrize(
    ("finetuning", "prefixes"),
    [
        ("full", ("sed.image_encoder.", "decoder.")),
        (
            "last_stage",
            (
                "sed.image_encoder.trunk.stages.3.",
                "sed.image_encoder.trunk.head.",
                "sed.image_encoder.projection.",
                "decoder.",
            ),
        ),
        ("frozen", ("decoder.",)),
        ("auxiliary_heads", ("decoder.auxiliary_heads.",)),
        ("text", ("sed.image_encoder.", "sed.text_encoder.", "decoder.")),
    ],
)
def test_finetuning_modes_train_what_they_say(
    make_tiny_model: Callable, finetuning: str, prefixes: tuple[str, ...]
) -> None:
    model, recipe = make_tiny_model(), make_recipe(finetuning=finetuning)
    set_trainable(model, recipe)
    trained = set(settings_by_name(model, build_optimizer(model, recipe)))
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert model.config.freeze_text_encoder == (finetuning != "text")


def test_alignment_trains_the_towers_and_the_temperature(make_tiny_model: Callable) -> None:
    model, recipe = make_tiny_model(), make_recipe(objective="alignment")
    set_trainable(model, recipe)
    trained = {name.split(".")[1] for name in settings_by_name(model, build_optimizer(model, recipe))}
    assert trained == {"image_encoder", "text_encoder", "logit_scale"}
