"""Inputs of a decoder, the decoder called as the plain one, and the largest tensor that any operation makes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sed_hf.modeling_sed import SEDCostMap, SEDDecoder


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


def decode(decoder: SEDDecoder, dense_embeddings: Tensor, class_embeddings: Tensor, **others: Any) -> Any:
    """The decoder, with the arguments of `plain_decode`."""
    return decoder(SEDCostMap(dense_embeddings, class_embeddings), **others)


class LargestTensor(TorchDispatchMode):
    """Within it, `num_bytes` is the size of the largest storage behind an operation's result."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.num_bytes = max(self.num_bytes, leaf.untyped_storage().nbytes())
        return result


def largest_tensor(decoder: SEDDecoder, **inputs: Any) -> int:
    """Bytes of the largest tensor that decoding makes."""
    with LargestTensor() as largest:
        decode(decoder, **inputs)
    return largest.num_bytes
