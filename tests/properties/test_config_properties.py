"""Any valid configuration survives every round trip and builds."""

import json
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import ENCODER_HIDDEN_SIZES
from strategies import decoder_settings, examples

from sed_hf import SEDConfig, SEDForSemanticSegmentation
from sed_hf.modeling_sed import SEDDecoder

finite = st.floats(allow_nan=False, allow_infinity=False)
probabilities = st.floats(0, 1, exclude_max=True)
whole_numbers = st.integers(1, 1000)
templates = st.text(max_size=12).map(lambda text: text.replace("{", "").replace("}", "") + " {}")


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    """Valid settings of a `SEDConfig`, of any of its fields."""
    heads = draw(st.integers(1, 4))
    optional = st.fixed_dictionaries(
        {},
        optional={
            "prompt_templates": st.lists(templates, min_size=1, max_size=4),
            "layer_scale_init_value": finite,
            "layer_norm_eps": st.floats(1e-12, 1e-2),
            "early_rejection_topk": st.none() | whole_numbers,
            "freeze_text_encoder": st.booleans(),
            "logit_scale_init_value": finite,
            "ignore_index": st.integers(-(2**31), 2**31 - 1),
            "ignored_as_negative": st.booleans(),
            "vision_config": st.fixed_dictionaries(
                {"architecture": st.sampled_from(["convnext_atto", "convnext_base", "convnextv2_tiny"])},
                optional={
                    "drop_path_rate": probabilities,
                    "projection": st.sampled_from(["linear", "mlp"]),
                    "projection_dropout": probabilities,
                    "model_args": st.fixed_dictionaries(
                        {"depths": st.just([1, 1, 1, 1]), "dims": st.just([4, 4, 8, 8])}
                    ),
                },
            ),
            "text_config": st.fixed_dictionaries(
                {
                    "hidden_size": st.integers(1, 8).map(lambda width: width * heads),
                    "num_attention_heads": st.just(heads),
                },
                optional={
                    "intermediate_size": st.integers(1, 64),
                    "num_hidden_layers": st.integers(1, 3),
                    "hidden_act": st.sampled_from(["gelu", "quick_gelu", "relu"]),
                },
            ),
        },
    )
    return {**draw(decoder_settings()), **draw(optional)}


def plain(config: SEDConfig) -> dict[str, Any]:
    """What JSON can say of a configuration."""
    return json.loads(config.to_json_string(use_diff=False))


class TestValidSettings:
    @given(settings())
    def test_every_value_is_kept(self, settings: dict[str, Any]) -> None:
        config = SEDConfig(**settings).to_dict()
        for name, value in settings.items():
            expected = value.items() if isinstance(value, dict) else ()
            assert all(config[name][key] == part for key, part in expected)
            assert isinstance(value, dict) or config[name] == value

    @given(settings())
    def test_they_survive_dicts_and_json(self, settings: dict[str, Any]) -> None:
        config = SEDConfig(**settings)
        assert plain(SEDConfig.from_dict(config.to_dict())) == plain(config)
        assert plain(SEDConfig.from_dict(json.loads(config.to_json_string()))) == plain(config)

    @given(settings())
    def test_they_survive_saving(self, settings: dict[str, Any]) -> None:
        config = SEDConfig(**settings)
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            loaded = SEDConfig.from_pretrained(folder)
        ours, theirs = plain(config), plain(loaded)
        assert theirs == ours

    @given(settings())
    @examples(10)
    def test_they_build_a_model(self, settings: dict[str, Any]) -> None:
        small = {"vision_config": {"model_args": {"depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8]}}}
        small["text_config"] = {"hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1}
        with torch.device("meta"):
            model = SEDForSemanticSegmentation(SEDConfig(**{**small, **settings}))
        assert len(model.decoder.stages) == 3

    @given(decoder_settings())
    def test_they_build_a_decoder_of_the_widths_asked_for(self, settings: dict[str, Any]) -> None:
        with torch.device("meta"):
            decoder = SEDDecoder(SEDConfig(**settings), ENCODER_HIDDEN_SIZES)
        widths = [head.in_channels for head in (*decoder.auxiliary_heads, decoder.head)]
        assert widths == settings["decoder_hidden_sizes"]
        assert decoder.cost_embedding.in_channels == len(settings["prompt_templates"])
