"""When memory runs out, the decoder takes smaller chunks, and says what to do when none are left."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoder_inputs import LargestTensor, decode, largest_tensor, random_inputs

from sed_hf.chunking_sed import Chunks, is_out_of_memory
from sed_hf.modeling_sed import SEDDecoder

LOGITS = 1e-4


class MemoryLimit(LargestTensor):
    """Within it, an operation whose result is larger than the limit finds no memory."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, *arguments: Any) -> Any:
        self.num_bytes = 0
        result = super().__torch_dispatch__(*arguments)
        if self.num_bytes > self.limit:
            raise torch.OutOfMemoryError(f"{self.num_bytes} bytes")
        return result


@pytest.fixture
def decoder(make_tiny_model: Callable) -> SEDDecoder:
    return make_tiny_model().decoder


def limit_between(decoder: SEDDecoder, **inputs: Any) -> int:
    """A limit that the default chunks do not fit, and smaller ones do."""
    default = largest_tensor(decoder, **inputs)
    decoder.chunks = Chunks(max_bytes=1)
    smallest = largest_tensor(decoder, **inputs)
    decoder.chunks = Chunks()
    assert smallest < 0.7 * default
    return (smallest + default) // 2


@pytest.mark.parametrize("topk", [None, 8])
@torch.no_grad()
def test_where_the_default_chunk_does_not_fit_the_result_is_the_same_with_one_warning(
    decoder: SEDDecoder, sed_hf_log: pytest.LogCaptureFixture, topk: int | None
) -> None:
    inputs = random_inputs(num_classes=9, height=128) | {"early_rejection_topk": topk}
    expected = decode(decoder, **inputs).logits
    with MemoryLimit(limit_between(decoder, **inputs)):
        first, second = decode(decoder, **inputs).logits, decode(decoder, **inputs).logits
    torch.testing.assert_close(first, expected, rtol=0, atol=LOGITS)
    torch.testing.assert_close(second, expected, rtol=0, atol=LOGITS)
    assert [record.getMessage()[:29] for record in sed_hf_log.records] == ["Out of memory with 9 classes:"]


@torch.no_grad()
def test_where_one_class_does_not_fit_an_error_says_what_to_do_and_chunks_are_large_again(decoder: SEDDecoder) -> None:
    inputs = random_inputs(num_classes=9)
    at_first = largest_tensor(decoder, **inputs)
    advice = "Out of memory with 9 classes: try early_rejection_topk=8, a smaller batch or bfloat16"
    with MemoryLimit(2**12), pytest.raises(torch.OutOfMemoryError, match=advice):
        decode(decoder, **inputs)
    assert largest_tensor(decoder, **inputs) == at_first


def test_with_gradients_the_error_is_torchs_own(decoder: SEDDecoder) -> None:
    with MemoryLimit(2**12), pytest.raises(torch.OutOfMemoryError, match=r"^[0-9]+ bytes$"):
        decode(decoder, **random_inputs(num_classes=9))


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (RuntimeError("could not create a primitive"), True),  # oneDNN
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("unable to mmap 723126764 bytes from file: Cannot allocate memory (12)"), True),  # torch's files
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_errors_of_libraries_are_recognised_by_what_they_say(error: Exception, is_lack: bool) -> None:
    assert is_out_of_memory(error) == is_lack
