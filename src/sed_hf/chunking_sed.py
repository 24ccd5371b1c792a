"""How the decoder fits thousands of classes into memory, and a few into a cache: the only file that knows about it.

All of the decoder but class aggregation treats each class on its own, and class aggregation each location. So a step
can run on a few of them at a time, with the same result. An exported program takes all at once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)
# The largest tensor of a step: what stays in the cache of a CPU core, and what fills a GPU.
CHUNK_BYTES = {"decoder": {"cpu": 2**23, "cuda": 2**29}, "loss": {"cpu": 2**26, "cuda": 2**28}}
# Features held together: more than glibc ever keeps for itself of what is freed, so that the system gets them back.
PART_BYTES = 2**25
Step = Callable[..., Any]
OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "could not create a", "ALLOC_FAILED")


def chunk_bytes(step: Literal["decoder", "loss"], device: torch.device) -> int:
    """Bytes of the largest tensor that a step of the network should make on a device."""
    return CHUNK_BYTES[step].get(device.type, CHUNK_BYTES[step]["cuda"])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch, oneDNN and NVIDIA's libraries say it in several ways."""
    is_message = isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY)
    return is_message or isinstance(error, torch.OutOfMemoryError | MemoryError)


class Chunks:
    """Runs the steps of the decoder on a few classes, or a few locations, at a time.

    Features of T classes are a list of parts (t, B, H, W, C), the first of about `part_bytes`. The list is changed in
    place, so that what was used is released on the way. A step takes `num_classes` at a time, or as many as make no
    tensor of over `max_bytes`, which by default suit the device.
    """

    def __init__(self, num_classes: int | None = None, max_bytes: int | None = None, part_bytes: int = PART_BYTES):
        self.num_classes, self.max_bytes, self.part_bytes = num_classes, max_bytes, part_bytes
        self.divisor = 1  # grows when memory runs out

    def map(
        self, function: Step, classes: Tensor, size: int, features: list[Tensor] | None = None, keep: bool = True
    ) -> tuple[list[Tensor], Tensor]:
        """New features, if they are to be kept, and logits (B, T, H, W) of the classes with numbers (T,).

        The function takes a few numbers (t,), and their features if any, and makes at most `size` bytes of a class.
        """
        if torch.compiler.is_exporting():
            whole, all_logits = function(classes, *(features or ()))
            return [whole], all_logits.transpose(0, 1).contiguous()
        count = self._count(len(classes), size, classes.device, self.num_classes)
        part_sizes = [len(part) for part in features] if features else max(count, 4 * self.part_bytes // size + 1)
        new_features, all_logits = [], _Joined(len(classes))
        for numbers in classes.split(part_sizes):
            inputs, new_part = (numbers, features.pop(0)) if features else (numbers,), _Joined(len(numbers))
            for piece in zip(*(each.split(count) for each in inputs), strict=True):
                new, logits = function(*piece)
                all_logits.add(logits)
                if keep:
                    new_part.add(new)
            new_features += [new_part.tensor()] if keep else []
        return new_features, all_logits.tensor().transpose(0, 1).contiguous()

    def update_classes(self, function: Step, features: list[Tensor], width: int) -> None:
        """Replace features by a function of a few classes (t, B, H, W, C), which makes `width` channels at most."""
        for index, part in enumerate(features):
            size = part[0, ..., 0].numel() * part.element_size() * width
            count = self._count(part.shape[0], size, part.device, self.num_classes)
            new_part = _Joined(part.shape[0], out=part)
            for piece in (part,) if count == part.shape[0] else part.split(count):
                new_part.add(function(piece))
            features[index] = new_part.tensor()

    def update_locations(self, function: Step, features: list[Tensor], width: int, add: bool = False) -> None:
        """Replace features by a function of a few locations (T, n, C), or add it; it makes `width` channels at most."""
        parts, sizes = [part.flatten(1, 3) for part in features], [part.shape[0] for part in features]
        n = self._count(parts[0].shape[1], sum(sizes) * parts[0].element_size() * width, parts[0].device)
        tiles = [parts] if n == parts[0].shape[1] else list(zip(*(part.split(n, 1) for part in parts), strict=True))
        results = (function(torch.cat(tile) if len(tile) > 1 else tile[0]).split(sizes) for tile in tiles)
        if len(tiles) == 1 or torch.is_grad_enabled():
            updates = [new[0] if len(new) == 1 else torch.cat(new, dim=1) for new in zip(*results, strict=True)]
            parts = [part + update for part, update in zip(parts, updates, strict=True)] if add else updates
        else:
            for tile, result in zip(tiles, results, strict=True):
                for part, new in zip(tile, result, strict=True):
                    part.add_(new) if add else part.copy_(new)
        # Also what was changed in place: of features that lie channels first, as on GPUs, the parts are copies.
        features[:] = [part.unflatten(1, whole.shape[1:4]) for part, whole in zip(parts, features, strict=True)]

    def select(self, features: list[Tensor], is_kept: Tensor) -> tuple[list[Tensor], Tensor]:
        """The features, if there are any, and sorted numbers (K,) of the classes where (T,) integers are 1, not 0."""
        parts = is_kept.split([len(part) for part in features] or len(is_kept))
        counts = torch.stack([part.sum() for part in parts]).tolist()  # all that a GPU is waited for
        first = partial(torch.argsort, descending=True, stable=True)  # where they are kept
        selected = [features.pop(0)[first(part)[:count]] for part, count in zip(parts, counts, strict=True) if features]
        return [part for part in selected if len(part)], first(is_kept)[: sum(counts)]

    def retry(self, function: Step, *arguments: Any, num_classes: int) -> Any:
        """`function(*arguments)`; when memory runs out without gradients, again with chunks a quarter the size."""
        if torch.compiler.is_exporting() or torch.is_grad_enabled():
            return function(*arguments)
        while True:
            try:
                return function(*arguments)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = " ".join(str(error).split())[:60]
            # Only here, after the handler, is what the failed attempt held released.
            if self.divisor >= num_classes:
                self.divisor = 1
                advice = "try early_rejection_topk=8, a smaller batch or bfloat16"
                raise torch.OutOfMemoryError(f"Out of memory with {num_classes} classes: {advice} ({message})")
            if self.divisor == 1:
                logger.warning(f"Out of memory with {num_classes} classes: decoding in smaller chunks from now on.")
            self.divisor *= 4

    def _count(self, length: int, size: int, device: torch.device, num_classes: int | None = None) -> int:
        """How many classes or locations, of so many, to take at a time, each with a tensor of `size` bytes."""
        if torch.compiler.is_exporting():
            return length
        wanted = num_classes or (self.max_bytes or chunk_bytes("decoder", device)) // size
        return max(1, min(wanted, length) // self.divisor)


class _Joined:
    """Joins pieces (t, ...) of so many classes; without gradients each as it comes, in the memory of `out` if given."""

    def __init__(self, num_classes: int, out: Any = None) -> None:
        self.num_classes, self.out, self.num_filled = num_classes, out, 0
        self.pieces: list[Tensor] = []

    def add(self, piece: Tensor) -> None:
        if torch.is_grad_enabled() or piece.shape[0] == self.num_classes:
            self.pieces.append(piece)
            return
        self.out = piece.new_empty(self.num_classes, *piece.shape[1:]) if self.out is None else self.out
        self.out[self.num_filled : self.num_filled + len(piece)] = piece
        self.num_filled += len(piece)

    def tensor(self) -> Tensor:
        if len(self.pieces) > 1:
            return torch.cat(self.pieces)
        return self.pieces[0] if self.pieces else self.out
