"""The decoder: memory, rejection, and weights that change. properties/ compares it with the plain one in any chunks."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from decoder_inputs import decode, largest_tensor, random_inputs, seeded
from plain_decoder import plain_decode
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from sed_hf.chunking_sed import Chunks
from sed_hf.modeling_sed import SEDDecoder, linear_attention

LOGITS = 1e-4


@torch.no_grad()
def test_twice_the_classes_make_no_larger_tensor(make_tiny_model: Callable) -> None:
    decoder = make_tiny_model().decoder
    decoder.chunks = Chunks(num_classes=2, max_bytes=2**16, part_bytes=2**16)
    few, many = (largest_tensor(decoder, **random_inputs(count, height=64, width=64)) for count in (12, 24))
    assert few == many


@pytest.mark.parametrize("pooling", [1, 2])
@torch.no_grad()
def test_features_with_channels_first_give_the_same_logits(
    make_tiny_model: Callable, monkeypatch: pytest.MonkeyPatch, pooling: int
) -> None:
    decoder = make_tiny_model(inference_pooling_size=pooling).decoder
    inputs = random_inputs(12, batch_size=2)
    expected = plain_decode(decoder, **inputs).logits
    group_norm = nn.functional.group_norm
    monkeypatch.setattr(nn.functional, "group_norm", lambda *inputs: group_norm(*inputs).contiguous())  # as on GPUs
    decoder.chunks = Chunks(num_classes=12, max_bytes=2**16)  # all classes at once, a few locations at a time
    torch.testing.assert_close(decode(decoder, **inputs).logits, expected, atol=LOGITS, rtol=0)


class TestEarlyRejection:
    @torch.no_grad()
    def test_rejected_classes_enter_no_further_stage(self, make_tiny_model: Callable) -> None:
        decoder = make_tiny_model(class_chunk_size=2).decoder
        entered: Counter[nn.Module] = Counter()
        blocks = [stage.spatial_block for stage in decoder.stages]
        for block in blocks:
            block.register_forward_pre_hook(lambda module, inputs: entered.update({module: len(inputs[0])}))
        output = decode(decoder, **random_inputs(20), early_rejection_topk=1)
        assert [entered[block] for block in blocks] == output.kept_classes[0].sum(1).tolist()
        assert entered[blocks[-1]] < 20

    @torch.no_grad()
    def test_the_configuration_sets_the_default_with_logits_of_all_classes(self, make_tiny_model: Callable) -> None:
        model = make_tiny_model(early_rejection_topk=1)
        inputs = {"pixel_values": seeded(1, 3, 64, 64), "class_embeddings": random_inputs(20)["class_embeddings"]}
        by_default, stated = model(**inputs), model(**inputs, early_rejection_topk=1)
        assert stated.logits.shape[1] < 20
        assert torch.equal(by_default.logits, stated.all_logits())
        assert torch.equal(by_default.kept_classes, stated.kept_classes)
        assert by_default.logit_classes is None
        assert model(**inputs, early_rejection_topk=0).kept_classes is None


class LowRank(nn.Module):
    """Adds a matrix of rank 1 to a weight."""

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        return weight + 0.01 * (seeded(len(rows), 1) @ seeded(1, rows.shape[1], seed=1)).view_as(weight)


def assign(decoder: SEDDecoder) -> None:
    decoder.stages[0].skip_fusion.upsample.weight.mul_(1.5)
    decoder.stages[1].skip_fusion.fuse[0].weight.data += 0.01


def parametrise(decoder: SEDDecoder) -> None:
    for layer in (decoder.stages[0].skip_fusion.upsample, decoder.stages[2].skip_fusion.fuse[0]):
        parametrize.register_parametrization(layer, "weight", LowRank())


def remove(decoder: SEDDecoder) -> None:
    for layer in (decoder.stages[0].skip_fusion.upsample, decoder.stages[1].skip_fusion.fuse[0]):
        prune.custom_from_mask(layer, "weight", mask=seeded(*layer.weight.shape) > 0)


@pytest.mark.parametrize("change", [assign, parametrise, remove])
@torch.no_grad()
def test_kernels_that_are_computed_follow_the_weights(make_tiny_model: Callable, change: Callable) -> None:
    decoder, inputs = make_tiny_model().decoder, random_inputs()
    before = decode(decoder, **inputs).logits
    change(decoder)
    expected, actual = plain_decode(decoder, **inputs), decode(decoder, **inputs)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=LOGITS)
    assert not torch.equal(actual.logits, before)


def test_linear_attention_of_ten_thousand_classes_fits_float16() -> None:
    query, key, value = (4 * seeded(1, 10_000, 32, seed=seed) for seed in range(3))
    half = linear_attention(query.half(), key.half(), value.half(), num_heads=1)
    torch.testing.assert_close(half.float(), linear_attention(query, key, value, 1), rtol=0, atol=0.02)


def test_linear_attention_in_float16_divides_by_small_normalizers() -> None:
    query = key = torch.full((1, 500, 4), -3.4)  # whose features are 1/30
    half, value = linear_attention(query.half(), key.half(), torch.ones(1, 500, 4).half(), num_heads=1), torch.ones(1)
    torch.testing.assert_close(half.float(), value.expand_as(half), rtol=0, atol=0.005)
