"""Training on two processes, each with the whole model or with a shard of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import run_on_two_processes
from small_runs import assert_weights_equal, losses_of, reset_accelerate, small_recipe, write_start_model

from sed_hf.hub.load import TOY_MODEL
from sed_hf.training.loop import train
from sed_hf.training.recipe import Recipe

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).parents[2] / "configs" / "accelerate" / "fsdp.yaml"

# Runs a recipe, killed at a forward pass or not at all, and writes what the drop paths of a process have dropped.
PROCESS = """
import json, os, sys
from pathlib import Path
from torch.nn.modules.module import register_module_forward_hook
from sed_hf import SEDForSemanticSegmentation
from sed_hf.training.loop import train
from sed_hf.training.recipe import Recipe

settings, killed_at = json.loads(sys.argv[1]), int(sys.argv[2])
dropped, forward_passes = [], []

def note(module, arguments, output):
    if type(module).__name__ == "DropPath" and module.training:
        dropped.append((output.flatten(1) == 0).all(1).tolist())
    if isinstance(module, SEDForSemanticSegmentation):
        forward_passes.append(1)
        if len(forward_passes) == killed_at:
            os._exit(9)

register_module_forward_hook(note)
train(Recipe(**settings))
Path(settings["output_dir"], f"dropped-{os.environ['RANK']}.json").write_text(json.dumps(dropped))
"""


def train_on_two(recipe: Recipe, killed_at: int = 0) -> str:
    """Run a recipe, and return what the processes print."""
    return run_on_two_processes(PROCESS, json.dumps(vars(recipe)), str(killed_at), is_killed=killed_at > 0)


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
    train_on_two(two)
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-5)
    assert_weights_equal(tmp_path / "two" / "model", tmp_path / "one" / "model", tolerance=1e-9)


def test_two_processes_drop_different_blocks_and_continue_bit_for_bit(tmp_path: Path) -> None:
    start = write_start_model(tmp_path / "start")
    expected, interrupted = (small_recipe(tmp_path / name, start) for name in ("expected", "interrupted"))
    printed = train_on_two(expected)
    assert "Grad strides do not match" not in printed
    dropped = [json.loads((tmp_path / "expected" / f"dropped-{rank}.json").read_text()) for rank in range(2)]
    assert len(dropped[0]) == len(dropped[1]) == 5 * 3  # in each step, in the blocks after the first
    assert dropped[0] != dropped[1]

    train_on_two(interrupted, killed_at=4)
    interrupted.resume = True
    assert "continuing after step 2" in train_on_two(interrupted)
    assert losses_of(interrupted) == losses_of(expected)
    assert_weights_equal(tmp_path / "interrupted" / "model", tmp_path / "expected" / "model")


# Shards as configs/accelerate/fsdp.yaml says: accelerate only does so on GPUs, torch anywhere.
SHARDING_PROCESS = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.data.scenes import SceneDataset
from sed_hf.evaluation import evaluate_benchmark

folder, sharded_classes = sys.argv[1], sys.argv[2].split(",")
torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
generator = torch.Generator().manual_seed(0)
pixel_values = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
class_embeddings = torch.nn.functional.normalize(torch.randn(6, 4, 128, generator=generator).double(), dim=-1)
labels = torch.randint(0, 6, (2, 64, 64), generator=generator)

def load():
    model = SEDForSemanticSegmentation.from_pretrained(folder, dtype=torch.float64).train()
    model.text_encoder.requires_grad_(False)
    model.gradient_checkpointing_enable()
    return model

whole, sharded = load(), load()
whole(pixel_values, class_embeddings=class_embeddings, labels=labels).loss.backward()
for module in list(sharded.modules()):
    if type(module).__name__ in sharded_classes:
        fully_shard(module, mesh=mesh)
fully_shard(sharded, mesh=mesh)
register_fsdp_forward_method(sharded, "get_class_embeddings")
scenes, processor = SceneDataset("test", 3, size=64), SEDProcessor.from_pretrained(folder)
figures = [evaluate_benchmark(model, processor, scenes, num_workers=0) for model in (whole, sharded)]
assert figures[0] == figures[1] and sharded.training  # also, training can use the shards afterwards
own = slice(rank, rank + 1)
sharded(pixel_values[own], class_embeddings=class_embeddings, labels=labels[own]).loss.backward()
expected = {name: parameter.grad for name, parameter in whole.named_parameters() if parameter.grad is not None}
for name, parameter in sharded.named_parameters():
    if name in expected:
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name], rtol=1e-6, atol=1e-12)
dist.destroy_process_group()
"""


def test_two_shards_have_the_gradients_of_the_whole_batch() -> None:
    sharded_classes = yaml.safe_load(CONFIG.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    run_on_two_processes(SHARDING_PROCESS, str(TOY_MODEL), sharded_classes)
