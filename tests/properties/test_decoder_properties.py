"""Decoder and loss equal the plain formulas for any configuration, classes, images, resolution and chunks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from decoder_inputs import decode
from hypothesis import given
from hypothesis import strategies as st
from plain_decoder import plain_decode
from small_models import ENCODER_HIDDEN_SIZES, make_decoder
from strategies import examples, normal, seeds
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sed_hf import SEDConfig
from sed_hf.chunking_sed import Chunks
from sed_hf.loss_sed import segmentation_losses
from sed_hf.modeling_sed import SEDDecoder

LOGITS = 1e-4
LOGITS_FLOAT64 = 1e-10
GRADIENTS = 1e-8
LOSS = 1e-5

Case = tuple[SEDDecoder, dict[str, Any]]


@st.composite
def decoder_settings(draw: st.DrawFn, group_sizes: tuple[int, ...] = (1, 2, 4)) -> dict[str, Any]:
    """Settings of a `SEDConfig` that make a small decoder, with some channels in a group of its GroupNorms."""
    heads, group_size = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from(group_sizes))
    step = max(heads, group_size)
    widths = [step * draw(st.integers(1, 8 // step + 1)) for _ in range(4)]
    widths[:3] = [max(width, 2 * step) for width in widths[:3]]  # so that skip guidance leaves room for features
    return {
        "projection_dim": draw(st.integers(2, 12)),
        "prompt_templates": [f"{number} {{}}" for number in range(draw(st.integers(1, 4)))],
        "cost_embedding_kernel_size": draw(st.sampled_from([1, 3, 7])),
        "decoder_hidden_sizes": widths,
        "skip_guidance_sizes": [draw(st.integers(1, width - 1)) for width in widths[:3]],
        "cost_guidance_sizes": [draw(st.integers(1, 6)) for _ in range(3)],
        "decoder_kernel_size": draw(st.sampled_from([1, 3, 9])),
        "decoder_mlp_ratio": draw(st.integers(1, 4)),
        "group_norm_group_size": group_size,
        "num_attention_heads": heads,
        "class_attention_type": draw(st.sampled_from(["linear", "full"])),
        "train_pooling_size": draw(st.integers(1, 4)),
        "inference_pooling_size": draw(st.integers(1, 4)),
        "class_chunk_size": draw(st.none() | st.integers(1, 12)),
    }


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float32, max_classes: int = 9, max_edge: int = 4) -> Case:
    """Any decoder, in evaluation mode, and inputs for it: classes, images and resolution.

    Groups of a channel and a few pixels are noise in single precision, in the plain decoder too: only double has them.
    """
    settings = draw(decoder_settings() if dtype == torch.float64 else decoder_settings((4, 8)))
    batch_size, num_classes, seed = draw(st.integers(1, 3)), draw(st.integers(1, max_classes)), draw(seeds)
    height, width = draw(st.integers(1, max_edge)), draw(st.integers(1, max_edge))
    dim, num_templates = settings["projection_dim"], len(settings["prompt_templates"])
    return make_decoder(settings, seed, dtype), {
        "dense_embeddings": F.normalize(normal(batch_size, dim, height, width, seed=seed, dtype=dtype), dim=1),
        "class_embeddings": F.normalize(normal(num_classes, num_templates, dim, seed=seed + 1, dtype=dtype), dim=-1),
        "encoder_hidden_states": tuple(
            normal(batch_size, channels, height * scale, width * scale, seed=seed + 2, dtype=dtype)
            for channels, scale in zip(ENCODER_HIDDEN_SIZES, (8, 4, 2, 1), strict=True)
        ),
    }


# From a class and a location at a time to everything at once.
chunks = st.builds(
    Chunks,
    st.none() | st.integers(1, 12),
    st.integers(8, 23).map(lambda power: 2**power),
    st.integers(0, 26).map(lambda power: 2**power),
)


def assert_close(actual: Any, expected: Any, tolerance: float = LOGITS) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, LOGITS), (torch.float64, LOGITS_FLOAT64)])
@given(data=st.data(), chunks=chunks)
@torch.no_grad()
def test_dense_decoding_in_any_chunks_equals_the_plain_decoder(
    dtype: torch.dtype, tolerance: float, data: st.DataObject, chunks: Chunks
) -> None:
    decoder, inputs = data.draw(cases(dtype))
    expected = plain_decode(decoder, **inputs)
    hidden_states = decode(decoder, **inputs, output_hidden_states=True).decoder_hidden_states
    decoder.chunks = chunks
    actual = decode(decoder, **inputs, output_hidden_states=True)
    assert_close(actual.decoder_hidden_states, hidden_states, tolerance)
    assert_close([actual.logits, *actual.aux_logits], [expected.logits, *expected.aux_logits], tolerance)


@given(cases(torch.float64), st.integers(1, 10), chunks)
@torch.no_grad()
def test_early_rejection_in_any_chunks_equals_the_plain_decoder(case: Case, topk: int, chunks: Chunks) -> None:
    """In double precision, where rounding decides about no class."""
    decoder, inputs = case
    decoder.chunks = chunks
    output = decode(decoder, **inputs, early_rejection_topk=topk)
    for index, (logits, kept_classes) in enumerate(zip(output.logits, output.kept_classes, strict=True)):
        one = slice(index, index + 1)
        hidden = tuple(features[one] for features in inputs["encoder_hidden_states"])
        expected = plain_decode(decoder, inputs["dense_embeddings"][one], inputs["class_embeddings"], hidden, topk)
        kept = [stage.nonzero().squeeze(1) for stage in kept_classes]
        assert_close(kept, expected.kept, 0)
        survivors = torch.searchsorted(output.logit_classes, kept[-1])
        assert_close(logits[survivors], expected.logits[0], LOGITS_FLOAT64)


def gradients(decode: Any, decoder: SEDDecoder, inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    """Of the sum of all logits, each multiplied with a random number."""
    decoder.zero_grad()
    embeddings = {name: inputs[name].clone().requires_grad_() for name in ("dense_embeddings", "class_embeddings")}
    output = decode(decoder, **{**inputs, **embeddings})
    sum(
        (logits * normal(*logits.shape, seed=1, dtype=logits.dtype)).sum()
        for logits in (output.logits, *output.aux_logits)
    ).backward()
    return {name: tensor.grad for name, tensor in (*decoder.named_parameters(), *embeddings.items())}


@given(cases(torch.float64, max_classes=5, max_edge=2), chunks, st.booleans(), st.sampled_from([None, True, False]))
@examples(10)
def test_every_gradient_equals_the_plain_decoder(
    case: Case, chunks: Chunks, is_training: bool, use_reentrant: bool | None
) -> None:
    decoder, inputs = case
    decoder.train(is_training)
    expected = gradients(plain_decode, decoder, inputs)
    for module in decoder.modules():
        if use_reentrant is not None and hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = lambda function, *arguments: checkpoint(
                function, *arguments, use_reentrant=use_reentrant
            )
    decoder.chunks = chunks
    assert_close(gradients(decode, decoder, inputs), expected, GRADIENTS)


@st.composite
def logits_and_labels(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits (B, T, h, w), and labels (B, H, W) of any size, some of them ignored."""
    batch_size, num_classes = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    seed, size = draw(seeds), [draw(st.integers(1, 12)) for _ in range(4)]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, num_classes, (batch_size, *size[2:]), generator=generator)
    return normal(batch_size, num_classes, *size[:2], seed=seed), labels.where(labels >= 0, 255)


def plain_loss(logits: Tensor, labels: Tensor, ignored_as_negative: bool) -> Tensor:
    """The formula with a one-hot target."""
    resized = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    counted = (labels != 255)[:, None].expand_as(resized)
    target = F.one_hot(labels.where(labels != 255, 0), logits.shape[1]).permute(0, 3, 1, 2) * counted
    losses = F.binary_cross_entropy_with_logits(resized, target.to(logits.dtype), reduction="none")
    if ignored_as_negative:
        return losses.mean()
    return losses[counted].mean() if counted.any() else losses.sum() * 0


def test_an_ignored_label_that_is_a_class_is_named(sed_hf_log: pytest.LogCaptureFixture) -> None:
    segmentation_losses([torch.zeros(1, 2, 1, 1)], torch.zeros(1, 1, 1).long(), SEDConfig(ignore_index=1))
    assert "labels of 1 are ignored" in sed_hf_log.text


@given(logits_and_labels(), st.booleans(), st.integers(0, 16).map(lambda power: 2**power))
def test_loss_and_gradient_equal_the_plain_formula_in_any_chunks(
    case: tuple[Tensor, Tensor], ignored_as_negative: bool, max_bytes: int
) -> None:
    logits, labels = case
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = segmentation_losses([ours], labels, SEDConfig(ignored_as_negative=ignored_as_negative), None, max_bytes)[0]
    expected = plain_loss(theirs, labels, ignored_as_negative)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close([loss, ours.grad], [expected, theirs.grad], rtol=0, atol=LOSS)
