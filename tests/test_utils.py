"""Atomic writes, progress bars, and how a command ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sed_hf.terminal import printable, progress_bar, run_command
from sed_hf.utils import atomic_path


def write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_folder(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / text).write_text(text)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestAtomicPath:
    @pytest.fixture
    def home(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder of the user with a file, elsewhere."""
        folder = tmp_path_factory.mktemp("home")
        (folder / "thesis").write_text("thesis")
        return folder

    def test_a_file_takes_the_place_of_a_file(self, tmp_path: Path) -> None:
        for text in ("old", "new"):
            write(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == "new"
        assert names_in(tmp_path) == ["file"]

    def test_a_folder_takes_the_place_of_a_folder(self, tmp_path: Path) -> None:
        for text in ("old", "new"):
            write_folder(tmp_path / "folder", text)
        assert names_in(tmp_path / "folder") == ["new"]
        assert names_in(tmp_path) == ["folder"]

    def test_a_file_does_not_take_the_place_of_a_folder(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "name", "old")
        with pytest.raises(OSError, match="name"):
            write(tmp_path / "name", "new")
        assert names_in(tmp_path / "name") == ["old"]

    @pytest.mark.parametrize("make", [write, write_folder])
    @pytest.mark.parametrize("target", [".", "thesis", "nothing"])
    def test_a_link_is_replaced_and_not_followed(
        self, tmp_path: Path, home: Path, make: Callable[[Path, str], None], target: str
    ) -> None:
        (tmp_path / "name").symlink_to(home / target)
        make(tmp_path / "name", "new")
        assert not (tmp_path / "name").is_symlink()
        assert names_in(home) == ["thesis"]
        assert (home / "thesis").read_text() == "thesis"

    def test_a_pipe_is_replaced_and_not_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "file")
        write(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "new"

    @pytest.mark.parametrize("make", [write, write_folder])
    def test_an_interruption_leaves_what_was_there(self, tmp_path: Path, make: Callable[[Path, str], None]) -> None:
        make(tmp_path / "name", "old")

        def interrupted() -> None:
            with atomic_path(tmp_path / "name") as temporary:
                make(temporary, "half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert names_in(tmp_path) == ["name"]
        assert "half" not in (names_in(tmp_path / "name") if make is write_folder else (tmp_path / "name").read_text())

    def test_an_interruption_between_two_renames_leaves_the_old_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_folder(tmp_path / "folder", "old")

        def interrupt(self: Path, target: Path) -> Path:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path / "folder", "new")
        assert names_in(tmp_path / "folder") == ["old"]
        assert names_in(tmp_path) == ["folder"]

    def test_a_kill_leaves_nothing_under_the_name(self, tmp_path: Path) -> None:
        program = (
            "import os, sys\nfrom sed_hf.utils import atomic_path\nwith atomic_path(sys.argv[1]) as path:\n"
            "    path.write_text('half')\n    os.kill(os.getpid(), 9)"
        )
        process = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], check=False)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "file").exists()
        write(tmp_path / "file", "whole")
        assert (tmp_path / "file").read_text() == "whole"

    def test_those_that_write_one_file_at_once_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        with atomic_path(tmp_path / "file") as first:
            first.write_text("first, half")
            write(tmp_path / "file", "second")
            assert (tmp_path / "file").read_text() == "second"
            first.write_text("first")
        assert (tmp_path / "file").read_text() == "first"
        assert names_in(tmp_path) == ["file"]

    def test_a_name_may_be_as_long_as_the_file_system_takes(self, tmp_path: Path) -> None:
        write(tmp_path / ("n" * 255), "new")
        assert names_in(tmp_path) == ["n" * 255]

    def test_an_error_names_the_file_and_not_the_temporary_one(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as error, atomic_path(tmp_path / "file") as temporary:
            (temporary / "no folder").write_text("")
        assert error.value.filename == str(tmp_path / "file")

    def test_an_error_of_a_file_that_is_read_stays_as_it_is(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as error, atomic_path(tmp_path / "file"):
            (tmp_path / "source").read_text()
        assert error.value.filename == str(tmp_path / "source")


class TestRunCommand:
    def ended_by(self, error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
        """Status and message of a command that ends with an error."""

        def command() -> int:
            raise error

        return run_command("sed-hf", command), capsys.readouterr().err

    def test_an_error_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended_by(ValueError("bad\nname \x1b[2J"), capsys) == (2, "sed-hf: error: bad name \\x1b[2J\n")
        assert self.ended_by(FileNotFoundError("a.jpg: none"), capsys) == (2, "sed-hf: error: a.jpg: none\n")

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
        def command() -> int:
            os.kill(os.getpid(), number)
            return 0

        assert run_command("sed-hf", command) == 130
        assert capsys.readouterr().err == "sed-hf: interrupted\n"


def test_control_characters_are_escaped() -> None:
    assert printable("a\tb\n c\x1b\x9b\u202e ü日本") == "a b c\\x1b\\x9b\\u202e ü日本"


def test_a_progress_bar_in_a_file_is_updated_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress_bar(range(1000), desc="Counting", miniters=1):
        pass
    assert 1 <= capsys.readouterr().err.count("Counting") <= 3
