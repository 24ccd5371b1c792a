"""Any valid configuration survives every round trip and builds; any single invalid field is refused by its name."""

import json
import math
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import ENCODER_HIDDEN_SIZES
from strategies import decoder_settings, examples

from sed_hf import SEDConfig, SEDForSemanticSegmentation
from sed_hf.decoder_sed import SEDDecoder

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


# For each field values that it cannot have. None is the default of no field but those that allow it.
other_types = st.sampled_from([None, "many", 1.5, [1], {"a": 1}])
no_counts = st.integers(max_value=0) | other_types | st.booleans()
not_finite = st.sampled_from([math.nan, math.inf, -math.inf])
no_widths = st.one_of(
    other_types,
    st.lists(st.just(16), max_size=2),
    st.lists(st.just(16), min_size=5, max_size=6),
    st.integers(max_value=0).map(lambda width: [16, width, 16, 16]),
)
no_probabilities = not_finite | st.floats(max_value=0, exclude_max=True) | st.floats(1) | st.just("half")
INVALID: dict[str, st.SearchStrategy[Any]] = {
    "projection_dim": no_counts,
    "prompt_templates": st.one_of(
        st.sampled_from([None, [], "a {}", ["a"], ["{} {}"], ["a {}", ""], ["a {}", 3]]),
        st.lists(st.text().filter(lambda text: "{}" not in text), min_size=1),
    ),
    "cost_embedding_kernel_size": no_counts | st.integers(1, 50).map(lambda half: 2 * half),
    "decoder_kernel_size": no_counts | st.integers(1, 50).map(lambda half: 2 * half),
    "decoder_hidden_sizes": no_widths | st.just([16, 16, 16]),
    "skip_guidance_sizes": no_widths | st.just([4, 4, 4, 4]),
    "cost_guidance_sizes": no_widths | st.just([4, 4, 4, 4]),
    "decoder_mlp_ratio": no_counts,
    "group_norm_group_size": no_counts | st.sampled_from([3, 5, 33]),
    "num_attention_heads": no_counts | st.sampled_from([3, 5, 33]),
    "class_attention_type": st.none() | st.integers() | st.text().filter(lambda text: text not in ("linear", "full")),
    "train_pooling_size": no_counts,
    "inference_pooling_size": no_counts,
    "early_rejection_topk": st.integers(max_value=0) | st.sampled_from(["many", 1.5, [1], True]),
    "class_chunk_size": st.integers(max_value=0) | st.sampled_from(["many", 1.5, [1], True]),
    "layer_scale_init_value": not_finite | st.sampled_from([None, "one", [1]]),
    "layer_norm_eps": not_finite | st.floats(max_value=0) | st.sampled_from([None, "small", [1]]),
    "logit_scale_init_value": not_finite | st.sampled_from([None, "one", [1]]),
    "ignore_index": st.sampled_from([None, "none", 1.5, [255], 2**63, -(2**63) - 1]),
    "freeze_text_encoder": st.sampled_from([None, "yes", 1, 0.0]),
    "ignored_as_negative": st.sampled_from([None, "yes", 1, 0.0]),
    "vision_config": st.sampled_from(["base", 3, [1]]),
    "text_config": st.sampled_from(["base", 3, [1]]),
    "vision_config.architecture": st.sampled_from([None, "", "resnet50", 3]),
    "vision_config.model_args": st.sampled_from([None, "small", [1]]),
    "vision_config.drop_path_rate": no_probabilities,
    "vision_config.projection": st.none()
    | st.integers()
    | st.text().filter(lambda text: text not in ("linear", "mlp")),
    "vision_config.projection_dropout": no_probabilities,
    "text_config.hidden_size": no_counts,
    "text_config.intermediate_size": no_counts,
    "text_config.num_hidden_layers": no_counts,
    "text_config.num_attention_heads": no_counts | st.sampled_from([3, 7, 11]),
    "text_config.vocab_size": no_counts,
    "text_config.max_position_embeddings": no_counts,
    "text_config.hidden_act": st.sampled_from([None, "", "gelu_of_mine", 3]),
    "text_config.layer_norm_eps": not_finite | st.floats(max_value=0) | st.sampled_from([None, "small", [1]]),
    "text_config.attention_dropout": no_probabilities,
    "text_config.projection_dim": st.integers(max_value=0) | st.sampled_from([32, "wide", 1.5]),
}


@pytest.mark.parametrize("field", INVALID)
@given(data=st.data())
def test_any_impossible_value_of_a_field_is_refused_by_its_name(field: str, data: st.DataObject) -> None:
    value = data.draw(INVALID[field], field)
    *part, name = field.split(".")
    with pytest.raises(Exception, match=name):
        SEDConfig(**({part[0]: {name: value}} if part else {name: value}))


def test_every_field_has_impossible_values_to_try() -> None:
    own = SEDConfig.__annotations__.keys() - {"sub_configs"}
    assert own <= INVALID.keys()
