"""Signals end a command with one line, the status that shells expect, and nothing half done."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sed_hf.cli import main

HINT = "the same command goes on"


def run_program(body: str, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the body of an interruptible block, which sends signals to itself."""
    program = f"""
        import os, signal, sys, time
        from sed_hf.interruption import interruptible
        with interruptible("program", {HINT!r}):
{textwrap.indent(textwrap.dedent(body), " " * 12)}
        print("went on")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=folder, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("number", "word"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated")],
)
def test_a_signal_ends_the_program_with_its_status_and_one_line(
    number: signal.Signals, word: str, tmp_path: Path
) -> None:
    result = run_program(f"os.kill(os.getpid(), {int(number)}); time.sleep(9)", tmp_path)
    assert result.returncode == 128 + number
    assert (result.stdout, result.stderr) == ("", f"program: {word}; {HINT}\n")


def test_the_signal_that_a_launcher_hands_on_does_not_disturb_the_end(tmp_path: Path) -> None:
    body = """
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(9)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            print("cleaned up")
    """
    result = run_program(body, tmp_path)
    assert (result.returncode, result.stdout) == (130, "cleaned up\n")


def test_ctrl_c_again_ends_an_end_that_takes_long(tmp_path: Path) -> None:
    body = """
        import sed_hf.interruption
        sed_hf.interruption.REPEATED_SECONDS = 0
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(9)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(9)
            print("cleaned up")
    """
    result = run_program(body, tmp_path)
    assert (result.returncode, result.stdout) == (130, "")


def test_while_a_module_is_imported_the_program_ends_at_once(tmp_path: Path) -> None:
    module = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    (tmp_path / "swallows.py").write_text(module)
    result = run_program("sys.path.insert(0, os.getcwd()); import swallows", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", f"program: interrupted; {HINT}\n")


def test_while_a_module_is_imported_a_file_that_is_written_is_not_left(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(9)")
    body = """
        from pathlib import Path
        from sed_hf.files import written_at_once
        sys.path.insert(0, os.getcwd())
        with written_at_once(Path("out")) as path:
            path.write_text("half")
            import module
    """
    assert run_program(body, tmp_path).returncode == 143
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["module.py"]


def test_a_signal_that_comes_in_a_destructor_is_not_lost(tmp_path: Path) -> None:
    body = """
        class Interrupts:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(9)
        Interrupts()
        time.sleep(9)
    """
    result = run_program(body, tmp_path)
    assert (result.returncode, result.stderr) == (130, f"program: interrupted; {HINT}\n")


def test_a_signal_that_comes_while_a_file_gets_its_place_waits_for_that(tmp_path: Path) -> None:
    body = """
        from pathlib import Path
        from sed_hf.files import written_at_once
        mkdir = Path.mkdir
        def mkdir_and_signal(path, *args, **kwargs):
            mkdir(path, *args, **kwargs)
            os.kill(os.getpid(), signal.SIGINT)
        Path.mkdir = mkdir_and_signal
        with written_at_once(Path("out")) as path:
            time.sleep(9)
    """
    result = run_program(body, tmp_path)
    assert (result.returncode, result.stderr) == (130, f"program: interrupted; {HINT}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_waits_until_the_end_is_not_lost(tmp_path: Path) -> None:
    body = """
        from contextlib import ExitStack
        import sed_hf.interruption
        sed_hf.interruption.DEFERRED_SECONDS = 9
        frames = sed_hf.interruption._is_delicate
        sed_hf.interruption._is_delicate = lambda frame: True
        os.kill(os.getpid(), signal.SIGTERM)
    """
    result = run_program(body, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (143, "", f"program: terminated; {HINT}\n")


def test_an_error_that_the_signal_brings_about_counts_as_the_interruption(tmp_path: Path) -> None:
    body = """
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(9)
        except KeyboardInterrupt:
            raise RuntimeError("a process that reads data was killed")
    """
    result = run_program(body, tmp_path)
    assert (result.returncode, result.stderr) == (143, f"program: terminated; {HINT}\n")


def test_other_errors_stay_errors(tmp_path: Path) -> None:
    result = run_program("raise RuntimeError('a bug')", tmp_path)
    assert result.returncode == 1
    assert "RuntimeError: a bug" in result.stderr


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does

    result = run_program("os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.05)", tmp_path, preexec_fn=ignore)
    assert (result.returncode, result.stdout) == (0, "went on\n")


def test_a_forked_process_leaves_ctrl_c_to_the_one_above(tmp_path: Path) -> None:
    body = """
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    result = run_program(body, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "7\nwent on\n", "")


def test_a_process_of_accelerate_launch_ends_with_it(tmp_path: Path) -> None:
    program = """
        import os, time
        from pathlib import Path
        from sed_hf.interruption import interruptible
        try:
            with interruptible("program"):
                Path("running").touch()
                time.sleep(30)
        finally:
            Path("ended").touch()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    launcher = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command!r})"],
        env={**os.environ, "ACCELERATE_MIXED_PRECISION": "no"},
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    wait_for(tmp_path / "running")
    launcher.kill()
    launcher.wait()
    wait_for(tmp_path / "ended")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come into being"
        time.sleep(0.02)


def test_ctrl_c_while_the_command_imports_torch_gives_one_line(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    code = "import sys; from sed_hf.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "segment", str(tmp_path / "photo.png"), "--classes", "sky"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    assert "model in the box" in process.stderr.readline()  # then come the imports
    process.send_signal(signal.SIGINT)
    assert process.stderr.read().splitlines()[-1] == "sed-hf: interrupted"
    assert process.wait(timeout=60) == 130


@pytest.fixture
def segment(tiny_hub_folder: Path, tmp_path: Path) -> Callable[..., None]:
    """Run `sed-hf segment` on two pictures, into tmp_path/out."""
    for name in ("a", "b"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.effect_noise((80, 60), 99).convert("RGB").save(tmp_path / "pictures" / f"{name}.png")

    def run(*classes: str) -> None:
        arguments = ["--model", str(tiny_hub_folder), "--output", str(tmp_path / "out"), "--classes", *classes]
        assert main(["segment", str(tmp_path / "pictures"), *arguments]) == 0

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def terminate_at_the_second_label_map(monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def save_until_terminated(self: Image.Image, path: Path, **options: object) -> None:
        save(self, path, **options)  # type: ignore[arg-type]
        if path.name == "b_labels.png":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Image.Image, "save", save_until_terminated)


def test_segment_keeps_the_pictures_that_are_done_and_leaves_no_part_of_the_next(
    segment: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminate_at_the_second_label_map(monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        segment("sky", "grass")
    assert exit_.value.code == 143
    assert sorted(contents(tmp_path / "out")) == ["a.json", "a_labels.png", "a_overlay.jpg"]


def test_segment_interrupted_among_other_results_leaves_these_whole(
    segment: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment("sky", "grass")
    old = contents(tmp_path / "out")
    terminate_at_the_second_label_map(monkeypatch)
    with pytest.raises(SystemExit):
        segment("sand", "sea", "rock")
    found = contents(tmp_path / "out")
    changed = {name for name, content in found.items() if content != old[name]}
    assert {"a.json", "a_overlay.jpg"} <= changed <= {"a.json", "a_labels.png", "a_overlay.jpg"}


def test_handlers_of_before_are_there_after_a_command(segment: Callable[..., None]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    segment("sky", "grass")
    assert signal.getsignal(signal.SIGTERM) == before
