"""Files: what is read must be one, and what is written is whole or not there."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

MAX_REASON_CHARACTERS = 300


def require_file(path: str | PathLike[str]) -> Path:
    """The path, if it is a file: a pipe or a device might be read for ever.

    Raises:
        FileNotFoundError: There is nothing.
        OSError: It is something else.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a file; there is none")
    raise OSError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'something else'}")


def reason(error: BaseException) -> str:
    """What an error of a library says, for a message of our own: one line, not too long."""
    text = " ".join(str(error).split())
    if not isinstance(error, OSError | ValueError | RuntimeError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__  # of a KeyError, for one
    return text if len(text) <= MAX_REASON_CHARACTERS else text[:MAX_REASON_CHARACTERS] + "…"


@contextmanager
def written_at_once(path: Path) -> Iterator[Path]:
    """A temporary file to write, which becomes `path` if that succeeds: an interruption leaves no half a file.

    Its name is unique, so that processes may write the same file at once.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
