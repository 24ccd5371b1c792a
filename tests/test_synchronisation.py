"""Nothing waits for what a GPU computes, but where it is asked for."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_inputs import decode, random_inputs, seeded
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training.small_runs import reset_accelerate, small_recipe, write_start_model

from sed_hf import SEDForSemanticSegmentation as Model
from sed_hf import SEDProcessor
from sed_hf.chunking_sed import Chunks
from sed_hf.training.loop import TrainingRun

WAITING = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select"}
BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}


@contextmanager
def synchronisations() -> Iterator[Counter[str]]:
    """Counts what would make a GPU's host wait for a number, by name."""
    counts: Counter[str] = Counter()

    class Operations(TorchDispatchMode):  # `item`, `nonzero`, `unique`, boolean indexing and the like
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func._schema.name.removeprefix("aten::")
            masks = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
            if name in WAITING or (name in BY_INDEX and masks):
                counts[name] += 1
            return func(*args, **(kwargs or {}))

    class Lists(TorchFunctionMode):  # `tolist` and `numpy`, which are not operations
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (Tensor.tolist, Tensor.numpy):
                counts[func.__name__] += 1
            return func(*args, **(kwargs or {}))

    with Operations(), Lists():
        yield counts


@torch.no_grad()
def test_inference_waits_for_nothing_and_post_processing_once(tiny_model: Model, tiny_processor: SEDProcessor) -> None:
    inputs = {"pixel_values": seeded(2, 3, 64, 64), "class_embeddings": random_inputs(5)["class_embeddings"]}
    with synchronisations() as counts:
        outputs = tiny_model(**inputs)
    assert not counts
    with synchronisations() as counts:
        tiny_processor.post_process_semantic_segmentation(outputs, target_sizes=[(50, 70), (64, 64)], threshold=0.5)
    assert counts == {"nonzero": 1}  # whether all logits are finite


@pytest.mark.parametrize("part_bytes", [2**16, 2**25])
@torch.no_grad()
def test_early_rejection_waits_once_a_stage(make_tiny_model: Callable, part_bytes: int) -> None:
    decoder = make_tiny_model().decoder
    decoder.chunks = Chunks(num_classes=3, part_bytes=part_bytes)
    with synchronisations() as counts:
        outputs = decode(decoder, **random_inputs(20), early_rejection_topk=1)
    assert outputs.logits.shape[1] < 20
    assert counts == {"tolist": len(decoder.stages)}


def test_a_training_step_waits_for_nothing_between_log_lines(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(reset_accelerate)
    start = write_start_model(tmp_path / "start")
    run = TrainingRun(small_recipe(tmp_path / "run", start, classes_per_step=None, num_workers=1, log_every=3))
    run.train_step(0)
    with synchronisations() as counts:
        run.train_step(1)
    # Whether the labels are classes, which lie on the CPU here; on a GPU an assertion there takes the place.
    assert counts == {"_local_scalar_dense": 1}
