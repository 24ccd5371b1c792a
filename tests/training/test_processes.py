"""Training on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import assert_weights_equal, losses_of, reset_accelerate, small_recipe, write_start_model

from sed_hf.training.loop import train
from sed_hf.training.recipe import Recipe

pytestmark = pytest.mark.slow

TRAIN_SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}

# Runs a recipe, interrupted at a forward pass or not at all, and writes what the drop paths of a process have dropped.
PROCESS = """
import json, os, sys
from pathlib import Path
from torch.nn.modules.module import register_module_forward_hook
from sed_hf import SEDForSemanticSegmentation
from sed_hf.training.loop import train
from sed_hf.training.recipe import Recipe

settings, interrupted_at = json.loads(sys.argv[1]), int(sys.argv[2])
dropped, forward_passes = [], []

def note(module, arguments, output):
    if type(module).__name__ == "DropPath" and module.training:
        dropped.append((output.flatten(1) == 0).all(1).tolist())
    if isinstance(module, SEDForSemanticSegmentation):
        forward_passes.append(1)
        if len(forward_passes) == interrupted_at:
            os._exit(9)

register_module_forward_hook(note)
train(Recipe(**settings))
Path(settings["output_dir"], f"dropped-{os.environ['RANK']}.json").write_text(json.dumps(dropped))
"""


def run_on_two_processes(recipe: Recipe, interrupted_at: int = 0) -> str:
    """Run a recipe, and return what the processes print."""
    script = Path(recipe.output_dir).with_suffix(".py")
    script.write_text(PROCESS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29571"]
    command = [*launcher, str(script), json.dumps(vars(recipe)), str(interrupted_at)]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    assert (process.returncode != 0) == bool(interrupted_at), process.stderr
    return process.stdout + process.stderr


@pytest.mark.parametrize(
    "values",
    [
        {"classes_per_step": None},
        {"classes_per_step": 10},
        {"classes_per_step": 40, "min_classes_per_step": 4, "gradient_accumulation_steps": 2},
        {"objective": "alignment"},
    ],
    ids=["all classes", "some classes", "any number of classes", "alignment"],
)
def test_two_processes_equal_one_with_twice_the_batch(values: dict[str, Any], tmp_path: Path) -> None:
    start = write_start_model(tmp_path / "start", drops=False)
    one, two = (small_recipe(tmp_path / name, start, images_per_step=4, **values) for name in ("one", "two"))
    train(one)
    reset_accelerate()
    run_on_two_processes(two)
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-5)
    assert_weights_equal(two, one, tolerance=1e-9)


def test_two_processes_drop_different_blocks_and_continue_bit_for_bit(tmp_path: Path) -> None:
    start = write_start_model(tmp_path / "start")
    expected, interrupted = (small_recipe(tmp_path / name, start) for name in ("expected", "interrupted"))
    printed = run_on_two_processes(expected)
    assert "Grad strides do not match" not in printed
    dropped = [json.loads((tmp_path / "expected" / f"dropped-{rank}.json").read_text()) for rank in range(2)]
    assert len(dropped[0]) == len(dropped[1]) == 5 * 3  # in each step, in the blocks after the first
    assert dropped[0] != dropped[1]

    run_on_two_processes(interrupted, interrupted_at=4)
    interrupted.resume = True
    assert "continuing after step 2" in run_on_two_processes(interrupted)
    assert losses_of(interrupted) == losses_of(expected)
    assert_weights_equal(interrupted, expected)
