"""Atomic writes, names of files and repositories, and texts for errors in one line."""

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # OWNER/NAME
IMAGE_SUFFIX = re.compile(r"\.(avif|bmp|gif|jfif|jp2|jpe|jpeg|jpg|mpo|pgm|png|ppm|tif|tiff|webp)", re.IGNORECASE)


@contextmanager
def atomic_path(path: str | PathLike[str]) -> Iterator[Path]:
    """A temporary path to write a file or a folder to, which takes the place of `path` when the block succeeds.

    It lies in a new folder of an unpredictable name beside `path`, which a killed process leaves; what is planted there
    is not touched. Parents are made. A link at `path` is replaced, not followed. An `OSError` of writing names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = str(path.parent)
    try:
        with tempfile.TemporaryDirectory(".part", ".", path.parent, ignore_cleanup_errors=True) as folder:
            new, old = Path(folder, path.name), Path(tempfile.mkdtemp(dir=folder), "old")
            yield new
            try:
                if new.is_dir() and (path.is_dir() or path.is_symlink()):
                    path.rename(old)  # a folder is not replaced in one step
                new.replace(path)
            except BaseException:
                if old.is_symlink() or old.exists():
                    old.rename(path)
                raise
    except OSError as error:
        if error.errno is None or (error.filename and not str(error.filename).startswith(folder)):
            raise  # of a file that the block reads
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_file(path: str | PathLike[str], content: str | bytes) -> None:
    """Write a file, text as UTF-8, which appears when it is complete."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def short_error(error: BaseException) -> str:
    """An error of a library in one line of at most 200 characters, for a message of our own."""
    text = " ".join(str(error).split())
    if not text or not isinstance(error, OSError | ValueError | RuntimeError):
        text = f"{type(error).__name__}: {text}"  # of a KeyError, for one
    return text if len(text) <= 200 else f"{text[:200]}…"


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many there are besides."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return f"{', '.join(f'{name:.200}' for name in listed[:most])}{more}"
