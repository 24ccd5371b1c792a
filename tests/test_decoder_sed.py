"""The decoder, which takes classes in chunks and locations in tiles, against the plain one that takes all at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_config
from huggingface_hub.errors import StrictDataclassClassValidationError
from largest_tensor import LargestTensor
from plain_decoder import PlainOutput, plain_decode
from torch import Tensor, nn

from sed_hf import SEDForSemanticSegmentation, SEDProcessor, SEDSemanticSegmentationOutput, decoder_sed
from sed_hf.decoder_sed import CHUNK_BYTES, SEDDecoder, SEDDecoderOutput, hold, linear_attention, select_classes
from sed_hf.training.optimizer import enable_gradient_checkpointing

LOGITS = 1e-4


def seeded(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def random_inputs(num_classes: int = 7, batch_size: int = 1, height: int = 64, width: int = 96) -> dict[str, Any]:
    """Inputs of a decoder of `tiny`."""
    return {
        "dense_embeddings": F.normalize(seeded(batch_size, 64, height // 32, width // 32), dim=1),
        "class_embeddings": F.normalize(seeded(num_classes, 80, 64), dim=-1),
        "encoder_hidden_states": tuple(
            seeded(batch_size, channels, height // stride, width // stride)
            for channels, stride in ((16, 4), (32, 8), (64, 16), (128, 32))
        ),
    }


def assert_decodes_as_plain(decoder: SEDDecoder, inputs: dict[str, Any]) -> None:
    expected, actual = plain_decode(decoder, **inputs), decoder(**inputs)
    for ours, plain in zip((actual.logits, *actual.aux_logits), (expected.logits, *expected.aux_logits), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=LOGITS)


class TestDenseDecoding:
    @pytest.mark.parametrize("class_chunk_size", [None, 1, 2, 3, 7, 100])
    @torch.no_grad()
    def test_any_chunk_size_equals_the_plain_decoder(self, make_tiny_model: Callable, class_chunk_size: int) -> None:
        assert_decodes_as_plain(make_tiny_model(class_chunk_size=class_chunk_size).decoder, random_inputs())

    @pytest.mark.parametrize("chunk_bytes", [1, 2**14, 2**18])
    @torch.no_grad()
    def test_any_tile_size_equals_the_plain_decoder(
        self, tiny_model: SEDForSemanticSegmentation, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
    ) -> None:
        monkeypatch.setitem(CHUNK_BYTES, "cpu", chunk_bytes)
        assert_decodes_as_plain(tiny_model.decoder, random_inputs(5, height=64, width=64))

    @pytest.mark.parametrize("group_bytes", [1, 2**16])
    @torch.no_grad()
    def test_any_group_size_equals_the_plain_decoder(
        self, make_tiny_model: Callable, monkeypatch: pytest.MonkeyPatch, group_bytes: int
    ) -> None:
        monkeypatch.setattr(decoder_sed, "GROUP_BYTES", group_bytes)
        assert_decodes_as_plain(make_tiny_model(class_chunk_size=3).decoder, random_inputs(batch_size=2))

    @pytest.mark.parametrize("batch_size", [2, 3])
    @torch.no_grad()
    def test_a_batch_equals_the_plain_decoder(self, make_tiny_model: Callable, batch_size: int) -> None:
        decoder = make_tiny_model(class_chunk_size=3).decoder
        assert_decodes_as_plain(decoder, random_inputs(batch_size=batch_size))

    @pytest.mark.parametrize("size", [(32, 32), (32, 160), (160, 96), (224, 224)])
    @torch.no_grad()
    def test_any_resolution_equals_the_plain_decoder(
        self, tiny_model: SEDForSemanticSegmentation, size: tuple[int, int]
    ) -> None:
        assert_decodes_as_plain(tiny_model.decoder, random_inputs(3, height=size[0], width=size[1]))

    @pytest.mark.parametrize("class_attention_type", ["linear", "full"])
    @pytest.mark.parametrize("pooling_size", [1, 2, 3, 8])
    @torch.no_grad()
    def test_any_attention_and_pooling_equals_the_plain_decoder(
        self, make_tiny_model: Callable, class_attention_type: str, pooling_size: int
    ) -> None:
        decoder = make_tiny_model(
            inference_pooling_size=pooling_size, class_attention_type=class_attention_type, class_chunk_size=2
        ).decoder
        assert_decodes_as_plain(decoder, random_inputs(5, batch_size=2))

    @torch.no_grad()
    def test_hidden_states_are_those_of_all_classes_in_order(self, make_tiny_model: Callable) -> None:
        inputs = random_inputs()
        at_once, in_chunks = (
            make_tiny_model(class_chunk_size=size).decoder(**inputs, output_hidden_states=True).hidden_states
            for size in (7, 2)
        )
        assert [tuple(features.shape[1:3]) for features in at_once] == [(7, 128), (7, 64), (7, 32), (7, 16)]
        for expected, actual in zip(at_once, in_chunks, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=LOGITS)

    @torch.no_grad()
    def test_the_order_of_classes_does_not_matter(self, tiny_model: SEDForSemanticSegmentation) -> None:
        inputs = random_inputs(6)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        logits = tiny_model.decoder(**inputs).logits
        inputs["class_embeddings"] = inputs["class_embeddings"][order]
        torch.testing.assert_close(tiny_model.decoder(**inputs).logits, logits[:, order], rtol=0, atol=LOGITS)

    @torch.no_grad()
    def test_twice_the_classes_make_no_larger_tensor(
        self, make_tiny_model: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(CHUNK_BYTES, "cpu", 2**16)  # of the tiles
        monkeypatch.setattr(decoder_sed, "GROUP_BYTES", 2**16)
        decoder = make_tiny_model(class_chunk_size=2).decoder
        sizes = []
        for num_classes in (12, 24):
            inputs = random_inputs(num_classes, height=64, width=64)
            with LargestTensor() as largest:
                decoder(**inputs)
            sizes.append(largest.num_bytes)
        assert sizes[0] == sizes[1]


class TestEarlyRejection:
    def decode(self, decoder: SEDDecoder, topk: int, batch_size: int) -> tuple[SEDDecoderOutput, list[PlainOutput]]:
        """The decoder's output for a batch, and the plain decoder's for each image."""
        inputs = random_inputs(20, batch_size=batch_size)
        plain = [
            plain_decode(
                decoder,
                inputs["dense_embeddings"][index : index + 1],
                inputs["class_embeddings"],
                tuple(features[index : index + 1] for features in inputs["encoder_hidden_states"]),
                topk,
            )
            for index in range(batch_size)
        ]
        return decoder(**inputs, early_rejection_topk=topk), plain

    @pytest.mark.parametrize("class_chunk_size", [1, 4, None])
    @pytest.mark.parametrize("topk", [1, 2, 4])
    @torch.no_grad()
    def test_each_stage_keeps_the_classes_of_the_plain_decoder(
        self, make_tiny_model: Callable, topk: int, class_chunk_size: int | None
    ) -> None:
        output, plain = self.decode(make_tiny_model(class_chunk_size=class_chunk_size).decoder, topk, batch_size=2)
        for kept_classes, one in zip(output.kept_classes, plain, strict=True):
            assert [stage.nonzero().squeeze(1).tolist() for stage in kept_classes] == [k.tolist() for k in one.kept]

    @torch.no_grad()
    def test_logits_of_the_survivors_equal_the_plain_decoder(self, make_tiny_model: Callable) -> None:
        output, plain = self.decode(make_tiny_model(class_chunk_size=3).decoder, 1, batch_size=2)
        for logits, one in zip(output.logits, plain, strict=True):
            positions = torch.searchsorted(output.logit_classes, one.kept[-1])
            torch.testing.assert_close(logits[positions], one.logits[0], rtol=0, atol=LOGITS)

    @torch.no_grad()
    def test_logits_hold_the_classes_that_survive_in_some_image_alone(self, tiny_model: Any) -> None:
        output, plain = self.decode(tiny_model.decoder, 1, batch_size=2)
        survivors = sorted({index for one in plain for index in one.kept[-1].tolist()})
        assert output.logit_classes.tolist() == survivors
        assert output.logits.shape[1] == len(survivors) < 20

    @torch.no_grad()
    def test_rejected_classes_enter_no_further_stage(self, make_tiny_model: Callable) -> None:
        decoder = make_tiny_model(class_chunk_size=2).decoder
        entered = [0, 0, 0]
        for index, stage in enumerate(decoder.stages):
            count = lambda _, arguments, index=index: entered.__setitem__(index, entered[index] + len(arguments[0]))  # noqa: E731
            stage.spatial_block.register_forward_pre_hook(count)
        output = decoder(**random_inputs(20), early_rejection_topk=1)
        assert entered == output.kept_classes[0].sum(1).tolist()
        assert entered[-1] < 20

    @torch.no_grad()
    def test_all_logits_give_rejected_classes_probability_zero(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor
    ) -> None:
        outputs = tiny_model(
            seeded(1, 3, 64, 64),
            class_embeddings=random_inputs(20)["class_embeddings"],
            early_rejection_topk=1,
        )
        kept = outputs.kept_classes[0, -1]
        assert 0 < kept.sum() < 20
        assert outputs.all_logits().shape == (1, 20, 16, 16)
        assert (outputs.all_logits().sigmoid()[0, ~kept] == 0).all()

    @torch.no_grad()
    def test_segmentation_numbers_classes_as_the_vocabulary_does(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor
    ) -> None:
        inputs = {"pixel_values": seeded(2, 3, 64, 64), "class_embeddings": random_inputs(20)["class_embeddings"]}
        outputs = tiny_model(**inputs, early_rejection_topk=1)
        full = SEDSemanticSegmentationOutput(logits=outputs.all_logits())
        sizes = [(50, 70), (64, 64)]
        actual, expected = (
            tiny_processor.post_process_semantic_segmentation(each, target_sizes=sizes) for each in (outputs, full)
        )
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))

    @torch.no_grad()
    def test_keeping_every_class_equals_dense_decoding(self, tiny_model: SEDForSemanticSegmentation) -> None:
        inputs = random_inputs(5)
        everything = tiny_model.decoder(**inputs, early_rejection_topk=5)
        assert everything.kept_classes.all()
        torch.testing.assert_close(everything.logits, tiny_model.decoder(**inputs).logits, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_the_configuration_sets_the_default_and_zero_is_dense(self, make_tiny_model: Callable) -> None:
        model = make_tiny_model(early_rejection_topk=1)
        inputs = {"pixel_values": seeded(1, 3, 64, 64), "class_embeddings": random_inputs(5)["class_embeddings"]}
        assert model(**inputs).kept_classes is not None
        assert model(**inputs, early_rejection_topk=0).kept_classes is None


class TestGradients:
    def gradients(self, decode: Callable, decoder: SEDDecoder) -> dict[str, Tensor]:
        """Of the sum of all logits, each multiplied with a random number."""
        inputs = random_inputs(6, batch_size=2)
        inputs["dense_embeddings"].requires_grad_()
        inputs["class_embeddings"].requires_grad_()
        output = decode(**inputs)
        all_logits = [output.logits, *output.aux_logits]
        sum((logits * seeded(*logits.shape, seed=1)).sum() for logits in all_logits).backward()
        gradients = {name: parameter.grad for name, parameter in decoder.named_parameters()}
        return gradients | {name: inputs[name].grad for name in ("dense_embeddings", "class_embeddings")}

    @pytest.mark.parametrize("class_chunk_size", [2, None])
    @pytest.mark.parametrize("gradient_checkpointing", [False, True])
    @pytest.mark.parametrize("is_training", [False, True])
    @pytest.mark.parametrize("group_bytes", [1, decoder_sed.GROUP_BYTES])
    def test_every_gradient_equals_the_plain_decoder(
        self,
        make_tiny_model: Callable,
        monkeypatch: pytest.MonkeyPatch,
        class_chunk_size: int | None,
        gradient_checkpointing: bool,
        is_training: bool,
        group_bytes: int,
    ) -> None:
        monkeypatch.setattr(decoder_sed, "GROUP_BYTES", group_bytes)
        model = make_tiny_model(class_chunk_size=class_chunk_size).train(is_training)
        if gradient_checkpointing:
            enable_gradient_checkpointing(model)
        decoder = model.decoder
        actual = self.gradients(decoder, decoder)
        decoder.zero_grad()
        expected = self.gradients(lambda **inputs: plain_decode(decoder, **inputs), decoder)
        for name, gradient in expected.items():
            difference = (actual[name] - gradient).norm() / gradient.norm()
            assert difference < 1e-3, f"{name}: {difference}"


class TestWeightsThatChange:
    """The kernels that are computed from weights always follow them."""

    def after_use(self, make_tiny_model: Callable) -> SEDForSemanticSegmentation:
        model = make_tiny_model()
        with torch.no_grad():
            model.decoder(**random_inputs())
        return model

    def test_after_an_optimizer_step(self, make_tiny_model: Callable) -> None:
        model = self.after_use(make_tiny_model)
        optimizer = torch.optim.SGD(model.decoder.parameters(), lr=1e-3)
        model.decoder(**random_inputs()).logits.square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            assert_decodes_as_plain(model.decoder, random_inputs())

    @torch.no_grad()
    def test_after_loading_weights(self, make_tiny_model: Callable) -> None:
        model = self.after_use(make_tiny_model)
        model.load_state_dict({name: 0.9 * weight for name, weight in model.state_dict().items()})
        assert_decodes_as_plain(model.decoder, random_inputs())

    @torch.no_grad()
    def test_after_a_change_of_dtype(self, make_tiny_model: Callable) -> None:
        model = self.after_use(make_tiny_model).double()
        inputs = {
            name: tuple(part.double() for part in value) if isinstance(value, tuple) else value.double()
            for name, value in random_inputs().items()
        }
        expected = plain_decode(model.decoder, **inputs).logits
        torch.testing.assert_close(model.decoder(**inputs).logits, expected, rtol=0, atol=1e-10)

    @torch.no_grad()
    def test_after_a_change_in_place(self, make_tiny_model: Callable) -> None:
        model = self.after_use(make_tiny_model)
        model.decoder.stages[0].skip_fusion.upsample.weight.mul_(1.5)
        model.decoder.stages[1].skip_fusion.fuse[0].weight.data += 0.01
        assert_decodes_as_plain(model.decoder, random_inputs())

    @torch.no_grad()
    def test_after_a_low_rank_patch(self, make_tiny_model: Callable) -> None:
        model = self.after_use(make_tiny_model)

        class LowRank(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                rows = weight.flatten(1)
                return weight + 0.01 * (seeded(len(rows), 1) @ seeded(1, rows.shape[1], seed=1)).view_as(weight)

        for layer in (model.decoder.stages[0].skip_fusion.upsample, model.decoder.stages[2].skip_fusion.fuse[0]):
            nn.utils.parametrize.register_parametrization(layer, "weight", LowRank())
        assert_decodes_as_plain(model.decoder, random_inputs())

    @torch.no_grad()
    def test_after_a_layer_is_wrapped(self, make_tiny_model: Callable) -> None:
        class LowRankConv(nn.Module):
            """As peft wraps a convolution."""

            def __init__(self, base_layer: nn.Conv2d) -> None:
                super().__init__()
                self.base_layer = base_layer
                self.down = nn.Conv2d(base_layer.in_channels, 2, 3, padding=1, bias=False)
                self.up = nn.Conv2d(2, base_layer.out_channels, 1, bias=False)
                self.weight = base_layer.weight

            def forward(self, features: Tensor) -> Tensor:
                return self.base_layer(features) + self.up(self.down(features))

        model = self.after_use(make_tiny_model)
        before = model.decoder(**random_inputs()).logits
        for stage in model.decoder.stages:
            stage.skip_fusion.fuse[0] = LowRankConv(stage.skip_fusion.fuse[0])
        assert_decodes_as_plain(model.decoder, random_inputs())
        assert not torch.allclose(model.decoder(**random_inputs()).logits, before, atol=1e-3)

    def test_no_derived_kernel_is_saved(self, tiny_model: SEDForSemanticSegmentation) -> None:
        assert set(tiny_model.state_dict()) == {name for name, _ in tiny_model.named_parameters()}


class TestLinearAttention:
    def test_it_equals_the_formula(self) -> None:
        tokens = [seeded(2, 7, 32, seed=seed).double() for seed in range(3)]
        query, key, value = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in tokens)
        query_features, key_features = F.elu(query) + 1, F.elu(key) + 1
        weights = query_features @ key_features.transpose(-1, -2)
        expected = (weights @ (value / 7)) / (weights.sum(-1, keepdim=True) + 1e-6) * 7
        torch.testing.assert_close(linear_attention(*tokens, num_heads=4), expected.transpose(1, 2).flatten(-2))

    def test_ten_thousand_classes_fit_float16(self) -> None:
        query, key, value = (4 * seeded(10_000, 32, seed=seed) for seed in range(3))
        half = linear_attention(query.half(), key.half(), value.half(), num_heads=1)
        torch.testing.assert_close(half.float(), linear_attention(query, key, value, 1), rtol=0, atol=0.02)


class TestGroups:
    """In which features are held between stages."""

    def chunks(self, *sizes: int) -> list[Tensor]:
        numbers = torch.arange(float(sum(sizes))).view(1, -1, 1, 1, 1)
        return list(numbers.split(sizes, dim=1))

    @pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (2, 5, 1)])
    @torch.no_grad()
    def test_classes_of_chunks_are_held_in_order(self, sizes: tuple[int, ...], monkeypatch: Any) -> None:
        monkeypatch.setattr(decoder_sed, "GROUP_BYTES", 3 * 4)  # three classes of one number
        groups = hold(iter(self.chunks(*sizes)), 8)
        assert [group.shape[1] for group in groups] == [3, 3, 2]
        assert torch.cat(groups, dim=1).flatten().tolist() == list(range(8))

    def test_with_gradients_they_are_joined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoder_sed, "GROUP_BYTES", 3 * 4)
        chunks = [chunk.requires_grad_() for chunk in self.chunks(2, 2, 1)]
        groups = hold(iter(chunks), 5)
        assert [group.shape[1] for group in groups] == [4, 1]
        assert torch.cat(groups, dim=1).flatten().tolist() == list(range(5))
        assert all(group.requires_grad for group in groups)

    def test_chosen_classes_are_taken_from_the_groups_that_hold_them(self) -> None:
        groups = self.chunks(3, 2, 4)
        selected = select_classes(groups, torch.tensor([1, 2, 7]))
        assert torch.cat(list(selected), dim=1).flatten().tolist() == [1, 2, 7]
        assert not groups

    def test_a_chunk_size_below_one_is_refused(self) -> None:
        with pytest.raises(StrictDataclassClassValidationError, match="class_chunk_size=0: expected at least 1"):
            make_tiny_config(class_chunk_size=0)
