"""Killed at any moment, a command leaves no half file under a final name; its next run ends as an undisturbed one."""

import os
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
from PIL import Image
from raw_copies import write_ade20k_150
from torch import Tensor

from sed_hf.hub.load import TOY_MODEL

SED_HF = "-c 'from sed_hf.cli import main; raise SystemExit(main())'"
SCRIPTS = Path(__file__).parents[1] / "scripts"
TRAINING = "--images_per_step 2 --crop_size 64 --num_workers 0 --log_every 1 --checkpoint_every 1 --classes_per_step 10"
COMMANDS = {
    "segment": f"{SED_HF} segment images --classes sky water gravel --output out",
    "convert": f"{SED_HF} convert model.pth out/model --config config.json --overwrite",
    "prepare": f"{SCRIPTS}/prepare_dataset.py ade20k_150 --data-dir raw --output out",
    "evaluate": f"{SCRIPTS}/evaluate.py --model {TOY_MODEL} --benchmarks ade20k_150 --data-dir raw --output out",
    "train": f"{SCRIPTS}/train.py --dataset scenes --model {TOY_MODEL} --output_dir out --resume --steps 8 {TRAINING}",
}
UNFINISHED = re.compile(r"\.part/|/progress|\.progress|/checkpoints/|/log|/tensorboard|/events")


def results(folder: Path) -> dict[str, bytes]:
    """The content of all files but those of unfinished results."""
    paths = [path for path in (folder / "out").rglob("*") if path.is_file() and not UNFINISHED.search(str(path))]
    # The keys of a safetensors file's metadata are in any order.
    read = {".safetensors": lambda content: b"".join(sorted(content.split(b'"')))}
    return {str(path.relative_to(folder)): read.get(path.suffix, bytes)(path.read_bytes()) for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_killed_command_leaves_whole_files_only(
    arguments: str, tmp_path: Path, tiny_weights: dict[str, Tensor]
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    (undisturbed / "images").mkdir(parents=True)
    for seed in range(4):
        Image.effect_noise((400, 300 + seed), 50).save(undisturbed / "images" / f"{seed}.png")
    torch.save({"model": tiny_weights}, undisturbed / "model.pth")
    make_tiny_config().to_json_file(undisturbed / "config.json")
    write_ade20k_150(undisturbed / "raw", {f"ADE_val_0000000{index}": np.ones((300, 400)) for index in range(1, 5)})
    shutil.copytree(undisturbed, disturbed)
    command, start = [sys.executable, *shlex.split(arguments)], time.monotonic()
    subprocess.run(command, cwd=undisturbed, check=True, env=os.environ | {"HF_HOME": str(undisturbed)})
    duration, expected = time.monotonic() - start, results(undisturbed)
    for moment in random.Random(0).sample(range(100), 4):
        process = subprocess.Popen(command, cwd=disturbed, env=os.environ | {"HF_HOME": str(disturbed)})
        time.sleep(duration * (0.4 + 0.006 * moment))  # before, it imports libraries
        process.kill()
        process.wait()
        assert results(disturbed).items() <= expected.items()
    subprocess.run(command, cwd=disturbed, check=True, env=os.environ | {"HF_HOME": str(disturbed)})
    assert results(disturbed) == expected
