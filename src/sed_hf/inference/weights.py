"""By what weights are known, wherever they were loaded from."""

import hashlib

import torch
from torch import Tensor, nn


def weights_sha256(model: nn.Module) -> str:
    """A hash of all parameters and buffers, by which a model is known wherever it was loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's elements, whatever its dtype and device; of one on the CPU, no copy."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
