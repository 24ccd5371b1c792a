"""Recognise that a device's memory is full, and find out how much of it is free."""

import torch

# What torch, oneDNN and NVIDIA's libraries say in errors that have no type of their own.
MESSAGES = ("can't allocate memory", "could not create a primitive", "could not create a memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def allocatable_bytes(most: int, device: torch.device) -> int:
    """About how many bytes can be allocated at once on a device, up to `most`; found by trying, within a quarter."""
    size = most
    while size:
        try:
            torch.empty(size, dtype=torch.uint8, device=device)
            return size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        size = size * 3 // 4
    return 0
