"""Inputs of a decoder, the decoder called as the plain one, and the largest tensor that it makes."""

from typing import Any

import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from torch import Tensor

from sed_hf import SEDSemanticSegmentationOutput
from sed_hf.modeling_sed import SEDCostMap, SEDDecoder


def seeded(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_inputs(
    num_classes: int = 7, batch_size: int = 1, height: int = 64, width: int = 96, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Inputs of a decoder of `tiny`."""
    return {
        "dense_embeddings": F.normalize(seeded(batch_size, 64, height // 32, width // 32, dtype=dtype), dim=1),
        "class_embeddings": F.normalize(seeded(num_classes, 80, 64, dtype=dtype), dim=-1),
        "encoder_hidden_states": tuple(
            seeded(batch_size, channels, height // stride, width // stride, dtype=dtype)
            for channels, stride in ((16, 4), (32, 8), (64, 16), (128, 32))
        ),
    }


def decode(
    decoder: SEDDecoder,
    dense_embeddings: Tensor,
    class_embeddings: Tensor,
    encoder_hidden_states: tuple[Tensor, ...],
    **options: Any,
) -> SEDSemanticSegmentationOutput:
    """The decoder, with the arguments of `plain_decode`."""
    return decoder(SEDCostMap(dense_embeddings, class_embeddings), encoder_hidden_states, **options)


def largest_tensor(decoder: SEDDecoder, **inputs: Any) -> int:
    """Bytes of the largest tensor that decoding makes."""
    with LargestTensor() as largest:
        decode(decoder, **inputs)
    return largest.num_bytes
