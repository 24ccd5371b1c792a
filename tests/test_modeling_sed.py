"""The network as a user of transformers expects it: classes, inputs, outputs, training, saving."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_config
from decoder_inputs import seeded
from small_models import TEMPLATES, make_small_model, small_model, small_processor
from torch import Tensor

from sed_hf import SEDConfig, SEDModel, SEDProcessor
from sed_hf import SEDForSemanticSegmentation as Model

CLASSES = ["cat", "dog, puppy", "grass", "sky", "a wooden table"]


def text_inputs(names: list[str] = CLASSES, **options: Any) -> dict[str, Tensor]:
    return dict(small_processor()(text=names, **options))


def inputs(count: int = 3, batch_size: int = 1, size: tuple[int, int] = (64, 64)) -> dict[str, Tensor]:
    """Random images and class embeddings."""
    embeddings = F.normalize(seeded(count, len(TEMPLATES), 16), dim=-1)
    return {"pixel_values": seeded(batch_size, 3, *size), "class_embeddings": embeddings}


class TestClasses:
    @torch.no_grad()
    def test_what_prompts_share_is_encoded_once_and_no_padding(self) -> None:
        model, encoded = make_small_model(), []
        model.text_encoder.register_forward_pre_hook(
            lambda module, args, kwargs: encoded.append(kwargs["input_ids"]), with_kwargs=True
        )
        # "cat" stands in two classes, and the templates give the same prompt for both.
        tokens = text_inputs(["cat, kitten", "lion, cat"], padding="max_length")
        model.get_class_embeddings(**tokens)
        prompts = [prompt[prompt > 0].tolist() for prompt in tokens["input_ids"].flatten(0, 1)]
        beginnings = {tuple(prompt[: index + 1]) for prompt in prompts for index in range(len(prompt))}
        assert torch.cat(encoded).count_nonzero() == len(beginnings)

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    @torch.no_grad()
    def test_packed_prompts_equal_padded_ones(
        self, tiny_hub_folder: Path, tiny_processor: SEDProcessor, implementation: str
    ) -> None:
        model = Model.from_pretrained(tiny_hub_folder, attn_implementation=implementation)
        assert model.text_encoder.config._attn_implementation == implementation
        names = ["grass", "door", "door frame", "a very long name of a class in the grass"]
        input_ids = tiny_processor(text=names, padding="max_length", return_tensors="pt")["input_ids"]
        padded = F.normalize(model.text_encoder(input_ids=input_ids.flatten(0, 1)).text_embeds, dim=-1)
        torch.testing.assert_close(model.get_class_embeddings(input_ids).flatten(0, 1), padded, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_a_prompt_without_an_end_of_text_token_ends_with_its_last(self) -> None:
        input_ids = text_inputs(["cat"])["input_ids"][..., :3]
        encoder = small_model().text_encoder
        last = encoder.text_projection(encoder(input_ids=input_ids[0]).last_hidden_state[:, -1])
        embeddings = small_model().get_class_embeddings(input_ids)[0]
        torch.testing.assert_close(embeddings, F.normalize(last, dim=-1), rtol=0, atol=1e-5)


class TestHeldClasses:
    @torch.no_grad()
    def test_they_serve_when_a_call_brings_none(self) -> None:
        model, pixel_values, others = make_small_model(), *inputs(2).values()
        expected = model(pixel_values, **text_inputs()).logits
        with torch.inference_mode():
            model.set_classes(**text_inputs())
        assert torch.equal(model(pixel_values).logits, expected)
        assert torch.equal(model.sed(pixel_values).cost_map, model.sed(pixel_values, **text_inputs()).cost_map)
        assert model(pixel_values, class_embeddings=others).logits.shape[1] == 2
        model.set_classes(others)
        others.zero_()  # what is held is a copy
        assert model.sed.class_embeddings.norm() > 0
        model.set_classes(None)
        with pytest.raises(ValueError, match=r"model\.set_classes"):
            model(pixel_values)

    def test_they_are_encoded_where_the_model_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def encode(**inputs: Tensor) -> Tensor:
            assert {value.device.type for value in inputs.values()} == {"meta"}
            return torch.zeros(3, len(TEMPLATES), 16)

        model = make_small_model().to("meta")
        monkeypatch.setattr(model, "get_class_embeddings", encode)
        model.set_classes(**text_inputs())
        assert model.sed.class_embeddings.is_meta

    @pytest.mark.parametrize("save", [False, True])
    @torch.no_grad()
    def test_they_are_saved_only_when_that_is_asked(self, save: bool, tmp_path: Path) -> None:
        model = make_small_model()
        model.set_classes(save=save, **text_inputs())
        model.save_pretrained(tmp_path)
        loaded, report = Model.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        held = loaded.sed.class_embeddings
        assert torch.equal(held, model.sed.class_embeddings) if save else held is None


class TestFrozenTextEncoder:
    def test_its_parameters_require_no_gradient(self, tmp_path: Path) -> None:
        make_small_model().save_pretrained(tmp_path)
        for model in (make_small_model(), Model.from_pretrained(tmp_path)):
            frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
            text_encoder = {f"sed.text_encoder.{name}" for name, _ in model.text_encoder.named_parameters()}
            assert frozen == {*text_encoder, "sed.logit_scale"}
            num_frozen = model.text_encoder.num_parameters() + 1
            assert model.num_parameters(only_trainable=True) == model.num_parameters() - num_frozen
            assert not model.get_class_embeddings(**text_inputs()).requires_grad

    def test_it_trains_if_the_configuration_says_so(self, tmp_path: Path) -> None:
        make_small_model().save_pretrained(tmp_path)
        model = Model.from_pretrained(tmp_path, freeze_text_encoder=False)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {"sed.logit_scale"}  # which no gradient reaches
        assert model.get_class_embeddings(**text_inputs()).requires_grad

    def test_its_vocabulary_can_grow(self) -> None:
        model = make_small_model()
        before = model.get_input_embeddings().num_embeddings
        model.resize_token_embeddings(before + 3)
        assert model.get_input_embeddings().num_embeddings == model.config.text_config.vocab_size == before + 3
        assert not model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_embeddings": None}, "one of input_ids and class_embeddings"),
        ({"class_embeddings": torch.zeros(0, 3, 16)}, r"class_embeddings: .*got \(0, 3, 16\)"),
        ({"class_embeddings": torch.zeros(2, 4, 16)}, r"class_embeddings: .*got \(2, 4, 16\)"),
        ({"input_ids": torch.zeros(2, 7).long(), "class_embeddings": None}, r"input_ids: .*got \(2, 7\)"),
        ({"pixel_values": torch.zeros(1, 3, 32, 48)}, r"pixel_values: .*got \(1, 3, 32, 48\)"),
        ({"pixel_values": torch.zeros(1, 3, 0, 32)}, r"pixel_values: .*got \(1, 3, 0, 32\)"),
        ({"labels": torch.full((1, 4, 4), 7)}, "labels: expected classes from 0 to 1 or ignore_index=255, got 7"),
        ({"labels": torch.full((1, 4, 4), -1)}, "labels: expected classes from 0 to 1 .*, got -1"),
        ({"labels": torch.zeros(4, 4).long()}, r"labels: expected integers \(1, height, width\)"),
        ({"early_rejection_topk": 1, "labels": torch.zeros(1, 4, 4)}, "topk=1: expected a whole number, and 0"),
    ],
)
def test_wrong_inputs_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model()(**{**inputs(2), **arguments})


class TestOutputs:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @torch.no_grad()
    def test_intermediate_results_come_on_request_in_the_shapes_of_the_documentation(self, dtype: torch.dtype) -> None:
        arguments = inputs(batch_size=2, size=(64, 96))
        plain = small_model(dtype)(**arguments)
        assert set(plain) == {"logits", "aux_logits"}
        assert plain.cost_map is None
        outputs = small_model(dtype)(**arguments, output_hidden_states=True)
        assert outputs.logits.dtype == outputs.cost_map.dtype == dtype
        assert outputs.logits.shape == (2, 3, 16, 24)
        assert [logits.shape for logits in outputs.aux_logits] == [(2, 3, 2, 3), (2, 3, 4, 6), (2, 3, 8, 12)]
        assert outputs.cost_map.shape == (2, 3, len(TEMPLATES), 2, 3)
        assert outputs.dense_embeddings.shape == (2, 16, 2, 3)
        assert outputs.hidden_states is outputs.encoder_hidden_states
        assert [features.shape[1:] for features in outputs.encoder_hidden_states] == [
            (4, 16, 24), (6, 8, 12), (8, 4, 6), (10, 2, 3),
        ]  # fmt: skip
        assert [features.shape[1:] for features in outputs.decoder_hidden_states] == [
            (3, 16, 2, 3), (3, 16, 4, 6), (3, 8, 8, 12), (3, 8, 16, 24),
        ]  # fmt: skip

    @torch.no_grad()
    def test_image_features_have_the_form_that_transformers_gives_them(self) -> None:
        pixel_values = inputs()["pixel_values"]
        features = small_model().get_image_features(pixel_values)
        outputs = small_model()(**inputs(), output_hidden_states=True)
        assert torch.equal(features.pooler_output, outputs.dense_embeddings)
        assert torch.equal(features.last_hidden_state, outputs.hidden_states[-1])
        assert features.hidden_states is None
        assert len(small_model().get_image_features(pixel_values, output_hidden_states=True).hidden_states) == 4
        assert isinstance(small_model().get_image_features(pixel_values, return_dict=False), tuple)


class TestTraining:
    def losses_and_gradients(self, model: Model) -> dict[str, Tensor]:
        labels = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(0))
        loss = model(**inputs(batch_size=2), labels=labels).loss
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return {"loss": loss.detach(), **gradients}

    @pytest.mark.parametrize("options", [None, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
    @pytest.mark.parametrize(
        "trained", ["", "sed.image_encoder.trunk.stages.2.", "sed.image_encoder.projection.", "decoder.stages.1."]
    )
    def test_gradient_checkpointing_gives_equal_gradients(self, trained: str, options: dict | None) -> None:
        plain, checkpointed = (make_small_model().double().train() for _ in range(2))
        for model in (plain, checkpointed):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name.startswith(trained))
        checkpointed.gradient_checkpointing_enable(options)
        expected, actual = self.losses_and_gradients(plain), self.losses_and_gradients(checkpointed)
        assert set(actual) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-6, atol=1e-12, msg=name)

    def test_gradients_are_laid_out_as_their_parameters(self) -> None:
        """Otherwise distributed training copies them."""
        model = make_small_model().train()
        self.losses_and_gradients(model)
        for name, parameter in model.named_parameters():
            assert parameter.is_contiguous(), name
            assert parameter.grad is None or parameter.grad.is_contiguous(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_within_5_percent_of_the_range(
    tiny_hub_folder: Path, tiny_model: Model, tiny_processor: SEDProcessor, dtype: torch.dtype
) -> None:
    model = Model.from_pretrained(tiny_hub_folder, dtype=dtype).eval()
    arguments = {"pixel_values": seeded(1, 3, 64, 64), **tiny_processor(text=CLASSES, return_tensors="pt")}
    expected, logits = tiny_model(**arguments).logits, model(**arguments).logits
    assert logits.dtype == dtype
    assert (logits.float() - expected).abs().max() < 0.05 * (expected.max() - expected.min())


class TestInitialization:
    def test_the_trunk_starts_as_in_timm_and_the_decoder_as_in_torch(self) -> None:
        torch.manual_seed(0)
        fresh = Model(make_tiny_config())
        trunk, decoder = fresh.image_encoder.trunk, fresh.decoder
        assert (decoder.stages[0].spatial_block.layer_scale == 1).all()
        assert (trunk.stages[0].blocks[0].gamma == torch.tensor(1e-6)).all()
        torch.testing.assert_close(trunk.stages[2].blocks[0].mlp.fc1.weight.std().item(), 0.02, rtol=0.05, atol=0)
        assert (trunk.stages[2].blocks[0].mlp.fc1.bias == 0).all()
        # torch's own: uniform within 1 / sqrt(fan in)
        bound = (80 * 49) ** -0.5
        torch.testing.assert_close(decoder.cost_embedding.weight.abs().max().item(), bound, rtol=0.01, atol=0)

    def test_what_a_checkpoint_lacks_is_initialised(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        fresh = Model(make_tiny_config())
        head = {name: tensor for name, tensor in fresh.state_dict().items() if name.startswith("decoder.head.")}
        fresh.save_pretrained(tmp_path, state_dict=head)
        loaded = Model.from_pretrained(tmp_path)
        assert torch.equal(loaded.decoder.head.weight, fresh.decoder.head.weight)
        for (name, parameter), expected in zip(loaded.named_parameters(), fresh.parameters(), strict=True):
            assert parameter.isfinite().all(), name
            if expected.numel() > 500:
                torch.testing.assert_close(parameter.std(), expected.std(), rtol=0.2, atol=1e-7, msg=name)


class TestSavingAndLoading:
    @torch.no_grad()
    def test_a_model_of_a_configuration_saved_in_bfloat16_is_of_one_type(self, tmp_path: Path) -> None:
        make_small_model().save_pretrained(tmp_path)
        Model.from_pretrained(tmp_path, dtype=torch.bfloat16).save_pretrained(tmp_path)
        model = Model(SEDConfig.from_pretrained(tmp_path))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def test_the_whole_and_the_base_model_load_from_the_folder_of_the_whole(self, tmp_path: Path) -> None:
        small_model().save_pretrained(tmp_path)
        expected = small_model()(**inputs(), output_hidden_states=True)
        assert torch.equal(Model.from_pretrained(tmp_path)(**inputs()).logits, expected.logits)
        for name, value in SEDModel.from_pretrained(tmp_path)(**inputs()).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)

    @torch.no_grad()
    def test_the_whole_model_loads_what_the_base_has_saved(self, tmp_path: Path) -> None:
        small_model().sed.save_pretrained(tmp_path)
        loaded, report = Model.from_pretrained(tmp_path, output_loading_info=True)
        assert report["missing_keys"]
        assert all(name.startswith("decoder.") for name in report["missing_keys"])
        ours, expected = (model.get_image_features(seeded(1, 3, 64, 64)) for model in (loaded, small_model()))
        torch.testing.assert_close(ours.pooler_output, expected.pooler_output)
