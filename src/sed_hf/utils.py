"""Atomic writes, and texts for errors in one line."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

MAX_ERROR_CHARACTERS = 200
NAMES_SHOWN = 5


@contextmanager
def atomic_path(path: str | PathLike[str]) -> Iterator[Path]:
    """A temporary path to write a file or a folder to, which takes the place of `path` when the block succeeds.

    It lies in a new folder of an unpredictable name beside `path`: nothing planted there is followed or removed. A link
    at `path` is replaced, not followed. A process that is killed leaves that folder, and `path` as it was.

    Raises:
        OSError: It cannot be written; the error names `path`.
    """
    path = Path(path)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=path.parent))
        new = folder / path.name
        yield new
        if new.is_dir() and (path.is_dir() or path.is_symlink()):  # which is not replaced in one step
            replace_folder(path, new, Path(tempfile.mkdtemp(dir=folder)) / "replaced")
        else:
            new.replace(path)
    except OSError as error:
        if error.errno is None or (error.filename and not str(error.filename).startswith(f"{folder or path.parent}")):
            raise  # of a file that the block reads
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def replace_folder(path: Path, new: Path, old: Path) -> None:
    """Move a folder to `old` and `new` to its place; if that fails, it is where it was."""
    try:
        path.rename(old)
        new.replace(path)
    except BaseException:
        if old.is_symlink() or old.exists():
            old.rename(path)
        raise


def short_error(error: BaseException) -> str:
    """An error of a library in one short line, for a message of our own."""
    text = " ".join(str(error).split())
    if not text or not isinstance(error, OSError | ValueError | RuntimeError):
        text = f"{type(error).__name__}: {text}"  # of a KeyError, for one
    return text if len(text) <= MAX_ERROR_CHARACTERS else text[:MAX_ERROR_CHARACTERS] + "…"


def some(names: Iterable[str]) -> str:
    """The first names, and how many there are besides."""
    listed = sorted(names)
    more = f" and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return f"{', '.join(f'{name:.200}' for name in listed[:NAMES_SHOWN])}{more}"
