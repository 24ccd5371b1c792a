"""Sharding the parameters as configs/accelerate/fsdp.yaml says: accelerate only does so on GPUs, torch anywhere."""

from pathlib import Path

import pytest
import yaml
from conftest import run_on_two_processes

from sed_hf.hub.load import TOY_MODEL

CONFIG = Path(__file__).parents[2] / "configs" / "accelerate" / "fsdp.yaml"

PROCESS = """
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


@pytest.mark.slow
def test_two_shards_have_the_gradients_of_the_whole_batch() -> None:
    sharded_classes = yaml.safe_load(CONFIG.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    run_on_two_processes(PROCESS, str(TOY_MODEL), sharded_classes)
