"""The network: its parts against plain formulations, and what a user of transformers expects of a model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_config
from PIL import Image
from torch import Tensor, nn

from sed_hf import SEDForSemanticSegmentation, SEDModel, SEDProcessor
from sed_hf.data.vocabularies import load_vocabulary
from sed_hf.loss_sed import segmentation_loss
from sed_hf.training.optimizer import enable_gradient_checkpointing

CLASSES = ["cat", "dog, puppy", "grass", "sky", "a wooden table"]


def random_class_embeddings(num_classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_classes, 80, 64, generator=generator), dim=-1)


def random_pixel_values(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def random_photo(width: int, height: int, seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return Image.fromarray((smooth[0].permute(1, 2, 0) * 255).byte().numpy())


class TestClasses:
    @torch.no_grad()
    def test_tokens_and_embeddings_give_the_same_logits(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor
    ) -> None:
        pixel_values = random_pixel_values(1, 3, 64, 64)
        text = tiny_processor(text=CLASSES, return_tensors="pt")
        from_tokens = tiny_model(pixel_values, **text).logits
        from_embeddings = tiny_model(pixel_values, class_embeddings=tiny_model.get_class_embeddings(**text)).logits
        assert torch.equal(from_tokens, from_embeddings)

    @torch.no_grad()
    def test_a_class_is_the_normalised_mean_of_its_synonyms(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor
    ) -> None:
        both, dog, puppy = (
            tiny_model.get_class_embeddings(**tiny_processor(text=text, return_tensors="pt"))[0]
            for text in (["dog, puppy"], ["dog"], ["puppy"])
        )
        torch.testing.assert_close(both, F.normalize((dog + puppy) / 2, dim=-1), rtol=0, atol=1e-6)

    @torch.no_grad()
    def test_each_prompt_is_encoded_once_and_without_padding(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor
    ) -> None:
        encoded: list[Tensor] = []
        hook = tiny_model.text_encoder.register_forward_pre_hook(
            lambda module, args, kwargs: encoded.append(kwargs["input_ids"]), with_kwargs=True
        )
        # "cat" stands in two classes, and the templates give the same prompt for both.
        inputs = tiny_processor(text=["cat, kitten", "lion, cat"], padding="max_length", return_tensors="pt")
        tiny_model.get_class_embeddings(**inputs)
        hook.remove()
        end_of_text = tiny_model.config.text_config.eos_token_id
        assert sum((batch == end_of_text).sum() for batch in encoded) == 3 * 80

    @torch.no_grad()
    def test_what_prompts_share_is_encoded_once(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor
    ) -> None:
        encoded: list[int] = []
        hook = tiny_model.text_encoder.register_forward_pre_hook(
            lambda module, args, kwargs: encoded.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        inputs = tiny_processor(text=load_vocabulary("pascal_context_59"), return_tensors="pt")
        tiny_model.get_class_embeddings(**inputs)
        hook.remove()
        end_of_text = tiny_model.config.text_config.eos_token_id
        assert sum(encoded) < 0.5 * ((inputs["input_ids"] == end_of_text).int().argmax(-1) + 1).sum()

    @torch.no_grad()
    def test_padding_changes_nothing(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor
    ) -> None:
        longest, padded = (
            tiny_model.get_class_embeddings(**tiny_processor(text=CLASSES, padding=padding, return_tensors="pt"))
            for padding in ("longest", "max_length")
        )
        assert torch.equal(longest, padded)

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    @torch.no_grad()
    def test_packed_prompts_equal_padded_ones(
        self, tiny_hub_folder: Path, tiny_processor: SEDProcessor, implementation: str
    ) -> None:
        model = SEDForSemanticSegmentation.from_pretrained(tiny_hub_folder, attn_implementation=implementation)
        names = ["grass", "door", "door frame", "a very long name of a class in the grass"]
        input_ids = tiny_processor(text=names, padding="max_length", return_tensors="pt")["input_ids"]
        padded = F.normalize(model.text_encoder(input_ids=input_ids.flatten(0, 1)).text_embeds, dim=-1)
        torch.testing.assert_close(model.get_class_embeddings(input_ids).flatten(0, 1), padded, rtol=0, atol=1e-5)

    def test_no_gradient_reaches_the_frozen_text_encoder(
        self, make_tiny_model: Callable, tiny_processor: SEDProcessor
    ) -> None:
        text = tiny_processor(text=CLASSES, return_tensors="pt")
        assert not make_tiny_model().get_class_embeddings(**text).requires_grad
        assert make_tiny_model(freeze_text_encoder=False).get_class_embeddings(**text).requires_grad

    def test_text_attention_implementations_agree(self, tiny_hub_folder: Path, tiny_processor: SEDProcessor) -> None:
        text = tiny_processor(text=CLASSES, return_tensors="pt")
        embeddings = []
        for implementation in ("sdpa", "eager"):
            model = SEDForSemanticSegmentation.from_pretrained(tiny_hub_folder, attn_implementation=implementation)
            assert model.text_encoder.config._attn_implementation == implementation
            embeddings.append(model.get_class_embeddings(**text))
        torch.testing.assert_close(*embeddings, rtol=0, atol=1e-6)


class TestInputs:
    @pytest.mark.parametrize("size", [(256, 256), (384, 640), (768, 768), (32, 32), (96, 32)])
    @torch.no_grad()
    def test_any_multiple_of_32_works(self, tiny_model: SEDForSemanticSegmentation, size: tuple[int, int]) -> None:
        outputs = tiny_model(random_pixel_values(1, 3, *size), class_embeddings=random_class_embeddings(2))
        assert outputs.logits.shape == (1, 2, size[0] // 4, size[1] // 4)
        assert outputs.logits.isfinite().all()

    @pytest.mark.parametrize("size", [(250, 256), (256, 250), (0, 32)])
    def test_another_size_is_refused(self, tiny_model: SEDForSemanticSegmentation, size: tuple[int, int]) -> None:
        message = rf"pixel_values: expected .* multiples of 32, got \(1, 3, {size[0]}, {size[1]}\)"
        with pytest.raises(ValueError, match=message):
            tiny_model(torch.zeros(1, 3, *size), class_embeddings=random_class_embeddings(2))

    def test_training_works_at_the_smallest_size(self, make_tiny_model: Callable) -> None:
        model = make_tiny_model().train()
        labels = torch.zeros(1, 32, 32, dtype=torch.long)
        loss = model(random_pixel_values(1, 3, 32, 32), class_embeddings=random_class_embeddings(2), labels=labels).loss
        assert loss.isfinite()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "one of input_ids and class_embeddings, or .*set_classes"),
            ({"class_embeddings": torch.zeros(2, 79, 64)}, r"class_embeddings: expected .*80.*got \(2, 79, 64\)"),
            ({"class_embeddings": torch.zeros(0, 80, 64)}, r"class_embeddings: .*got \(0, 80, 64\)"),
            ({"input_ids": torch.zeros(2, 77, dtype=torch.long)}, r"input_ids: expected .*got \(2, 77\)"),
            ({"input_ids": torch.zeros(2, 80, 5, dtype=torch.long)}, "input_ids: expected the end-of-text token 49407"),
        ],
    )
    def test_wrong_classes_are_refused_by_name(
        self, tiny_model: SEDForSemanticSegmentation, arguments: dict[str, Tensor], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            tiny_model(random_pixel_values(1, 3, 32, 32), **arguments)

    def test_a_label_that_is_no_class_is_refused(self, tiny_model: SEDForSemanticSegmentation) -> None:
        labels = torch.full((1, 32, 32), 7)
        with pytest.raises(ValueError, match=r"labels: expected classes from 0 to 1 or ignore_index=255, got 7"):
            tiny_model(random_pixel_values(1, 3, 32, 32), class_embeddings=random_class_embeddings(2), labels=labels)

    def test_early_rejection_with_labels_is_refused(self, tiny_model: SEDForSemanticSegmentation) -> None:
        with pytest.raises(ValueError, match="early_rejection_topk=1: expected none with labels"):
            tiny_model(
                random_pixel_values(1, 3, 32, 32),
                class_embeddings=random_class_embeddings(2),
                labels=torch.zeros(1, 32, 32, dtype=torch.long),
                early_rejection_topk=1,
            )


class TestOutputs:
    @torch.no_grad()
    def test_intermediate_results_come_on_request(self, tiny_model: SEDForSemanticSegmentation) -> None:
        inputs = {"pixel_values": random_pixel_values(2, 3, 64, 96), "class_embeddings": random_class_embeddings(3)}
        assert tiny_model(**inputs).cost_map is None
        outputs = tiny_model(**inputs, output_hidden_states=True)
        assert outputs.cost_map.shape == (2, 3, 80, 2, 3)
        assert outputs.dense_embeddings.shape == (2, 64, 2, 3)
        assert [tuple(features.shape[1:]) for features in outputs.encoder_hidden_states] == [
            (16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3),
        ]  # fmt: skip
        assert [tuple(features.shape[1:]) for features in outputs.decoder_hidden_states] == [
            (3, 128, 2, 3), (3, 64, 4, 6), (3, 32, 8, 12), (3, 16, 16, 24),
        ]  # fmt: skip

    @torch.no_grad()
    def test_return_dict_false_gives_a_tuple(self, tiny_model: SEDForSemanticSegmentation) -> None:
        inputs = {"pixel_values": random_pixel_values(1, 3, 32, 32), "class_embeddings": random_class_embeddings(3)}
        logits, aux_logits = tiny_model(**inputs, return_dict=False)
        assert torch.equal(logits, tiny_model(**inputs).logits)
        assert len(aux_logits) == 3

    @torch.no_grad()
    def test_image_features_stand_on_their_own(self, tiny_model: SEDForSemanticSegmentation) -> None:
        pixel_values = random_pixel_values(1, 3, 64, 64)
        features = tiny_model.get_image_features(pixel_values)
        outputs = tiny_model(pixel_values, class_embeddings=random_class_embeddings(2), output_hidden_states=True)
        assert torch.equal(features.dense_embeddings, outputs.dense_embeddings)


class TestBatches:
    @pytest.mark.parametrize("topk", [None, 1])
    @torch.no_grad()
    def test_three_mixed_sizes_equal_one_at_a_time(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, topk: int | None
    ) -> None:
        photos = [random_photo(160, 120, 0), random_photo(70, 200, 1), random_photo(300, 100, 2)]
        class_embeddings = random_class_embeddings(12)
        together = tiny_model(
            tiny_processor(images=photos, return_tensors="pt")["pixel_values"],
            class_embeddings=class_embeddings,
            early_rejection_topk=topk,
        )
        alone = [
            tiny_model(
                tiny_processor(images=photo, return_tensors="pt")["pixel_values"],
                class_embeddings=class_embeddings,
                early_rejection_topk=topk,
            )
            for photo in photos
        ]
        logits = torch.cat([one.all_logits() for one in alone])
        torch.testing.assert_close(together.all_logits(), logits, rtol=0, atol=1e-5)
        if topk is not None:
            assert torch.equal(together.kept_classes, torch.cat([one.kept_classes for one in alone]))
            assert len(together.kept_classes[:, -1].sum(1).unique()) > 1, (
                "the images should keep different numbers of classes"
            )


class TestLoss:
    @pytest.mark.parametrize("ignored_as_negative", [True, False])
    @pytest.mark.parametrize("max_bytes", [1, 4 * 3 * 2 * 20 * 30, None])
    def test_loss_and_gradient_equal_binary_cross_entropy(
        self, ignored_as_negative: bool, max_bytes: int | None
    ) -> None:
        logits = random_pixel_values(2, 7, 5, 8).requires_grad_()
        labels = torch.randint(0, 8, (2, 20, 30), generator=torch.Generator().manual_seed(0))
        labels[labels == 7] = 255
        loss = segmentation_loss(logits, labels, 255, ignored_as_negative, max_bytes)
        (gradient,) = torch.autograd.grad(loss, logits)

        resized = F.interpolate(logits, size=(20, 30), mode="bilinear", align_corners=False)
        target = F.one_hot(labels.where(labels != 255, 7), 8)[..., :7].permute(0, 3, 1, 2).float()
        terms = F.binary_cross_entropy_with_logits(resized, target, reduction="none")
        expected = terms.mean() if ignored_as_negative else terms.movedim(1, -1)[labels != 255].mean()
        (expected_gradient,) = torch.autograd.grad(expected, logits)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-8)

    def test_an_image_without_any_label_gives_zero_when_ignored_pixels_do_not_count(self) -> None:
        labels = torch.full((1, 8, 8), 255)
        assert segmentation_loss(random_pixel_values(1, 2, 4, 4), labels, 255, ignored_as_negative=False) == 0


class TestTraining:
    def losses_and_gradients(self, model: SEDForSemanticSegmentation) -> dict[str, Tensor]:
        labels = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(0))
        inputs = {"pixel_values": random_pixel_values(2, 3, 64, 64), "class_embeddings": random_class_embeddings(3)}
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return {"loss": loss.detach(), **gradients}

    @pytest.mark.parametrize("options", [None, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
    def test_gradient_checkpointing_gives_equal_gradients(
        self, make_tiny_model: Callable, options: dict | None
    ) -> None:
        plain, checkpointed = make_tiny_model().double().train(), make_tiny_model().double().train()
        checkpointed.gradient_checkpointing_enable(options)
        expected, actual = self.losses_and_gradients(plain), self.losses_and_gradients(checkpointed)
        assert set(actual) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-6, atol=1e-12, msg=name)

    def test_gradients_are_laid_out_as_their_parameters(self, make_tiny_model: Callable) -> None:
        """Otherwise distributed training copies them."""
        model = make_tiny_model().train()
        self.losses_and_gradients(model)
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.stride() == parameter.stride(), name

    def test_gradient_checkpointing_keeps_fewer_activations(self, make_tiny_model: Callable) -> None:
        def saved_elements(model: SEDForSemanticSegmentation) -> int:
            saved: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                saved[tensor.data_ptr()] = tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                model(random_pixel_values(1, 3, 64, 64), class_embeddings=random_class_embeddings(8))
            return sum(saved.values())

        plain, checkpointed = make_tiny_model().train(), make_tiny_model().train()
        enable_gradient_checkpointing(checkpointed)
        assert saved_elements(checkpointed) < 0.5 * saved_elements(plain)

    def test_auxiliary_heads_train_only_themselves(self, make_tiny_model: Callable) -> None:
        model = make_tiny_model().train()
        outputs = model(random_pixel_values(1, 3, 32, 32), class_embeddings=random_class_embeddings(2))
        sum(logits.sum() for logits in outputs.aux_logits).backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert trained == {
            f"decoder.auxiliary_heads.{index}.{kind}" for index in range(3) for kind in ("weight", "bias")
        }


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @torch.no_grad()
    def test_half_precision_is_within_5_percent_of_the_range(
        self, tiny_hub_folder: Path, tiny_model: SEDForSemanticSegmentation, dtype: torch.dtype
    ) -> None:
        model = SEDForSemanticSegmentation.from_pretrained(tiny_hub_folder, dtype=dtype).eval()
        pixel_values, class_embeddings = random_pixel_values(1, 3, 256, 256), random_class_embeddings(10)
        expected = tiny_model(pixel_values, class_embeddings=class_embeddings).logits
        logits = model(pixel_values, class_embeddings=class_embeddings).logits
        assert logits.dtype == dtype
        assert (logits.float() - expected).abs().max() < 0.05 * (expected.max() - expected.min())

    @torch.no_grad()
    def test_half_precision_class_embeddings_are_close(
        self, tiny_hub_folder: Path, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor
    ) -> None:
        model = SEDForSemanticSegmentation.from_pretrained(tiny_hub_folder, dtype=torch.bfloat16)
        text = tiny_processor(text=CLASSES, return_tensors="pt")
        difference = model.get_class_embeddings(**text).float() - tiny_model.get_class_embeddings(**text)
        assert difference.abs().max() < 0.02


class TestCompilation:
    @torch.no_grad()
    def test_the_dense_path_compiles_without_graph_breaks(self, tiny_model: SEDForSemanticSegmentation) -> None:
        pixel_values, class_embeddings = random_pixel_values(1, 3, 64, 64), random_class_embeddings(3)
        compiled = torch.compile(tiny_model, fullgraph=True, backend="aot_eager")
        logits = compiled(pixel_values, class_embeddings=class_embeddings).logits
        expected = tiny_model(pixel_values, class_embeddings=class_embeddings).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        torch.compiler.reset()


class TestInitialization:
    @pytest.fixture(scope="class")
    @classmethod
    def fresh(cls) -> SEDForSemanticSegmentation:
        torch.manual_seed(0)
        return SEDForSemanticSegmentation(make_tiny_config())

    @pytest.fixture(scope="class")
    @classmethod
    def partly_loaded(
        cls, fresh: SEDForSemanticSegmentation, tmp_path_factory: pytest.TempPathFactory
    ) -> SEDForSemanticSegmentation:
        """Loaded from a checkpoint that holds the main head alone: the rest comes up on the meta device."""
        folder = tmp_path_factory.mktemp("part")
        head = {name: tensor for name, tensor in fresh.state_dict().items() if name.startswith("decoder.head.")}
        fresh.save_pretrained(folder, state_dict=head)
        return SEDForSemanticSegmentation.from_pretrained(folder)

    def test_the_trunk_starts_as_in_timm_and_the_decoder_as_in_torch(self, fresh: SEDForSemanticSegmentation) -> None:
        trunk, decoder = fresh.image_encoder.trunk, fresh.decoder
        assert (decoder.stages[0].spatial_block.layer_scale == 1).all()
        assert (trunk.stages[0].blocks[0].gamma == torch.tensor(1e-6)).all()
        torch.testing.assert_close(trunk.stages[2].blocks[0].mlp.fc1.weight.std().item(), 0.02, rtol=0.05, atol=0)
        assert (trunk.stages[2].blocks[0].mlp.fc1.bias == 0).all()
        # torch's own: uniform within 1 / sqrt(fan in)
        bound = (80 * 49) ** -0.5
        torch.testing.assert_close(decoder.cost_embedding.weight.abs().max().item(), bound, rtol=0.01, atol=0)

    def test_what_a_checkpoint_lacks_is_initialised(
        self, fresh: SEDForSemanticSegmentation, partly_loaded: SEDForSemanticSegmentation
    ) -> None:
        assert torch.equal(partly_loaded.decoder.head.weight, fresh.decoder.head.weight)
        for (name, parameter), expected in zip(partly_loaded.named_parameters(), fresh.parameters(), strict=True):
            assert parameter.isfinite().all(), name
            if expected.numel() > 500:
                torch.testing.assert_close(parameter.std(), expected.std(), rtol=0.2, atol=1e-7, msg=name)
        for (name, buffer), expected in zip(partly_loaded.named_buffers(), fresh.buffers(), strict=True):
            assert torch.equal(buffer, expected), name

    def test_layer_scale_of_the_trunk_follows_its_arguments(self) -> None:
        config = make_tiny_config()
        config.vision_config.model_args["ls_init_value"] = 0.5
        model = SEDForSemanticSegmentation(config)
        assert (model.image_encoder.trunk.stages[3].blocks[0].gamma == 0.5).all()


class TestSavingAndLoading:
    @torch.no_grad()
    def test_logits_are_bit_equal_after_a_round_trip(
        self, tiny_model: SEDForSemanticSegmentation, tmp_path: Path
    ) -> None:
        tiny_model.save_pretrained(tmp_path)
        loaded = SEDForSemanticSegmentation.from_pretrained(tmp_path)
        inputs = {"pixel_values": random_pixel_values(1, 3, 64, 64), "class_embeddings": random_class_embeddings(3)}
        assert torch.equal(loaded(**inputs).logits, tiny_model(**inputs).logits)

    @torch.no_grad()
    def test_weights_may_be_sharded(self, tiny_model: SEDForSemanticSegmentation, tmp_path: Path) -> None:
        tiny_model.save_pretrained(tmp_path, max_shard_size="2MB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        loaded = SEDForSemanticSegmentation.from_pretrained(tmp_path)
        assert all(map(torch.equal, loaded.state_dict().values(), tiny_model.state_dict().values()))

    @pytest.mark.parametrize(
        "device_map",
        [
            "cpu",
            "auto",
            {"": "cpu"},
            {"sed.image_encoder": "cpu", "sed.text_encoder": "disk", "sed.logit_scale": "cpu", "decoder": "disk"},
        ],
        ids=["cpu", "auto", "whole", "offloaded"],
    )
    @torch.no_grad()
    def test_device_map_places_the_parts(
        self,
        tiny_hub_folder: Path,
        tiny_model: SEDForSemanticSegmentation,
        tiny_processor: SEDProcessor,
        tmp_path: Path,
        device_map: str | dict[str, str],
    ) -> None:
        model = SEDForSemanticSegmentation.from_pretrained(
            tiny_hub_folder, device_map=device_map, offload_folder=tmp_path
        )
        inputs = tiny_processor(images=random_photo(64, 64, 0), text=CLASSES, return_tensors="pt")
        torch.testing.assert_close(model(**inputs).logits, tiny_model(**inputs).logits, rtol=0, atol=1e-5)

    def test_a_trunk_that_is_no_convnext_is_refused(self) -> None:
        config = make_tiny_config()
        config.vision_config = {"architecture": "resnet18"}
        with pytest.raises(Exception, match="resnet18"):
            SEDForSemanticSegmentation(type(config)(**config.to_dict()))


class TestBaseModel:
    """`SEDModel`: everything but the decoder."""

    @torch.no_grad()
    def test_it_loads_from_the_folder_of_the_whole_model(
        self, tiny_hub_folder: Path, tiny_model: SEDForSemanticSegmentation
    ) -> None:
        base = SEDModel.from_pretrained(tiny_hub_folder)
        inputs = {"pixel_values": random_pixel_values(2, 3, 64, 96), "class_embeddings": random_class_embeddings(3)}
        expected = tiny_model(**inputs, output_hidden_states=True)
        for name, value in base(**inputs).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)

    @torch.no_grad()
    def test_the_whole_model_loads_what_the_base_has_saved(
        self, tiny_hub_folder: Path, tiny_model: SEDForSemanticSegmentation, tmp_path: Path
    ) -> None:
        SEDModel.from_pretrained(tiny_hub_folder).save_pretrained(tmp_path)
        loaded, report = SEDForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        assert report["missing_keys"]
        assert all(name.startswith("decoder.") for name in report["missing_keys"])
        pixel_values = random_pixel_values(1, 3, 64, 64)
        expected = tiny_model.get_image_features(pixel_values).dense_embeddings
        torch.testing.assert_close(loaded.get_image_features(pixel_values).dense_embeddings, expected)

    def test_parts_are_found_by_the_names_of_the_paper(self, tiny_model: SEDForSemanticSegmentation) -> None:
        parts: dict[str, nn.Module] = dict(tiny_model.named_children())
        assert list(parts) == ["sed", "decoder"]
        assert [name for name, _ in tiny_model.base_model.named_children()] == ["image_encoder", "text_encoder"]
