"""What lies at the names that a command uses: nothing outside is opened, emptied or removed."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from planted import BESIDE, PLANTS, listing

from sed_hf.cli import main

COMMANDS = {  # and what each writes in the folder "out"
    "segment photo.png": ["photo_overlay.jpg", "photo_labels.png", "photo.json"],
    "segment clip.mp4": ["clip_overlay.mp4", "clip.json"],
    "explain photo.png": ["photo_explain.png", "photo_explain.json"],
    "encode out/names.safetensors": ["names.safetensors"],
}
each_command = pytest.mark.parametrize(("command", "results"), COMMANDS.items(), ids=COMMANDS)


def run(command: str) -> int:
    output = [] if command.startswith("encode") else ["--output", "out"]
    return main([*command.split(), "--classes", "sky", "sand", "--device", "cpu", *output])


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for results, beside an image and a video, in the working directory."""
    (tmp_path / "work" / "out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return Path("out")


@each_command
@pytest.mark.parametrize("kind", [kind for kind in PLANTS if kind != "folder"])
def test_what_lies_at_the_name_of_a_result_or_beside_it_is_not_followed(
    command: str, results: list[str], kind: str, out: Path, precious: Path
) -> None:
    beside = [place.format(result) for result in [*results, "clip_overlay.partial.mp4"] for place in BESIDE]
    for name in [*results, *beside]:
        PLANTS[kind](out / name, precious)
    before = listing(out) | listing(precious)
    assert run(command) == 0
    after = listing(out) | listing(precious)
    assert {name for name, content in after.items() if content != before[name]} == set(results)
    assert not any((out / name).is_symlink() or (out / name).stat().st_size < 100 for name in results)


@each_command
def test_a_folder_there_is_refused_by_name(
    command: str, results: list[str], out: Path, precious: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PLANTS["folder"](out / results[-1], precious)
    assert run(command) == 2
    assert f"out/{results[-1]}" in capsys.readouterr().err.splitlines()[-1]
    assert listing(out / results[-1]) == {"thesis.txt": b"mine"}
