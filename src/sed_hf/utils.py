"""Atomic writes, errors in one line, and how a command ends."""

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

MAX_ERROR_CHARACTERS = 200


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
        if path.is_dir() and (new.is_dir() or path.is_symlink()):  # a folder is not replaced in one step
            path.rename(folder / "replaced")
        new.replace(path)
    except OSError as error:
        if error.errno is None or (error.filename and not str(error.filename).startswith(f"{folder or path.parent}")):
            raise  # of a file that the block reads
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def short_error(error: BaseException) -> str:
    """An error of a library in one short line, for a message of our own."""
    text = " ".join(str(error).split())
    if not isinstance(error, OSError | ValueError | RuntimeError):
        text = f"{type(error).__name__}: {text}"  # of a KeyError, for one
    return text if len(text) <= MAX_ERROR_CHARACTERS else text[:MAX_ERROR_CHARACTERS] + "…"


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit status: 2 after an error of its input, 130 after Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError) as error:
        print(f"{program}: error: {' '.join(str(error).split()) or 'out of memory'}", file=sys.stderr)
        return 2


def require_file(path: str | PathLike[str]) -> Path:
    """Transitional: callers let `open` speak."""
    if not (path := Path(path)).is_file():
        raise FileNotFoundError(f"{path}: expected a file; there is none")
    return path
