"""Files and folders: what is read must be a file, and what is written is whole or not there."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from os import PathLike
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

MAX_REASON_CHARACTERS = 300
SUFFIX = ".part"
_own_folders: set[Path] = set()  # of this process, in all its threads


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
    """A temporary file or folder to write, which becomes `path` if that succeeds: an interruption leaves no half of it.

    It lies in a hidden folder beside `path`, on which this process holds a lock. So processes may write the same file
    at once, and what a killed one has left is removed by the next that writes the file.

    A file takes the place of a file, and a folder that of a folder. The old folder stays until the new one is complete;
    only a process that is killed between two renames leaves neither.

    Raises:
        OSError: It cannot be written. The error names `path`, whatever the writer says of the temporary file.
    """
    hidden = str(path.with_name(f".{path.name}."))
    try:
        with _own_folder(path) as folder:
            yield folder / path.name
            _move(folder / path.name, path, aside=folder / "replaced")
    except OSError as error:
        if error.filename is not None and not os.fsdecode(error.filename).startswith(hidden):
            raise  # of a file that the writer reads
        if error.errno is None:
            raise OSError(f"{path} cannot be written: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file that is written under its own name, so that no other process writes it meanwhile.

    Raises:
        OSError: Another process holds it.
    """
    path.touch()
    try:
        lock = _lock(path)
    except OSError:
        yield
        return
    if lock is None:
        raise OSError(errno.EBUSY, "another process is writing it", str(path))
    try:
        yield
    finally:
        os.close(lock)


def is_writing() -> bool:
    """Whether this process is writing something at once."""
    return bool(_own_folders)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left of writing files in a folder, but not what living ones are writing."""
    for left in filter(Path.is_dir, folder.glob(f".*{SUFFIX}")):
        with suppress(OSError):
            if (lock := _lock(left)) is not None:
                _remove(left)
                os.close(lock)


@contextmanager
def _own_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` that no other process uses, empty at first, and removed in the end."""
    folder, lock = _claim(path)
    _own_folders.add(folder)
    try:
        yield folder
    finally:
        _remove(folder)
        _own_folders.discard(folder)
        if lock is not None:
            os.close(lock)


def _claim(path: Path) -> tuple[Path, int | None]:
    """Make such a folder, or take one that a killed process has left; and its lock, if the file system has locks.

    They are numbered, so that one that was left is found without listing all files.
    """
    for number in count(1):
        folder = path.with_name(f".{path.name}.{number}{SUFFIX}")
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            lock = _lock(folder)
        except OSError:
            break
        if lock is not None:
            for left in folder.iterdir():
                _remove(left)
            if path.with_name(f".{path.name}.{number + 1}{SUFFIX}").exists():
                remove_leftovers(path.parent)
            return folder, lock
    with suppress(OSError):
        folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=path.parent)), None


def _lock(path: Path) -> int | None:
    """Lock a file or folder while this process lives: the descriptor to close; `None` if another has it, or it is gone.

    Raises:
        OSError: The file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(path))
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _move(new: Path, path: Path, aside: Path) -> None:
    """Rename `new` to `path`; a folder that is there goes `aside`, since folders cannot be replaced in one step."""
    if not (new.is_dir() and path.is_dir()):
        new.replace(path)
        return
    try:
        path.replace(aside)
        new.replace(path)
    except BaseException:
        if not path.exists():
            aside.replace(path)
        raise


def _remove(path: Path) -> None:
    """Remove a file or a folder, even if Ctrl-C comes meanwhile."""
    try:
        _try_to_remove(path)
    except BaseException:
        _try_to_remove(path)
        raise


def _try_to_remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
