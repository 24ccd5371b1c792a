"""What a command may meet: links, pipes, files and folders of others, a full disk, and a pickle that runs code."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Names at which something may lie: OUT itself, and what temporary files beside it might be called.
BESIDE = (".{}.1.part", ".{}.part", "{}.part", "{}.tmp", ".{}")
PLANTS: dict[str, Callable[[Path, Path], Any]] = {
    "link to a folder": lambda path, precious: path.symlink_to(precious),
    "link to a file": lambda path, precious: path.symlink_to(precious / "thesis.txt"),
    "link to nothing": lambda path, precious: path.symlink_to(precious / "nothing"),
    "FIFO": lambda path, precious: os.mkfifo(path),
    "file": lambda path, precious: path.write_text("mine"),
    "folder": lambda path, precious: path.mkdir() or (path / "thesis.txt").write_text("mine"),
}


def listing(folder: Path) -> dict[str, str | bytes]:
    """The kind and the content of everything in a folder, links not followed."""
    content: dict[str, str | bytes] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            content[name] = f"link to {os.readlink(path)}"
        else:
            content[name] = path.read_bytes() if path.is_file() else "FIFO" if path.is_fifo() else "folder"
    return content


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, path: str | Path = "trace") -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@contextmanager
def disk_takes(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes; of messages there must be fewer, or tqdm would keep its lock for ever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
