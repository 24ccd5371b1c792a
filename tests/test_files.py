"""Files and folders that are whole or not there: interrupted, killed, written by several at once."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sed_hf import files
from sed_hf.utils import atomic_path, remove_leftovers

KILLED_WHILE_IT_WRITES = """
import os, signal, sys
from pathlib import Path
from sed_hf.utils import atomic_path

with atomic_path(Path(sys.argv[1])) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_folder(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / text).write_text(text)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A file that a killed process was writing."""
    process = subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_WRITES, tmp_path / "file"], check=False)
    assert process.returncode == -signal.SIGKILL
    assert names_in(tmp_path) == [".file.1.part"]
    return tmp_path / "file"


def test_a_file_takes_the_place_of_a_file(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write(tmp_path / "file", text)
    assert (tmp_path / "file").read_text() == "new"
    assert names_in(tmp_path) == ["file"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_folder(tmp_path / "folder", text)
    assert names_in(tmp_path / "folder") == ["new"]
    assert names_in(tmp_path) == ["folder"]


def test_an_interruption_leaves_the_old_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "old")

    def interrupted() -> None:
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names_in(tmp_path / "folder") == ["old"]
    assert names_in(tmp_path) == ["folder"]


def test_an_interruption_between_the_two_renames_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "folder", "old")
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.parent.name == ".folder.1.part" and self.name == "folder":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "folder", "new")
    assert names_in(tmp_path / "folder") == ["old"]
    assert names_in(tmp_path) == ["folder"]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "name", "old")
    with pytest.raises(OSError, match="name"):
        write(tmp_path / "name", "new")
    assert names_in(tmp_path / "name") == ["old"]


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_the_file(killed: Path) -> None:
    write(killed, "whole")
    assert killed.read_text() == "whole"
    assert names_in(killed.parent) == ["file"]


def test_what_killed_processes_left_in_a_folder_can_be_removed(killed: Path) -> None:
    remove_leftovers(killed.parent)
    assert names_in(killed.parent) == []


def test_of_several_killed_at_once_the_next_writer_removes_all(killed: Path) -> None:
    (killed.parent / ".file.2.part").mkdir()
    write(killed, "whole")
    assert names_in(killed.parent) == ["file"]


def test_those_that_write_the_same_file_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "file") as first:
        first.write_text("first, half")
        with atomic_path(tmp_path / "file") as second:
            second.write_text("second")
        assert (tmp_path / "file").read_text() == "second"
        remove_leftovers(tmp_path)
        first.write_text("first")
    assert (tmp_path / "file").read_text() == "first"
    assert names_in(tmp_path) == ["file"]


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    write(tmp_path / "file", "whole")
    assert names_in(tmp_path) == ["file"]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "file") as temporary:
            (temporary / "no folder").write_text("")

    with pytest.raises(FileNotFoundError) as error:
        fail()
    assert error.value.filename == str(tmp_path / "file")


def test_an_error_of_a_file_that_is_read_stays_as_it_is(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "file"):
            (tmp_path / "source").read_text()

    with pytest.raises(FileNotFoundError) as error:
        fail()
    assert error.value.filename == str(tmp_path / "source")
