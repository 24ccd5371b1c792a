"""Recognise that a device's memory is full, and find out how much of it is free."""

import mmap

import torch

# What torch, oneDNN and NVIDIA's libraries say in errors that have no type of their own.
MESSAGES = (
    "can't allocate memory",
    "Cannot allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "ALLOC_FAILED",
)
# For the code of a few of oneDNN's kernels, each of up to 4 MB. Those that found none are called all the same: a crash.
KERNEL_BYTES = 2**25


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def require_room(num_bytes: int, device: torch.device) -> None:
    """See that a device has memory for tensors of so many bytes, and for the code that computes them.

    On a CPU nothing is touched, and it takes microseconds.

    Raises:
        RuntimeError, torch.OutOfMemoryError: It has not; [`is_out_of_memory`] recognises both.
    """
    tensors = torch.UntypedStorage(num_bytes, device=device)
    if device.type == "cpu":
        try:
            mmap.mmap(-1, KERNEL_BYTES).close()  # what is left of the heap is of no use to code
        except OSError as error:
            raise torch.OutOfMemoryError(f"no memory for code: {error}") from None
    del tensors  # held until here, so that no byte counts twice


def allocatable_bytes(most: int, device: torch.device) -> int:
    """About how many bytes tensors can still take on a device, up to `most`; found by trying, within a quarter."""
    size = most
    while size:
        try:
            require_room(size, device)
            return size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        size = size * 3 // 4
    return 0
