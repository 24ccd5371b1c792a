"""The decoder, which takes a few classes and locations at a time, against the plain one that takes all at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from decoder_inputs import decode, largest_tensor, one_image, random_inputs, seeded
from plain_decoder import PlainOutput, plain_decode
from torch import Tensor, nn
from torch.nn.utils import prune

from sed_hf import SEDForSemanticSegmentation, SEDProcessor, SEDSemanticSegmentationOutput
from sed_hf.chunking_sed import Chunks
from sed_hf.modeling_sed import SEDDecoder, linear_attention

LOGITS = 1e-4


def assert_decodes_as_plain(decoder: SEDDecoder, inputs: dict[str, Any], tolerance: float = LOGITS) -> None:
    expected, actual = plain_decode(decoder, **inputs), decode(decoder, **inputs)
    for ours, plain in zip((actual.logits, *actual.aux_logits), (expected.logits, *expected.aux_logits), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=tolerance)


class TestDenseDecoding:
    @pytest.mark.parametrize("class_chunk_size", [None, 1, 2, 3, 7, 100])
    @torch.no_grad()
    def test_any_number_of_classes_at_a_time_equals_the_plain_decoder(
        self, make_tiny_model: Callable, class_chunk_size: int | None
    ) -> None:
        decoder = make_tiny_model(class_chunk_size=class_chunk_size).decoder
        assert_decodes_as_plain(decoder, random_inputs(batch_size=2))

    @pytest.mark.parametrize("max_bytes", [1, 2**14, 2**18])
    @torch.no_grad()
    def test_any_largest_tensor_equals_the_plain_decoder(self, make_tiny_model: Callable, max_bytes: int) -> None:
        decoder = make_tiny_model().decoder
        decoder.chunks = Chunks(max_bytes=max_bytes)
        assert_decodes_as_plain(decoder, random_inputs(5, height=64, width=64))

    @pytest.mark.parametrize("part_bytes", [1, 2**16])
    @torch.no_grad()
    def test_any_parts_of_the_features_equal_the_plain_decoder(
        self, make_tiny_model: Callable, part_bytes: int
    ) -> None:
        decoder = make_tiny_model().decoder
        decoder.chunks = Chunks(num_classes=2, part_bytes=part_bytes)
        assert_decodes_as_plain(decoder, random_inputs(batch_size=2))

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
        at_once, in_chunks = (
            decode(
                make_tiny_model(class_chunk_size=size).decoder, **random_inputs(), output_hidden_states=True
            ).decoder_hidden_states
            for size in (7, 2)
        )
        assert [tuple(features.shape[1:3]) for features in at_once] == [(7, 128), (7, 64), (7, 32), (7, 16)]
        for expected, actual in zip(at_once, in_chunks, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=LOGITS)

    @torch.no_grad()
    def test_the_order_of_classes_does_not_matter(self, tiny_model: SEDForSemanticSegmentation) -> None:
        inputs = random_inputs(6)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        logits = decode(tiny_model.decoder, **inputs).logits
        inputs["class_embeddings"] = inputs["class_embeddings"][order]
        torch.testing.assert_close(decode(tiny_model.decoder, **inputs).logits, logits[:, order], rtol=0, atol=LOGITS)

    @torch.no_grad()
    def test_twice_the_classes_make_no_larger_tensor(self, make_tiny_model: Callable) -> None:
        decoder = make_tiny_model().decoder
        decoder.chunks = Chunks(num_classes=2, max_bytes=2**16, part_bytes=2**16)
        few, many = (largest_tensor(decoder, **random_inputs(count, height=64, width=64)) for count in (12, 24))
        assert few == many


class TestEarlyRejection:
    def decode(
        self, decoder: SEDDecoder, topk: int, batch_size: int = 2
    ) -> tuple[SEDSemanticSegmentationOutput, list[PlainOutput]]:
        """The decoder's output for a batch, and the plain decoder's for each image."""
        inputs = random_inputs(20, batch_size=batch_size)
        plain = [plain_decode(decoder, **one_image(inputs, index), topk=topk) for index in range(batch_size)]
        return decode(decoder, **inputs, early_rejection_topk=topk), plain

    @pytest.mark.parametrize("class_chunk_size", [1, 4, None])
    @pytest.mark.parametrize("topk", [1, 2, 4])
    @torch.no_grad()
    def test_each_stage_keeps_the_classes_of_the_plain_decoder(
        self, make_tiny_model: Callable, topk: int, class_chunk_size: int | None
    ) -> None:
        output, plain = self.decode(make_tiny_model(class_chunk_size=class_chunk_size).decoder, topk)
        for kept_classes, one in zip(output.kept_classes, plain, strict=True):
            assert [stage.nonzero().squeeze(1).tolist() for stage in kept_classes] == [k.tolist() for k in one.kept]

    @pytest.mark.parametrize("part_bytes", [1, 2**16, 2**25])
    @torch.no_grad()
    def test_logits_of_the_survivors_equal_the_plain_decoder(self, make_tiny_model: Callable, part_bytes: int) -> None:
        decoder = make_tiny_model().decoder
        decoder.chunks = Chunks(num_classes=3, part_bytes=part_bytes)
        output, plain = self.decode(decoder, 1)
        survivors = sorted({index for one in plain for index in one.kept[-1].tolist()})
        assert output.logit_classes.tolist() == survivors
        assert output.logits.shape[1] == len(survivors) < 20
        for logits, one in zip(output.logits, plain, strict=True):
            positions = torch.searchsorted(output.logit_classes, one.kept[-1])
            torch.testing.assert_close(logits[positions], one.logits[0], rtol=0, atol=LOGITS)

    @torch.no_grad()
    def test_rejected_classes_enter_no_further_stage(self, make_tiny_model: Callable) -> None:
        decoder = make_tiny_model(class_chunk_size=2).decoder
        entered = [0, 0, 0]
        for index, stage in enumerate(decoder.stages):
            count = lambda _, arguments, index=index: entered.__setitem__(index, entered[index] + len(arguments[0]))  # noqa: E731
            stage.spatial_block.register_forward_pre_hook(count)
        output = decode(decoder, **random_inputs(20), early_rejection_topk=1)
        assert entered == output.kept_classes[0].sum(1).tolist()
        assert entered[-1] < 20

    @torch.no_grad()
    def test_all_logits_give_rejected_classes_probability_zero(self, tiny_model: SEDForSemanticSegmentation) -> None:
        inputs = {"pixel_values": seeded(1, 3, 64, 64), "class_embeddings": random_inputs(20)["class_embeddings"]}
        outputs = tiny_model(**inputs, early_rejection_topk=1)
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
        everything = decode(tiny_model.decoder, **inputs, early_rejection_topk=5)
        assert everything.kept_classes.all()
        torch.testing.assert_close(everything.logits, decode(tiny_model.decoder, **inputs).logits, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_the_configuration_sets_the_default_and_zero_is_dense(self, make_tiny_model: Callable) -> None:
        model = make_tiny_model(early_rejection_topk=1)
        inputs = {"pixel_values": seeded(1, 3, 64, 64), "class_embeddings": random_inputs(5)["class_embeddings"]}
        assert model(**inputs).kept_classes is not None
        assert model(**inputs, early_rejection_topk=0).kept_classes is None


class TestGradients:
    """In double precision: in single, a ReLU at 0 may fall to either side."""

    def gradients(self, decode: Callable, decoder: SEDDecoder, requires_grad: bool = True) -> dict[str, Tensor]:
        """Of the sum of all logits, each multiplied with a random number."""
        inputs = random_inputs(6, batch_size=2, dtype=torch.float64)
        for name in ("dense_embeddings", "class_embeddings"):
            inputs[name].requires_grad_(requires_grad)
        decoder.zero_grad()
        output = decode(decoder, **inputs)
        all_logits = [output.logits, *output.aux_logits]
        sum((logits * seeded(*logits.shape, seed=1).double()).sum() for logits in all_logits).backward()
        gradients = {name: parameter.grad for name, parameter in decoder.named_parameters()}
        return gradients | {name: inputs[name].grad for name in ("dense_embeddings", "class_embeddings")}

    def assert_equal(self, actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
        for name, gradient in expected.items():
            if gradient is None:
                assert actual[name] is None, name
            else:
                assert (actual[name] - gradient).norm() <= tolerance * gradient.norm(), name

    @pytest.mark.parametrize("checkpointing", [None, {}, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
    @pytest.mark.parametrize("is_training", [False, True])
    @pytest.mark.parametrize("chunks", [{}, {"num_classes": 2}, {"max_bytes": 2**16, "part_bytes": 2**16}], ids=str)
    def test_every_gradient_equals_the_plain_decoder(
        self, make_tiny_model: Callable, chunks: dict[str, int], is_training: bool, checkpointing: dict | None
    ) -> None:
        model = make_tiny_model().double().train(is_training)
        model.decoder.chunks = Chunks(**chunks)
        if checkpointing is not None:
            model.gradient_checkpointing_enable(checkpointing or None)
        actual = self.gradients(decode, model.decoder)
        self.assert_equal(actual, self.gradients(plain_decode, model.decoder))

    @pytest.mark.parametrize("use_reentrant", [True, False])
    @pytest.mark.parametrize("trained", ["decoder.", "decoder.stages.1.", "decoder.auxiliary_heads."])
    def test_checkpointing_reaches_what_follows_frozen_layers(
        self, make_tiny_model: Callable, trained: str, use_reentrant: bool
    ) -> None:
        model = make_tiny_model().double().train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
        expected = self.gradients(decode, model.decoder, requires_grad=False)
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        self.assert_equal(self.gradients(decode, model.decoder, requires_grad=False), expected)


class LowRank(nn.Module):
    """Adds a matrix of rank 1 to a weight."""

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        return weight + 0.01 * (seeded(len(rows), 1) @ seeded(1, rows.shape[1], seed=1)).view_as(weight)


class LowRankConv(nn.Module):
    """Wraps a convolution as peft does."""

    def __init__(self, base_layer: nn.Conv2d) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Conv2d(base_layer.in_channels, 2, 3, padding=1, bias=False)
        self.up = nn.Conv2d(2, base_layer.out_channels, 1, bias=False)
        self.weight = base_layer.weight

    def forward(self, features: Tensor) -> Tensor:
        return self.base_layer(features) + self.up(self.down(features))


class TestWeightsThatChange:
    """The kernels that are computed from weights always follow them."""

    @pytest.fixture
    def used_model(self, make_tiny_model: Callable) -> SEDForSemanticSegmentation:
        model = make_tiny_model()
        with torch.no_grad():
            decode(model.decoder, **random_inputs())
        return model

    def test_after_an_optimizer_step(self, used_model: SEDForSemanticSegmentation) -> None:
        optimizer = torch.optim.SGD(used_model.decoder.parameters(), lr=1e-3)
        decode(used_model.decoder, **random_inputs()).logits.square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            assert_decodes_as_plain(used_model.decoder, random_inputs())

    @torch.no_grad()
    def test_after_loading_weights(self, used_model: SEDForSemanticSegmentation) -> None:
        used_model.load_state_dict({name: 0.9 * weight for name, weight in used_model.state_dict().items()})
        assert_decodes_as_plain(used_model.decoder, random_inputs())

    @torch.no_grad()
    def test_after_a_change_of_dtype(self, used_model: SEDForSemanticSegmentation) -> None:
        assert_decodes_as_plain(used_model.double().decoder, random_inputs(dtype=torch.float64), tolerance=1e-10)

    @torch.no_grad()
    def test_after_a_change_in_place(self, used_model: SEDForSemanticSegmentation) -> None:
        used_model.decoder.stages[0].skip_fusion.upsample.weight.mul_(1.5)
        used_model.decoder.stages[1].skip_fusion.fuse[0].weight.data += 0.01
        assert_decodes_as_plain(used_model.decoder, random_inputs())

    @torch.no_grad()
    def test_after_a_parametrization(self, used_model: SEDForSemanticSegmentation) -> None:
        stages = used_model.decoder.stages
        for layer in (stages[0].skip_fusion.upsample, stages[2].skip_fusion.fuse[0]):
            nn.utils.parametrize.register_parametrization(layer, "weight", LowRank())
        assert_decodes_as_plain(used_model.decoder, random_inputs())

    @torch.no_grad()
    def test_after_pruning(self, used_model: SEDForSemanticSegmentation) -> None:
        for layer in (
            used_model.decoder.stages[0].skip_fusion.upsample,
            used_model.decoder.stages[1].skip_fusion.fuse[0],
        ):
            prune.custom_from_mask(layer, "weight", mask=seeded(*layer.weight.shape) > 0)
        assert_decodes_as_plain(used_model.decoder, random_inputs())

    @torch.no_grad()
    def test_after_a_layer_is_wrapped(self, used_model: SEDForSemanticSegmentation) -> None:
        before = decode(used_model.decoder, **random_inputs()).logits
        for stage in used_model.decoder.stages:
            stage.skip_fusion.fuse[0] = LowRankConv(stage.skip_fusion.fuse[0])
        assert_decodes_as_plain(used_model.decoder, random_inputs())
        assert not torch.allclose(decode(used_model.decoder, **random_inputs()).logits, before, atol=1e-3)

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
        query, key, value = (4 * seeded(1, 10_000, 32, seed=seed) for seed in range(3))
        half = linear_attention(query.half(), key.half(), value.half(), num_heads=1)
        torch.testing.assert_close(half.float(), linear_attention(query, key, value, 1), rtol=0, atol=0.02)
