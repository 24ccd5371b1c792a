"""Test-time augmentation: the mean of the probabilities at several scales, of the picture and its mirror image.

The official code does so through Detectron2's `SemanticSegmentorWithTTA`, which sums (T, H, W) probabilities at the
picture's size over all views. Here views stay at the resolution of the logits until the argmax, which takes classes in
chunks: bilinear interpolation is linear, so the mean is the same.

Detectron2 scales the shortest edge alone. SED then resizes every view to the same square, so that its scales hardly
differ; here that square is scaled too.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..image_processing_sed import SEDImageProcessor
from ..modeling_sed import ENCODER_STRIDE


@dataclass(frozen=True)
class MultiScaleFlip:
    """Which views of a picture are segmented.

    Attributes:
        scales: Factors of the network's input size; 1 is the size the model was made for. The size is rounded to a
            multiple of 32.
        flip: Whether each view is also segmented mirrored.

    Raises:
        ValueError: There is no scale, or one is not positive.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales: expected positive numbers, got {self.scales}")

    def mean_over_flips(self, segment: Callable[[Tensor], Tensor], pixel_values: Tensor) -> Tensor:
        """Probabilities (B, T, h, w) of pictures (B, 3, H, W), of which `segment` gives those of one view."""
        probabilities = segment(pixel_values)
        if not self.flip:
            return probabilities
        return probabilities.add_(segment(pixel_values.flip(-1)).flip(-1)).div_(2)


def scaled_sizes(image_processor: SEDImageProcessor, scale: float) -> dict[str, dict[str, int]]:
    """The arguments of the image processor that scale its result.

    Returns:
        `size`, of the first resize, in pixels; and `input_size`, of the network's input, in multiples of 32.
    """
    size = {edge: max(1, round(scale * pixels)) for edge, pixels in dict(image_processor.size).items()}
    input_size = {
        edge: ENCODER_STRIDE * max(1, round(scale * pixels / ENCODER_STRIDE))
        for edge, pixels in dict(image_processor.input_size).items()
    }
    return {"size": size, "input_size": input_size}
