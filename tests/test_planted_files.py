"""What lies at the names that a command uses: nothing outside is opened, emptied or removed."""

from pathlib import Path

import numpy as np
import pytest
from clips import write_clip
from PIL import Image
from planted import BESIDE, PLANTS, listing

from sed_hf.cli import main

COMMANDS = {  # and what each writes in the folder "out"
    "segment photo.png": ["photo_overlay.jpg", "photo_labels.png", "photo.json"],
    "segment clip.mp4": ["clip_overlay.mp4", "clip.json"],
    "explain photo.png": ["photo_explain.png", "photo_explain.json"],
    "encode out/names.safetensors": ["names.safetensors"],
}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for results, beside an image and a video, in the working directory."""
    (tmp_path / "work" / "out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save("photo.png")
    write_clip(Path("clip.mp4"), range(1))
    return Path("out")


@pytest.mark.parametrize(("command", "results"), COMMANDS.items(), ids=COMMANDS)
@pytest.mark.parametrize("kind", PLANTS)
def test_what_lies_at_the_name_of_a_result_or_beside_it_is_not_followed(
    command: str, results: list[str], kind: str, out: Path, precious: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = [place.format(result) for result in results for place in BESIDE]
    for name in [*results, *beside]:
        PLANTS[kind](out / name, precious)
    before = listing(out) | listing(precious)
    output = [] if command.startswith("encode") else ["--output", "out"]
    status = main([*command.split(), "--classes", "sky", "sand", "--device", "cpu", *output])
    after = listing(out) | listing(precious)
    changed = {name for name, content in after.items() if content != before[name]}
    if kind == "folder":  # which nothing may take the place of
        assert (status, changed) == (2, set())
        assert "out/" in capsys.readouterr().err.splitlines()[-1]
    else:
        assert (status, changed) == (0, set(results))
        assert not any((out / name).is_symlink() or (out / name).stat().st_size < 100 for name in results)
