"""The whole model: any images, classes, resolution and labels."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_models import ENCODER_HIDDEN_SIZES, TEMPLATES, small_model
from strategies import normal, seeds
from torch import Tensor

from sed_hf.loss_sed import segmentation_loss

LOGITS = 1e-4
LOSS = 1e-5

edges = st.integers(1, 3).map(lambda count: 32 * count)


def images_of(batch_size: int, height: int, width: int, seed: int) -> Tensor:
    return normal(batch_size, 3, height, width, seed=seed)


def classes_of(num_classes: int, seed: int) -> Tensor:
    return F.normalize(normal(num_classes, len(TEMPLATES), 16, seed=seed), dim=-1)


images = st.builds(images_of, st.integers(1, 3), edges, edges, seeds)
classes = st.builds(classes_of, st.integers(1, 8), seeds)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = LOGITS) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


class TestForward:
    @given(images, classes, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.booleans())
    @torch.no_grad()
    def test_shapes_and_dtypes_are_those_of_the_documentation(
        self, pixel_values: Tensor, classes: Tensor, dtype: torch.dtype, is_cast: bool
    ) -> None:
        batch_size, _, height, width = pixel_values.shape
        pixel_values = pixel_values.to(dtype) if is_cast else pixel_values
        output = small_model(dtype)(pixel_values, class_embeddings=classes, output_hidden_states=True)
        num_classes, num_templates, dim = classes.shape
        assert output.logits.dtype == output.cost_map.dtype == dtype
        assert output.logits.shape == (batch_size, num_classes, height // 4, width // 4)
        assert output.cost_map.shape == (batch_size, num_classes, num_templates, height // 32, width // 32)
        assert output.dense_embeddings.shape == (batch_size, dim, height // 32, width // 32)
        assert [features.shape for features in output.encoder_hidden_states] == [
            (batch_size, channels, height // stride, width // stride)
            for channels, stride in zip(ENCODER_HIDDEN_SIZES, (4, 8, 16, 32), strict=True)
        ]
        assert [logits.shape[2:] for logits in output.aux_logits] == [
            (height // stride, width // stride) for stride in (32, 16, 8)
        ]
        assert output.logits.isfinite().all()


@st.composite
def logits_and_labels(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits (B, T, h, w), and labels (B, H, W) of any size, some of them ignored."""
    batch_size, num_classes = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    seed, size = draw(seeds), [draw(st.integers(1, 12)) for _ in range(4)]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, num_classes, (batch_size, *size[2:]), generator=generator)
    return normal(batch_size, num_classes, *size[:2], seed=seed), labels.where(labels >= 0, 255)


class TestLoss:
    def plain(self, logits: Tensor, labels: Tensor, ignored_as_negative: bool) -> Tensor:
        """The formula with a one-hot target."""
        resized = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
        counted = (labels != 255)[:, None].expand_as(resized)
        target = F.one_hot(labels.where(labels != 255, 0), logits.shape[1]).permute(0, 3, 1, 2) * counted
        losses = F.binary_cross_entropy_with_logits(resized, target.to(logits.dtype), reduction="none")
        if ignored_as_negative:
            return losses.mean()
        return losses[counted].mean() if counted.any() else losses.sum() * 0

    @given(logits_and_labels(), st.booleans(), st.integers(0, 16).map(lambda power: 2**power))
    def test_value_and_gradient_equal_the_plain_formula_in_any_chunks(
        self, case: tuple[Tensor, Tensor], ignored_as_negative: bool, max_bytes: int
    ) -> None:
        logits, labels = case
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss = segmentation_loss(ours, labels, 255, ignored_as_negative, max_bytes)
        expected = self.plain(theirs, labels, ignored_as_negative)
        (3 * loss).backward()
        (3 * expected).backward()
        assert_close(loss, expected, LOSS)
        assert_close(ours.grad, theirs.grad, LOSS)
