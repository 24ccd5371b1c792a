"""See that a process whose address space is limited (`ulimit -v`) has room for the libraries, before it loads them.

In too little of it they do not end in errors: OpenBLAS asks for memory forever, and cannot be interrupted.
"""

import mmap

LIBRARY_BYTES = 2**30  # what transformers, scipy and a small model take beside torch: 780 MiB with torch 2.15


def require_address_space() -> None:
    """Load torch and see that there is room for the other libraries; where nothing is limited, do nothing.

    Raises:
        MemoryError: There is not.
    """
    limit = address_space_limit()
    if limit is None:
        return
    try:
        import torch  # noqa: F401

        mmap.mmap(-1, LIBRARY_BYTES).close()  # nothing of it is touched
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
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
