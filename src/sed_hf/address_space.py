"""See that a process whose address space is limited (`ulimit -v`) has room for the libraries, before it loads them.

In too little of it they do not end in errors: torch and OpenBLAS crash, or OpenBLAS asks for memory forever.
"""

import subprocess
import sys

LIBRARY_BYTES = 2**30  # what transformers, scipy and a small model take beside torch: 780 MiB with torch 2.15
TRIAL = "import mmap, torch; mmap.mmap(-1, {num_bytes})"  # nothing of it is touched
TRIAL_SECONDS = 120


def require_address_space() -> None:
    """Try in another process whether there is room for the libraries; where nothing is limited, do nothing.

    Raises:
        MemoryError: There is not.
    """
    limit = address_space_limit()
    if limit is None:
        return
    trial = [sys.executable, "-c", TRIAL.format(num_bytes=LIBRARY_BYTES)]
    try:
        subprocess.run(trial, capture_output=True, check=True, timeout=TRIAL_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        raise MemoryError(
            f"the address space of this process is limited to {limit / 2**20:.0f} MiB (ulimit -v), which does not hold"
            f" torch and the {LIBRARY_BYTES / 2**20:.0f} MiB that other libraries and a small model take"
        ) from error


def address_space_limit() -> int | None:
    """The limit in bytes, if there is one."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit
