"""Atomic writes, and how a command ends."""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from sed_hf.terminal import printable, run_command
from sed_hf.utils import atomic_path

Make = Callable[[Path, str], None]


def write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_folder(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / text).write_text(text)


def content(path: Path) -> list[str]:
    """The text of a file, or the names in a folder."""
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [path.read_text()]


class TestAtomicPath:
    @pytest.mark.parametrize("make", [write, write_folder])
    @pytest.mark.parametrize("name", ["name", "n" * 255])
    def test_what_is_there_is_replaced(self, tmp_path: Path, make: Make, name: str) -> None:
        for text in ("old", "new"):
            make(tmp_path / name, text)
        assert content(tmp_path / name) == ["new"]
        assert content(tmp_path) == [name]

    @pytest.mark.parametrize("make", [write, write_folder])
    @pytest.mark.parametrize("target", [".", "thesis", "nothing"])
    def test_a_link_is_replaced_and_not_followed(self, tmp_path: Path, make: Make, target: str) -> None:
        home, work = tmp_path / "home", tmp_path / "work"
        home.mkdir()
        work.mkdir()
        (home / "thesis").write_text("thesis")
        (work / "name").symlink_to(home / target)
        make(work / "name", "new")
        assert not (work / "name").is_symlink()
        assert content(home) == ["thesis"] == content(home / "thesis")

    @pytest.mark.parametrize("make", [write, write_folder])
    def test_an_interruption_leaves_what_was_there(self, tmp_path: Path, make: Make) -> None:
        make(tmp_path / "name", "old")

        with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "name") as temporary:  # noqa: PT012
            make(temporary, "half")
            raise KeyboardInterrupt
        assert content(tmp_path) == ["name"]
        assert content(tmp_path / "name") == ["old"]

    def test_interruption_between_renames_keeps_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_folder(tmp_path / "folder", "old")

        monkeypatch.setattr(Path, "replace", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path / "folder", "new")
        assert content(tmp_path / "folder") == ["old"]
        assert content(tmp_path) == ["folder"]

    def test_those_that_write_one_file_at_once_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        with atomic_path(tmp_path / "file") as first:
            first.write_text("first, half")
            write(tmp_path / "file", "second")
            assert content(tmp_path / "file") == ["second"]
            first.write_text("first")
        assert content(tmp_path / "file") == ["first"]
        assert content(tmp_path) == ["file"]

    def test_an_error_names_the_file_that_could_not_be_written_or_read(self, tmp_path: Path) -> None:
        for read in (False, True):
            with pytest.raises(FileNotFoundError) as error, atomic_path(tmp_path / "file") as temporary:
                (tmp_path / "source").read_text() if read else (temporary / "no folder").write_text("")
            assert error.value.filename == str(tmp_path / ("source" if read else "file"))


class TestRunCommand:
    def ended_by(self, error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
        """Status and message of a command that ends with an error."""
        return run_command("sed-hf", Mock(side_effect=error)), capsys.readouterr().err

    def test_an_error_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended_by(ValueError("bad\nname \x1b[2J"), capsys) == (2, "sed-hf: error: bad name \\x1b[2J\n")
        assert self.ended_by(FileNotFoundError("a.jpg: none"), capsys) == (2, "sed-hf: error: a.jpg: none\n")

    def test_signs_that_standard_output_has_not_are_escaped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdout", output := io.TextIOWrapper(io.BytesIO(), "cp1252"))
        assert run_command("sed-hf", lambda: print("ü日", flush=True) or 0) == 0
        assert output.buffer.getvalue().split() == [b"\xfc\\u65e5"]

    def test_full_memory_is_one_line_with_the_remedy(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(RuntimeError) as of_cpu:
            torch.empty(2**60, dtype=torch.uint8)
        for error in (MemoryError(), of_cpu.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")):
            message = "Out of memory: try early rejection (--topk 8), a smaller batch or bfloat16"
            assert self.ended_by(error, capsys) == (2, f"sed-hf: error: {message}\n")
        error = torch.OutOfMemoryError("Out of memory with 847 classes: try early_rejection_topk=8")
        assert self.ended_by(error, capsys) == (2, f"sed-hf: error: {error}\n")

    def test_another_error_keeps_its_traceback(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(RuntimeError, match="shapes differ"):
            self.ended_by(RuntimeError("shapes differ"), capsys)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_with_status_130(self, number: int, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_command("sed-hf", lambda: os.kill(os.getpid(), number)) == 130
        assert capsys.readouterr().err == "sed-hf: interrupted\n"


def test_control_characters_are_escaped() -> None:
    assert printable("a\tb\n c\x1b\x9b\u202e ü日本") == "a b c\\x1b\\x9b\\u202e ü日本"
