"""What figures depend on besides options and weights: library versions, hardware, processes."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

LIBRARIES = ("sed-hf", "torch", "torchvision", "transformers", "timm", "accelerate", "datasets", "pillow")
# Where launchers say how many processes they have started: torchrun and accelerate; Open MPI; Intel MPI and MPICH.
PROCESS_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions of Python and the libraries, the hardware's name, and the number of processes."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "hardware": hardware_name(device),
        "num_processes": PartialState().num_processes,
    }


def hardware_name(device: torch.device) -> str:
    """The name of a device as its maker gives it, such as "NVIDIA H200", or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")  # `platform` only knows the architecture on Linux
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def require_launched_processes() -> None:
    """Check that accelerate runs on as many processes as a launcher has started.

    Raises:
        ValueError: It does not: each would do all of the work, into the same folder.
    """
    for name in PROCESS_COUNTS:
        launched, found = int(os.environ.get(name, 1)), PartialState().num_processes
        if launched > 1 and found != launched:
            raise ValueError(
                f"{name}={launched}, but accelerate found {found} process: on CPUs set ACCELERATE_USE_CPU=true,"
                " otherwise give each process a GPU"
            )
