"""Compiled models equal eager ones, at any sequence of sizes and numbers of classes."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from decoder_inputs import random_inputs, seeded
from torch._dynamo.testing import CompileCounter

SIZES = [(3, 64, 64), (5, 96, 128), (2, 128, 64), (7, 64, 64)]  # classes, height, width


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    torch.compiler.reset()


def inputs(classes: int, height: int, width: int) -> dict[str, Any]:
    return {"pixel_values": seeded(1, 3, height, width), "class_embeddings": random_inputs(classes)["class_embeddings"]}


@pytest.mark.slow
@pytest.mark.parametrize("topk", [0, 1])
@pytest.mark.parametrize("with_decoder", [False, True], ids=["encoder", "encoder and decoder"])
@torch.no_grad()
def test_the_model_compiles_at_any_sequence_of_sizes(make_tiny_model: Callable, topk: int, with_decoder: bool) -> None:
    model, eager = make_tiny_model(class_chunk_size=2), make_tiny_model(class_chunk_size=2)
    if with_decoder:
        model.compile_decoder(backend="aot_eager", fullgraph=True)
    compiled = torch.compile(model, backend="aot_eager")
    for size in SIZES:
        ours, expected = (each(**inputs(*size), early_rejection_topk=topk).logits for each in (compiled, eager))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert list(model.state_dict()) == list(eager.state_dict())


@torch.no_grad()
def test_held_classes_of_another_number_are_not_compiled_anew(make_tiny_model: Callable) -> None:
    model, counter = make_tiny_model(), CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for number in range(2, 6):
        model.set_classes(random_inputs(number)["class_embeddings"])
        compiled(seeded(1, 3, 64, 64))
        if number == 3:
            num_graphs = counter.frame_count  # of one number, and of any
    assert counter.frame_count == num_graphs


@pytest.mark.slow
def test_a_compiled_training_step_has_the_gradients_of_an_eager_one(make_tiny_model: Callable) -> None:
    models = [make_tiny_model().double().train() for _ in range(2)]
    calls = [models[0], torch.compile(models[1], backend="aot_eager")]
    for classes, height, width in SIZES[:2]:
        batch = {name: value.double() for name, value in inputs(classes, height, width).items()}
        labels = torch.arange(height * width).reshape(1, height, width) % classes
        for model, call in zip(models, calls, strict=True):
            model.zero_grad()
            call(**batch, labels=labels).loss.backward()
        for ours, expected in pairwise(dict(model.named_parameters()) for model in reversed(models)):
            for name, parameter in expected.items():
                if parameter.grad is not None:
                    torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-9, atol=1e-12, msg=name)
