"""Atomic writes, errors in one line, and how a command ends."""

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from .terminal import printable

MAX_ERROR_CHARACTERS = 200
OUT_OF_MEMORY = "Out of memory: try early rejection (--topk 8), a smaller batch or bfloat16"


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


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit status: 2 after an error in one line, 130 after Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except (OSError, ValueError) as error:
        text = str(error)
        if "Original Traceback" in text:  # of a data loader's worker; what it says stands in the last line
            text = text.strip().splitlines()[-1]
        message, status = f"error: {text}", 2
    except (MemoryError, RuntimeError) as error:
        from .chunking_sed import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        message, status = f"error: {error if 'topk' in str(error) else OUT_OF_MEMORY}", 2
    print(f"{program}: {printable(message)}", file=sys.stderr)
    return status


def require_file(path: str | PathLike[str]) -> Path:
    """Transitional: callers let `open` speak."""
    if not (path := Path(path)).is_file():
        raise FileNotFoundError(f"{path}: expected a file; there is none")
    return path
