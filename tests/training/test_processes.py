"""Training on two processes, and killed ones."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import assert_weights_equal, command_line, losses_of, reset_accelerate, small_recipe, write_start_model

from sed_hf import SEDForSemanticSegmentation
from sed_hf.training.loop import train
from sed_hf.training.recipe import Recipe

pytestmark = pytest.mark.slow

TRAIN_SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "true",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
}

# Runs recipes one after the other, and writes which images' drop paths each process has dropped.
PROCESS = """
import json, os
from pathlib import Path
import torch
from small_runs import reset_accelerate
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from sed_hf import SEDForSemanticSegmentation
from sed_hf.training.loop import train
from sed_hf.training.recipe import Recipe

dropped, calls = [], []

def note_drops(module, arguments, output):
    if type(module).__name__ == "DropPath" and module.training:
        dropped.append((output.flatten(1) == 0).all(1).tolist())

def interrupt(module, arguments):
    if isinstance(module, SEDForSemanticSegmentation):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

register_module_forward_hook(note_drops)
for settings in json.loads(Path(__file__).with_suffix(".json").read_text()):
    is_interrupted = settings.pop("is_interrupted")
    handle = register_module_forward_pre_hook(interrupt) if is_interrupted else None
    dropped.clear()
    try:
        train(Recipe(**settings))
    except KeyboardInterrupt:
        torch.distributed.destroy_process_group()
    if handle:
        handle.remove()
    reset_accelerate()
    Path(settings["output_dir"], f"dropped-{os.environ['RANK']}.json").write_text(json.dumps(dropped))
"""


def run_on_two_processes(*recipes: Recipe, interrupted: Sequence[Recipe] = ()) -> str:
    """Run recipes, some of which are interrupted in their fourth step, and return what the processes print."""
    settings = [{**vars(recipe), "is_interrupted": recipe in interrupted} for recipe in recipes]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29571"]
    script = Path(recipes[0].output_dir).with_suffix(".py")
    script.write_text(PROCESS)
    script.with_suffix(".json").write_text(json.dumps(settings))
    process = subprocess.run(
        [sys.executable, *launcher, str(script)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout + process.stderr


def run(recipe: Recipe) -> None:
    try:
        train(recipe)
    finally:
        reset_accelerate()


def drops_of(recipe: Recipe, rank: int) -> Any:
    return json.loads((Path(recipe.output_dir) / f"dropped-{rank}.json").read_text())


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    start = write_start_model(tmp_path / "start", drops=False)
    cases: dict[str, dict[str, Any]] = {
        "all-classes": {"classes_per_step": None},
        "some-classes": {"classes_per_step": 10},
        "any-number": {"classes_per_step": 40, "min_classes_per_step": 4, "gradient_accumulation_steps": 2},
        "alignment": {"objective": "alignment"},
    }
    ones = [small_recipe(tmp_path / f"{name}-1", start, images_per_step=4, **case) for name, case in cases.items()]
    twos = [small_recipe(tmp_path / f"{name}-2", start, images_per_step=4, **case) for name, case in cases.items()]
    for recipe in ones:
        run(recipe)
    output = run_on_two_processes(*twos)
    for one, two in zip(ones, twos, strict=True):
        assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-5), two.output_dir
        assert_weights_equal(two, one, tolerance=1e-9)
    assert "strides" not in output


def test_two_processes_drop_different_blocks_and_continue_bit_for_bit(tmp_path: Path) -> None:
    start = write_start_model(tmp_path / "start")
    expected, interrupted = (small_recipe(tmp_path / name, start) for name in ("expected", "interrupted"))
    run_on_two_processes(expected, interrupted, interrupted=[interrupted])
    first, second = drops_of(expected, 0), drops_of(expected, 1)
    assert len(first) == len(second) == 5 * 3  # blocks after the first one, in each step
    assert first != second

    interrupted.resume = True
    run_on_two_processes(interrupted)
    assert losses_of(interrupted) == losses_of(expected)
    assert_weights_equal(interrupted, expected)


def test_killed_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    start = write_start_model(tmp_path / "start")
    expected, killed = (small_recipe(tmp_path / name, start, steps=12) for name in ("expected", "killed"))
    killed.resume = True

    def launch(recipe: Recipe) -> subprocess.Popen:
        command = [sys.executable, str(TRAIN_SCRIPT), *command_line(recipe)]
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert launch(expected).wait() == 0
    moments = random.Random(0)
    checkpoints = Path(killed.output_dir) / "checkpoints"
    for _ in range(4):
        process, before = launch(killed), len(list(checkpoints.glob("step-*")))
        while process.poll() is None and len(list(checkpoints.glob("step-*"))) <= before and before < 2:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for folder in checkpoints.glob("step-*"):
            assert (folder / "model.safetensors").is_file()
            assert (folder / "custom_checkpoint_1.pkl").is_file()
        if (Path(killed.output_dir) / "model").exists():
            SEDForSemanticSegmentation.from_pretrained(Path(killed.output_dir) / "model")
    assert launch(killed).wait() == 0
    assert_weights_equal(killed, expected)
    assert losses_of(killed) == losses_of(expected)
