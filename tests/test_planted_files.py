"""What lies at the names that a command uses: nothing outside is opened, emptied or removed."""

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from planted import BESIDE, PLANTS, listing

from sed_hf.cli import main


class Command(NamedTuple):
    """A command and the results that it writes, in `out`."""

    arguments: list[str]
    results: list[str]
    partial: str | None = None  # the name of an unfinished result


CLASSES = ["--classes", "sky", "sand"]
COMMANDS = {
    "image": Command(["segment", "photo.png", *CLASSES], ["photo_overlay.jpg", "photo_labels.png", "photo.json"]),
    "video": Command(["segment", "clip.mp4", *CLASSES], ["clip_overlay.mp4", "clip.json"], "clip_overlay.partial.mp4"),
    "explain": Command(["explain", "photo.png", *CLASSES], ["photo_explain.png", "photo_explain.json"]),
    "encode": Command(["encode", "out/names.safetensors", *CLASSES], ["names.safetensors"]),
}
Run = Callable[[Command], int]


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of the user's."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    return tmp_path / "precious"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "work" / "out").mkdir(parents=True)
    return tmp_path / "work" / "out"


@pytest.fixture
def run(out: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a folder with an image and a video."""
    monkeypatch.chdir(out.parent)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")

    def run(command: Command) -> int:
        if "clip.mp4" in command.arguments:
            write_video(Path("clip.mp4"), pixels)
        output = [] if command.arguments[0] == "encode" else ["--output", "out"]
        return main([*command.arguments, "--device", "cpu", *output])

    return run


def write_video(path: Path, pixels: np.ndarray) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def plant(paths: Iterable[Path], kinds: Sequence[str], precious: Path) -> None:
    """Plant the kinds of files one after the other."""
    for path, kind in zip(paths, cycle(kinds), strict=False):
        PLANTS[kind](path, precious)


@pytest.mark.parametrize(
    "kinds", [["link to a folder", "FIFO"], ["link to a file", "link to nothing", "file"]], ids=["one", "other"]
)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_what_lies_at_the_name_of_a_result_is_replaced_and_not_followed(
    run: Run, command: Command, kinds: list[str], out: Path, precious: Path
) -> None:
    plant([out / name for name in command.results], kinds, precious)
    assert run(command) == 0
    assert listing(precious) == {"thesis.txt": b"mine"}
    assert sorted(path.name for path in out.iterdir()) == sorted(command.results)
    assert not any(path.is_symlink() or path.stat().st_size < 100 for path in out.iterdir())


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_folder_there_is_refused_by_name(
    run: Run, command: Command, out: Path, precious: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant([out / command.results[-1]], ["folder"], precious)
    assert run(command) == 2
    assert f"out/{command.results[-1]}" in capsys.readouterr().err.splitlines()[-1]
    assert listing(out / command.results[-1]) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_what_lies_beside_it_is_not_touched(run: Run, command: Command, out: Path, precious: Path) -> None:
    names = [beside.format(result) for result in command.results for beside in BESIDE]
    plant([out / name for name in names], list(PLANTS), precious)
    if command.partial:
        plant([out / command.partial], ["link to a file"], precious)
    before = listing(out) | listing(precious)
    assert run(command) == 0
    after = listing(out) | listing(precious)
    assert {name: content for name, content in after.items() if name not in command.results} == before
