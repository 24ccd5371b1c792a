"""What figures depend on besides options and weights: library versions, hardware, processes."""

import os
import platform
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState

LIBRARIES = ("sed-hf", "torch", "torchvision", "transformers", "timm", "accelerate", "datasets", "pillow")
# Where launchers say how many processes they have started: torchrun and accelerate; Open MPI; Intel MPI and MPICH.
PROCESS_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions of Python and the libraries, the name of the GPU or processor, and the number of processes."""
    hardware = platform.processor() or platform.machine()
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():  # `platform` only knows the architecture on Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        hardware = next((line.split(": ")[1] for line in lines if line.startswith("model name")), hardware)
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "hardware": hardware,
        "num_processes": PartialState().num_processes,
    }


def start_processes() -> Accelerator:
    """The processes that a launcher has started; each waits for the others, of which one may download or do more."""
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
    require_launched_processes()
    return accelerator


def require_launched_processes() -> None:
    """Check that accelerate runs on as many processes as a launcher has started, or each would do all of the work."""
    for name in PROCESS_COUNTS:
        launched, found = int(os.environ.get(name, 1)), PartialState().num_processes
        if launched > 1 and found != launched:
            raise ValueError(
                f"{name}={launched}, but accelerate found {found} process: on CPUs set ACCELERATE_USE_CPU=true,"
                " otherwise give each process a GPU"
            )
