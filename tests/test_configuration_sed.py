"""The configuration: SED-B by default, strict about its values, unchanged by a round trip."""

import json
from typing import Any

import pytest
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES as OPEN_CLIP_TEMPLATES

from sed_hf import SEDConfig
from sed_hf.conversion import SED_BASE, config_from_open_clip


def test_default_is_sed_b() -> None:
    assert SEDConfig().to_dict() == config_from_open_clip(SED_BASE).to_dict()
    assert SEDConfig().prompt_templates == [template("{}") for template in OPEN_CLIP_TEMPLATES]


def test_json_round_trip_changes_nothing() -> None:
    config = SEDConfig(early_rejection_topk=8, vision_config={"model_args": {"depths": (1, 1, 2, 1)}})
    again = SEDConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert json.loads(again.to_json_string()) == json.loads(config.to_json_string())


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"prompt_templates": ["a {} and a {}"]}, "prompt_templates"),
        ({"decoder_hidden_sizes": [128, 64]}, "decoder_hidden_sizes"),
        ({"skip_guidance_sizes": [128, 16, 8]}, r"skip_guidance_sizes=\[128, 16, 8\]: expected each less than"),
        ({"group_norm_group_size": 48}, "group_norm_group_size=48"),
        ({"class_attention_type": "quadratic"}, "class_attention_type"),
        ({"class_chunk_size": 0}, "class_chunk_size=0: expected at least 1"),
        ({"vision_config": {"model_args": {"checkpoint_path": "x.pth"}}}, "checkpoint_path would read"),
        ({"vision_config": {"architecture": "resnet50"}}, "architecture='resnet50'"),
        ({"vision_config": {"drop_path_rate": 1.5}}, "drop_path_rate=1.5"),
    ],
)
def test_values_that_would_be_wrong_without_a_word_are_refused_by_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(Exception, match=name):
        SEDConfig(**values)
