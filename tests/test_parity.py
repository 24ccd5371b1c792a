"""Equality with the official implementation, stage by stage.

The numbers in tests/reference were measured from the official code on weights drawn from a seed. What an equal
implementation gives in float32 on a CPU: equal token ids; pixel values within 0.02 and 99 % of them within 1e-4; class
embeddings, features and cost map within 1e-5; logits within 1e-4; probabilities within 2e-5; segmentation equal except
at ties; losses within 1e-5 relative; gradient norms within 1e-3 relative.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TINY, Reference, assert_gradients_equal_the_reference, official_weights, reference_batch
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation as Model
from sed_hf import SEDProcessor
from sed_hf import SEDSemanticSegmentationOutput as Outputs
from sed_hf.conversion import build_processor, convert_official_checkpoint

FEATURES, LOGITS, PROBABILITIES = 1e-5, 1e-4, 2e-5


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}")


def assert_steps_equal(outputs: Outputs, reference: Reference, pooling_size: int = 1, locations: Any = ...) -> None:
    """All that dense inference computes, at the locations of which the reference has numbers."""
    for index, features in enumerate(outputs.encoder_hidden_states):
        assert_close(features[locations], reference[f"res{index + 2}"], FEATURES, f"res{index + 2}")
    cost_embedding = outputs.decoder_hidden_states[0].transpose(1, 2)
    assert_close(outputs.dense_embeddings[locations], reference["dense_embeddings"], FEATURES, "dense embeddings")
    assert_close(outputs.cost_map.transpose(1, 2)[locations], reference["cost_map"], FEATURES, "cost map")
    assert_close(cost_embedding[locations], reference["cost_embedding"], FEATURES, "cost embedding")
    for index, logits in enumerate(outputs.aux_logits):
        name = f"pool{pooling_size}.aux_logits_{index}"
        assert_close(logits[locations], reference[name], LOGITS, name)
    assert_close(outputs.logits[locations], reference[f"pool{pooling_size}.logits"], LOGITS, "logits")


def assert_equal_except_at_ties(segmentation: Tensor, expected: Tensor, probabilities: Tensor) -> None:
    """Where the segmentation differs, both classes must be equally probable in the reference."""
    expected = expected.long()
    ours, theirs = (probabilities.gather(0, labels[None])[0] for labels in (segmentation, expected))
    assert_close(ours[segmentation != expected], theirs[segmentation != expected], 2 * PROBABILITIES)
    assert (segmentation != expected).float().mean() < 1e-3


def assert_pixel_values_agree(actual: Tensor, expected: Tensor) -> None:
    difference = (actual - expected).abs()
    assert difference.max() <= 0.02
    assert (difference <= 1e-4).float().mean() >= 0.99


def test_pixel_values_equal_the_reference(tiny_processor: SEDProcessor) -> None:
    image = TINY["image"].numpy()
    assert_pixel_values_agree(tiny_processor(images=image)["pixel_values"], TINY["pixel_values"])
    resized = tiny_processor(images=image, do_input_resize=False)["pixel_values"]
    assert list(resized.shape[1:]) == TINY["resized_shape"].tolist()


def test_class_embeddings_equal_the_reference(tiny_model: Model, tiny_processor: SEDProcessor) -> None:
    with torch.no_grad():
        embeddings = tiny_model.get_class_embeddings(**tiny_processor(text=TINY.facts["classes"], return_tensors="pt"))
    assert_close(embeddings, TINY["class_embeddings"], FEATURES)


@pytest.mark.parametrize("pooling_size", [1, 2])
def test_every_step_of_dense_inference_equals_the_reference(
    make_tiny_model: Callable, tiny_processor: SEDProcessor, pooling_size: int
) -> None:
    model = make_tiny_model(inference_pooling_size=pooling_size)
    with torch.no_grad():
        outputs = model(TINY["pixel_values"], class_embeddings=TINY["class_embeddings"], output_hidden_states=True)
    assert_steps_equal(outputs, TINY, pooling_size)
    (result,) = tiny_processor.post_process_semantic_segmentation(
        outputs, target_sizes=[TINY["image"].shape[:2]], return_probabilities=True
    )
    probabilities = TINY[f"pool{pooling_size}.probabilities"]
    assert_close(result["probability"], probabilities.amax(0), PROBABILITIES)
    assert_equal_except_at_ties(result["segmentation"], TINY[f"pool{pooling_size}.segmentation"], probabilities)


@pytest.mark.parametrize("topk", [1, 2])
def test_early_rejection_equals_the_reference(tiny_model: Model, tiny_processor: SEDProcessor, topk: int) -> None:
    with torch.no_grad():
        outputs = tiny_model(TINY["pixel_values"], class_embeddings=TINY["class_embeddings"], early_rejection_topk=topk)
    assert torch.equal(outputs.kept_classes[0, -1], TINY[f"top{topk}.kept"])
    assert_close(outputs.all_logits().sigmoid(), TINY[f"top{topk}.probabilities_lowres"], PROBABILITIES)
    segmentation = tiny_processor.post_process_semantic_segmentation(outputs, target_sizes=[TINY["image"].shape[:2]])[0]
    assert_equal_except_at_ties(segmentation, TINY[f"top{topk}.segmentation"], TINY[f"top{topk}.probabilities"])


@pytest.mark.parametrize("topk", [None, 1, 2, 4])
def test_sixty_classes_equal_the_reference(tiny_model: Model, topk: int | None) -> None:
    reference = Reference("tiny_60_classes")
    classes = reference["class_embeddings"]
    with torch.no_grad():
        outputs = tiny_model(reference["pixel_values"], class_embeddings=classes, early_rejection_topk=topk)
    if topk is None:
        assert_close(outputs.logits, reference["logits"], LOGITS)
    else:
        assert torch.equal(outputs.kept_classes[0, -1], reference[f"top{topk}.kept"])
        assert_close(outputs.all_logits().sigmoid(), reference[f"top{topk}.probabilities_lowres"], PROBABILITIES)
        assert torch.equal(outputs.kept_classes[0].sum(1), reference[f"top{topk}.kept_per_stage"])


def test_losses_and_gradient_norms_equal_the_reference(make_tiny_model: Callable, tiny_processor: SEDProcessor) -> None:
    model = make_tiny_model().train()
    outputs = model(**reference_batch(tiny_processor), class_embeddings=TINY["class_embeddings"])
    outputs.loss.backward()
    for index, loss in enumerate(outputs.losses):
        torch.testing.assert_close(loss, TINY[f"train.loss_sem_seg_{index}"], rtol=1e-5, atol=0)
    assert_gradients_equal_the_reference(model)


@pytest.mark.slow
@torch.no_grad()
def test_sed_b_equals_the_reference_at_full_size() -> None:
    base = Reference("convnext_base")
    base_model = convert_official_checkpoint(official_weights("convnext_base", seed=1))
    base_processor = build_processor(base_model.config)
    every = (..., slice(None, None, base.facts["stride"]), slice(None, None, base.facts["stride"]))
    image, names = base["image"].numpy(), base.facts["classes"]
    inputs = base_processor(image, names, padding="max_length", return_tensors="pt")
    outputs = base_model(**inputs, output_hidden_states=True)

    assert torch.equal(inputs["input_ids"][:, 0], base["input_ids_first_template"])
    assert_pixel_values_agree(inputs["pixel_values"][every], base["pixel_values"])
    assert_close(outputs.class_embeddings[..., ::4], base["class_embeddings"], FEATURES)
    assert_steps_equal(outputs, base, locations=every)

    rejected = base_model(inputs["pixel_values"], class_embeddings=outputs.class_embeddings, early_rejection_topk=1)
    assert torch.equal(rejected.kept_classes[0, -1], base["top1.kept"])
    assert_close(rejected.all_logits().sigmoid()[every], base["top1.probabilities_lowres"], PROBABILITIES)

    for name, result in (("pool1", outputs), ("top1", rejected)):
        segmentation = base_processor.post_process_semantic_segmentation(result, target_sizes=[image.shape[:2]])[0]
        disagreement = segmentation[::2, ::2] != base[f"{name}.segmentation"].long()
        assert disagreement.float().mean() < 1e-3


@pytest.mark.slow
def test_sed_l_is_recognised_by_its_weights() -> None:  # which `test_official.py` runs
    model = convert_official_checkpoint(official_weights("convnext_large", seed=0))
    assert model.config.vision_config.architecture == "convnext_large"
