"""Recognise that a device's memory is full, and find out how much of it is free."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. That of a CPU has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


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
