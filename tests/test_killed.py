"""Killed at any moment, a command leaves no half file under a final name; its next run ends as an undisturbed one."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config
from PIL import Image
from torch import Tensor

KILLS = 6  # of each command
SED_HF = [sys.executable, "-c", "from sed_hf.cli import main; raise SystemExit(main())"]
COMMANDS = {
    "segment": [*SED_HF, "segment", "images", "--classes", "sky", "water", "gravel", "--output", "out"],
    "encode": [*SED_HF, "encode", "out/names.safetensors", "--vocabulary", "pascal_voc_20"],
    "convert": [*SED_HF, "convert", "model.pth", "out/model", "--config", "config.json", "--overwrite"],
}


def results(folder: Path) -> dict[str, bytes]:
    """The content of all files but those in the folders of unfinished ones."""
    paths = [path for path in (folder / "out").rglob("*") if path.is_file()]
    names = {path.relative_to(folder / "out").as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if ".part/" not in name}


@pytest.fixture
def folders(tmp_path: Path, tiny_weights: dict[str, Tensor]) -> list[Path]:
    """Two folders with the inputs of all commands."""
    folders = [tmp_path / "undisturbed", tmp_path / "disturbed"]
    for folder in folders:
        (folder / "images").mkdir(parents=True)
        for seed in range(4):
            Image.effect_noise((400, 300 + seed), 50).save(tmp_path / f"{seed}.png") if folder is folders[0] else None
            (folder / "images" / f"{seed}.png").write_bytes((tmp_path / f"{seed}.png").read_bytes())
        torch.save({"model": tiny_weights}, folder / "model.pth")
        make_tiny_config().to_json_file(folder / "config.json")
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_killed_command_leaves_whole_files_only(command: list[str], folders: list[Path]) -> None:
    undisturbed, disturbed = folders
    start = time.monotonic()
    subprocess.run(command, cwd=undisturbed, check=True, env=os.environ | {"HF_HOME": str(undisturbed)})
    duration, expected = time.monotonic() - start, results(undisturbed)
    for moment in random.Random(0).sample(range(100), KILLS):
        process = subprocess.Popen(command, cwd=disturbed, env=os.environ | {"HF_HOME": str(disturbed)})
        time.sleep(duration * (0.4 + 0.006 * moment))  # the rest of the time it imports libraries
        process.kill()
        process.wait()
        assert results(disturbed).items() <= expected.items()
    subprocess.run(command, cwd=disturbed, check=True, env=os.environ | {"HF_HOME": str(disturbed)})
    assert results(disturbed) == expected
