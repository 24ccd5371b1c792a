"""Training of the towers by themselves, against plain formulations."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.training.alignment import TowerAlignment, alignment_loss, cell_shares


def test_cell_shares_are_average_pooled_one_hot_labels_where_they_are_not_ignored() -> None:
    labels = torch.randint(0, 6, (2, 64, 96), generator=torch.Generator().manual_seed(0))
    expected = F.avg_pool2d(F.one_hot(labels, 6).permute(0, 3, 1, 2).float(), 32)[:, :5]
    torch.testing.assert_close(cell_shares(labels.masked_fill(labels == 5, 255), 5), expected)


def test_loss_is_the_mean_over_classes_of_their_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 2, 3, 3, generator=generator)  # one image, 4 classes, 2 templates, 3 x 3 cells
    labels = torch.tensor([[0, 0, 1], [0, 2, 1], [0, 0, 0]])
    shares = F.one_hot(labels, 4).permute(2, 0, 1)[None].float()
    losses = [
        F.cross_entropy(logits[0, :, template][:, labels == index].T, labels[labels == index])
        for index in range(3)
        for template in range(2)
    ]
    torch.testing.assert_close(alignment_loss(logits, shares), torch.stack(losses).mean())


def alignment_loss_of(model: SEDForSemanticSegmentation, processor: SEDProcessor, labels: torch.Tensor) -> torch.Tensor:
    tokens = processor(text=["cat", "grass"], return_tensors="pt")
    pixel_values = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return TowerAlignment(model)(pixel_values, labels, tokens["input_ids"], tokens["class_ids"]).loss


def test_an_ignored_label_is_not_a_class(make_tiny_model: Callable, tiny_processor: SEDProcessor) -> None:
    model = make_tiny_model()
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[:, :32] = 255
    expected = alignment_loss_of(model, tiny_processor, labels)
    model.config.ignore_index = 1
    torch.testing.assert_close(alignment_loss_of(model, tiny_processor, labels.where(labels == 0, 1)), expected)


def test_gradients_reach_both_towers_and_temperature(make_tiny_model: Callable, tiny_processor: SEDProcessor) -> None:
    model = make_tiny_model(freeze_text_encoder=False).train()
    model.logit_scale.requires_grad_()
    alignment_loss_of(model, tiny_processor, torch.zeros(1, 64, 64, dtype=torch.long)).backward()
    trained = {name.split(".")[1] for name, value in model.named_parameters() if value.grad is not None}
    assert trained == {"image_encoder", "text_encoder", "logit_scale"}
