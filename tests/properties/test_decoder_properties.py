"""The decoder equals the plain one for any configuration, classes, images, resolution and chunks."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from decoder_inputs import decode, one_image
from hypothesis import given
from hypothesis import strategies as st
from plain_decoder import plain_decode
from small_models import ENCODER_HIDDEN_SIZES, make_decoder
from strategies import decoder_settings, examples, normal, seeds
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sed_hf.chunking_sed import Chunks
from sed_hf.modeling_sed import SEDDecoder

LOGITS = 1e-4
LOGITS_FLOAT64 = 1e-10
GRADIENTS = 1e-8


@dataclass(frozen=True)
class Case:
    """A decoder and its inputs for B images, T classes and (h, w) locations, all drawn from a seed."""

    settings: dict[str, Any]
    batch_size: int
    num_classes: int
    size: tuple[int, int]
    seed: int
    dtype: torch.dtype

    @cached_property
    def decoder(self) -> SEDDecoder:
        """In evaluation mode."""
        return make_decoder(self.settings, self.seed, self.dtype)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        height, width = self.size
        dim, num_templates = self.settings["projection_dim"], len(self.settings["prompt_templates"])
        dense_embeddings = normal(self.batch_size, dim, height, width, seed=self.seed, dtype=self.dtype)
        class_embeddings = normal(self.num_classes, num_templates, dim, seed=self.seed + 1, dtype=self.dtype)
        return {
            "dense_embeddings": F.normalize(dense_embeddings, dim=1),
            "class_embeddings": F.normalize(class_embeddings, dim=-1),
            "encoder_hidden_states": tuple(
                normal(self.batch_size, channels, height * scale, width * scale, seed=self.seed + 2, dtype=self.dtype)
                for channels, scale in zip(ENCODER_HIDDEN_SIZES, (8, 4, 2, 1), strict=True)
            ),
        }


def cases(dtype: torch.dtype = torch.float32, max_classes: int = 9, max_edge: int = 4) -> st.SearchStrategy[Case]:
    """Any decoder, classes, images and resolution.

    Groups of a channel and a few pixels are noise in single precision, in the plain decoder too: only double has them.
    """
    edges = st.integers(1, max_edge)
    return st.builds(
        Case,
        decoder_settings() if dtype == torch.float64 else decoder_settings((4, 8)),
        st.integers(1, 3),
        st.integers(1, max_classes),
        st.tuples(edges, edges),
        seeds,
        st.just(dtype),
    )


# From a class and a location at a time to everything at once.
chunks = st.builds(
    Chunks,
    st.none() | st.integers(1, 12),
    st.integers(8, 23).map(lambda power: 2**power),
    st.integers(0, 26).map(lambda power: 2**power),
)


def assert_close(actual: Any, expected: Any, tolerance: float = LOGITS) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


class TestDenseDecoding:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, LOGITS), (torch.float64, LOGITS_FLOAT64)])
    @given(data=st.data(), chunks=chunks)
    @torch.no_grad()
    def test_any_decoder_in_any_chunks_equals_the_plain_one(
        self, dtype: torch.dtype, tolerance: float, data: st.DataObject, chunks: Chunks
    ) -> None:
        case = data.draw(cases(dtype))
        expected = plain_decode(case.decoder, **case.inputs)
        hidden_states = decode(case.decoder, **case.inputs, output_hidden_states=True).decoder_hidden_states
        case.decoder.chunks = chunks
        actual = decode(case.decoder, **case.inputs, output_hidden_states=True)
        assert_close(actual.decoder_hidden_states, hidden_states, tolerance)
        assert_close([actual.logits, *actual.aux_logits], [expected.logits, *expected.aux_logits], tolerance)


class TestEarlyRejection:
    """In double precision, where rounding decides about no class."""

    @given(cases(torch.float64), st.integers(1, 10), chunks)
    @torch.no_grad()
    def test_in_any_chunks_it_equals_the_plain_decoder(self, case: Case, topk: int, chunks: Chunks) -> None:
        case.decoder.chunks = chunks
        output = decode(case.decoder, **case.inputs, early_rejection_topk=topk)
        for index, (logits, kept_classes) in enumerate(zip(output.logits, output.kept_classes, strict=True)):
            expected = plain_decode(case.decoder, **one_image(case.inputs, index), topk=topk)
            assert [kept.nonzero().squeeze(1).tolist() for kept in kept_classes] == [
                kept.tolist() for kept in expected.kept
            ]
            survivors = torch.searchsorted(output.logit_classes, expected.kept[-1])
            assert_close(logits[survivors], expected.logits[0], LOGITS_FLOAT64)


class TestGradients:
    def gradients(self, decode: Any, case: Case) -> dict[str, Tensor | None]:
        """Of the sum of all logits, each multiplied with a random number."""
        case.decoder.zero_grad()
        inputs = case.inputs
        embeddings = {name: inputs[name].clone().requires_grad_() for name in ("dense_embeddings", "class_embeddings")}
        output = decode(case.decoder, **{**inputs, **embeddings})
        sum(
            (logits * normal(*logits.shape, seed=1, dtype=logits.dtype)).sum()
            for logits in (output.logits, *output.aux_logits)
        ).backward()
        gradients = {name: parameter.grad for name, parameter in case.decoder.named_parameters()}
        return gradients | {name: tensor.grad for name, tensor in embeddings.items()}

    @given(cases(torch.float64, max_classes=5, max_edge=2), chunks, st.booleans(), st.sampled_from([None, True, False]))
    @examples(10)
    def test_every_gradient_equals_the_plain_decoder(
        self, case: Case, chunks: Chunks, is_training: bool, use_reentrant: bool | None
    ) -> None:
        case.decoder.train(is_training)
        expected = self.gradients(plain_decode, case)
        for module in case.decoder.modules():
            if use_reentrant is not None and hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
                module._gradient_checkpointing_func = lambda function, *arguments: checkpoint(
                    function, *arguments, use_reentrant=use_reentrant
                )
        case.decoder.chunks = chunks
        assert_close(self.gradients(decode, case), expected, GRADIENTS)
