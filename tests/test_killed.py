"""Killed at any moment, a command leaves no half file under a final name; its next run ends as an undisturbed one."""

import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_config
from raw_copies import write_ade20k_150

ROOT = Path(__file__).parents[1]
SED_HF = "-c 'from sed_hf.cli import main; raise SystemExit(main())'"
TRAINING = "--images_per_step 2 --crop_size 64 --num_workers 0 --checkpoint_every 1 --classes_per_step 10 --steps 30"
COMMANDS = {
    "segment": f"{SED_HF} segment {ROOT}/examples --classes sky water gravel --output out",
    "convert": f"{SED_HF} convert model.pth out/model --config config.json --overwrite",
    "prepare": f"{ROOT}/scripts/prepare_dataset.py ade20k_150 --data-dir raw --output out",
    "evaluate": f"{ROOT}/scripts/evaluate.py --model toy --benchmarks ade20k_150 --data-dir raw --output out",
    "train": f"{ROOT}/scripts/train.py --dataset scenes --model toy --output_dir out --resume {TRAINING}",
}
# What is not finished, and what tells of times: logs, and the card of a trained model.
OTHERS = re.compile(r"\.part/|\.progress|/checkpoints/|/log|/train/|/model/README")


def results(folder: Path) -> dict[str, bytes]:
    """The content of all files that are results."""
    paths = [path for path in (folder / "out").rglob("*") if path.is_file() and not OTHERS.search(str(path))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_leaves_whole_files_only(command: str, tmp_path: Path, tiny_weights: dict) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    write_ade20k_150(undisturbed / "raw", {f"ADE_val_0000000{index}": np.ones((300, 400)) for index in range(1, 5)})
    torch.save({"model": tiny_weights}, undisturbed / "model.pth")
    make_tiny_config().to_json_file(undisturbed / "config.json")
    shutil.copytree(undisturbed, disturbed)

    def start(folder: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, *shlex.split(COMMANDS[command])], cwd=folder)

    began = time.monotonic()
    assert start(undisturbed).wait() == 0
    duration, expected = time.monotonic() - began, results(undisturbed)
    for moment in random.Random(0).sample(range(100), 4):
        process = start(disturbed)
        time.sleep(duration * (0.4 + 0.006 * moment))  # before, it imports libraries
        process.kill()
        process.wait()
        assert results(disturbed).items() <= expected.items()
    assert start(disturbed).wait() == 0
    assert results(disturbed) == expected
