"""The configuration: SED-B by default, strict about its values, unchanged by a round trip."""

import json
from pathlib import Path
from typing import Any

import pytest
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES as OPEN_CLIP_TEMPLATES

from sed_hf import SEDConfig


def test_default_is_sed_b() -> None:
    config = SEDConfig()
    assert config.vision_config.architecture == "convnext_base"
    assert config.vision_config.projection == "linear"
    assert config.projection_dim == config.text_config.projection_dim == 640
    assert (config.text_config.hidden_size, config.text_config.num_attention_heads) == (640, 10)
    assert config.text_config.num_hidden_layers == 12
    assert config.decoder_hidden_sizes == [128, 64, 32, 16]


def test_prompt_templates_are_those_of_open_clip() -> None:
    assert SEDConfig().prompt_templates == [template("{}") for template in OPEN_CLIP_TEMPLATES]


def test_json_round_trip_changes_nothing() -> None:
    config = SEDConfig(early_rejection_topk=8, vision_config={"model_args": {"depths": (1, 1, 2, 1)}})
    again = SEDConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert json.loads(again.to_json_string()) == json.loads(config.to_json_string())


def test_overrides_on_loading(tmp_path: Path) -> None:
    SEDConfig(text_config={"num_hidden_layers": 3}).save_pretrained(tmp_path)
    config = SEDConfig.from_pretrained(tmp_path, early_rejection_topk=4, text_config={"num_hidden_layers": 2})
    assert config.early_rejection_topk == 4
    assert config.text_config.num_hidden_layers == 2
    assert config.text_config.hidden_size == 640


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"projection_dim": "wide"}, "projection_dim"),
        ({"prompt_templates": []}, "prompt_templates"),
        ({"prompt_templates": ["a {} and a {}"]}, "prompt_templates"),
        ({"decoder_hidden_sizes": [128, 64]}, "decoder_hidden_sizes"),
        ({"decoder_hidden_sizes": [128, 64, 32, "16"]}, "decoder_hidden_sizes"),
        ({"skip_guidance_sizes": [128, 16, 8]}, r"skip_guidance_sizes=\[128, 16, 8\]: expected each less than"),
        ({"cost_guidance_sizes": [32, 16, 8, 4]}, "cost_guidance_sizes"),
        ({"cost_embedding_kernel_size": 6}, "cost_embedding_kernel_size=6"),
        ({"decoder_mlp_ratio": 0}, "decoder_mlp_ratio=0"),
        ({"group_norm_group_size": 48}, "group_norm_group_size=48"),
        ({"class_attention_type": "quadratic"}, "class_attention_type"),
        ({"train_pooling_size": 0}, "train_pooling_size=0"),
        ({"early_rejection_topk": 0}, "early_rejection_topk=0"),
        ({"class_chunk_size": 0}, "class_chunk_size=0: expected at least 1"),
        ({"layer_norm_eps": -1.0}, r"layer_norm_eps=-1\.0"),
        ({"layer_scale_init_value": float("nan")}, "layer_scale_init_value=nan"),
        ({"vision_config": {"model_args": {"checkpoint_path": "x.pth"}}}, "checkpoint_path would read"),
        ({"vision_config": {"architecture": "resnet50"}}, "architecture='resnet50'"),
        ({"vision_config": {"drop_path_rate": 1.5}}, "drop_path_rate=1.5"),
    ],
)
def test_values_that_would_be_wrong_without_a_word_are_refused_by_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(Exception, match=name):
        SEDConfig(**values)
