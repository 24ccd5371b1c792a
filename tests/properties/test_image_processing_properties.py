"""The image processor takes any image of any size in any form, and treats each as if it were the only one.

Back from logits to labels, any number of classes, sizes and chunks give what the plain formula gives.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from strategies import normal, seeds
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sed_hf import SEDImageProcessor, SEDSemanticSegmentationOutput
from sed_hf.image_processing_sed import shortest_edge_size, to_rgb

PIXEL_VALUES = 1e-5
PROBABILITY = 1e-6
PIL_MODES = ("1", "L", "I", "I;16", "F", "P", "RGB", "RGBA", "LA", "CMYK")
ARRAY_FORMS = ("uint8", "int64", "uint16", "float64 to 1", "float32 to 1", "float32 to 255")

input_edges = st.integers(1, 4).map(lambda count: 32 * count)


def make_processor(shortest: int = 40, longest: int = 160, height: int = 64, width: int = 64) -> SEDImageProcessor:
    return SEDImageProcessor(
        size={"shortest_edge": shortest, "longest_edge": longest}, input_size={"height": height, "width": width}
    )


processors = st.builds(make_processor, st.integers(1, 64), st.integers(64, 200), input_edges, input_edges)

# Sides of ordinary images, and of slivers.
sizes = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(100, 400)),
    st.tuples(st.integers(100, 400), st.integers(1, 3)),
)


@st.composite
def rgb_arrays(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) that no form can mistake: some of them are brighter than 1."""
    height, width = draw(sizes)
    return np.random.default_rng(draw(seeds)).integers(2, 256, (height, width, 3), dtype=np.uint8)


def gray_rgb(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the first channel shows as a grey image."""
    return np.repeat(rgb[..., :1], 3, axis=2)


def on_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) of opacity (height, width) before a white wall."""
    share = alpha[..., None].astype(np.float32) / 255
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)


def as_pil(rgb: NDArray[np.uint8], mode: str) -> tuple[Image.Image, NDArray[np.uint8]]:
    """A PIL image of a mode, of the pixels or of their first channel, and what it shows."""
    gray, alpha = np.ascontiguousarray(rgb[..., 0]), rgb[..., 1]
    if mode == "P":
        image = Image.fromarray(rgb).quantize(colors=16)
        return image, np.array(image.convert("RGB"))
    if mode == "RGBA":
        return Image.fromarray(np.dstack([rgb, alpha])), on_white(rgb, alpha)
    if mode == "LA":
        return Image.fromarray(np.dstack([gray, alpha]), mode="LA"), on_white(gray_rgb(rgb), alpha)
    if mode == "1":
        return Image.fromarray(gray > 127), gray_rgb((rgb > 127).astype(np.uint8) * 255)
    if mode in ("RGB", "CMYK"):
        return Image.fromarray(rgb).convert(mode), rgb
    levels = {"L": gray, "I;16": gray.astype(np.uint16) * 257, "I": gray.astype(np.int32), "F": gray.astype(np.float32)}
    return Image.fromarray(levels[mode]), gray_rgb(rgb)


def as_array(rgb: NDArray[np.uint8], form: str) -> NDArray:
    """An array of a type and scale that shows the same."""
    if form.endswith("to 1"):
        return (rgb / 255).astype(form.split()[0])
    return rgb.astype(form.split()[0]) * (257 if form == "uint16" else 1)


def prepare(processor: SEDImageProcessor, images: Any, **kwargs: Any) -> Tensor:
    """`pixel_values` of one image or several."""
    return processor(images=images, return_tensors="pt", **kwargs)["pixel_values"]


def assert_shows(image: Any, rgb: NDArray[np.uint8], data_format: str | None = None) -> None:
    np.testing.assert_array_equal(to_rgb(image, data_format).permute(1, 2, 0).numpy(), rgb)


def official_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Detectron2's ResizeShortestEdge, but that no side is empty."""
    scale = shortest / min(height, width)
    if height < width:
        new_height, new_width = float(shortest), scale * width
    else:
        new_height, new_width = scale * height, float(shortest)
    if max(new_height, new_width) > longest:
        shrink = longest / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


@given(rgb_arrays())
def test_pil_images_arrays_and_tensors_of_every_type_and_layout_show_the_same(rgb: NDArray[np.uint8]) -> None:
    for mode in PIL_MODES:
        assert_shows(*as_pil(rgb, mode))
    for form in ARRAY_FORMS:
        array = as_array(rgb, form)
        for convert in (np.asarray, torch.tensor):
            assert_shows(convert(array), rgb, "channels_last")
            assert_shows(convert(np.moveaxis(array, -1, 0)), rgb, "channels_first")
            assert_shows(convert(array[..., 0]), gray_rgb(rgb))
    assert_shows(np.dstack([rgb, rgb[..., 1]]), on_white(rgb, rgb[..., 1]), "channels_last")


@given(processors, rgb_arrays())
def test_pixel_values_equal_the_plain_formulation(processor: SEDImageProcessor, rgb: NDArray[np.uint8]) -> None:
    height, width = official_size(*rgb.shape[:2], processor.size.shortest_edge, processor.size.longest_edge)
    resized = np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    normalised = (torch.tensor(resized).permute(2, 0, 1) / 255 - mean) / std
    size = (processor.input_size.height, processor.input_size.width)
    expected = F.interpolate(normalised[None], size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(prepare(processor, Image.fromarray(rgb)), expected, rtol=0, atol=PIXEL_VALUES)


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 2000), st.integers(1, 4000))
def test_any_shortest_edge_is_rounded_as_officially(height: int, width: int, shortest: int, longest: int) -> None:
    assert shortest_edge_size((height, width), shortest, longest) == official_size(height, width, shortest, longest)


@given(st.lists(rgb_arrays(), min_size=1, max_size=3))
def test_any_images_together_equal_one_by_one(several: list[NDArray[np.uint8]]) -> None:
    images = [image for rgb in several for image in (rgb, as_array(rgb, "float32 to 1"), as_pil(rgb, "LA")[0])]
    processor, options = make_processor(), {"input_data_format": "channels_last"}
    expected = torch.cat([prepare(processor, image, **options) for image in images])
    assert torch.equal(prepare(processor, images, **options), expected)


@given(
    hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)),
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.int64]),
    processors,
)
def test_label_maps_take_the_nearest_pixels(label_map: NDArray, dtype: Any, processor: SEDImageProcessor) -> None:
    label_map = label_map.astype(dtype)
    image = np.zeros((*label_map.shape, 3), np.uint8)
    labels = processor(image, label_map, input_data_format="channels_last", return_tensors="pt")["labels"]
    sizes = zip((processor.input_size.height, processor.input_size.width), label_map.shape, strict=True)
    rows, columns = (((torch.arange(edge) + 0.5) * length / edge).long() for edge, length in sizes)
    assert labels.dtype == torch.int64
    assert torch.equal(labels[0], torch.tensor(label_map.astype(np.int64))[rows[:, None], columns])


Case = tuple[Tensor, list[tuple[int, int]]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """The logits (B, T, h, w) of any images, classes, resolution and dtype, and the size that each image is to get."""
    batch_size = draw(st.integers(1, 3))
    shape = (batch_size, draw(st.integers(1, 20)), *(draw(st.integers(1, 12)) for _ in range(2)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    sizes = st.tuples(st.integers(1, 50), st.integers(1, 50))
    return 3 * normal(*shape, seed=draw(seeds), dtype=dtype), [draw(sizes) for _ in range(batch_size)]


def process(outputs: SEDSemanticSegmentationOutput, sizes: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
    kwargs["return_segmentation_scores"] = True
    return SEDImageProcessor().post_process_semantic_segmentation(outputs, sizes, **kwargs)


def assert_most_probable(result: dict[str, Tensor], logits: Tensor, size: tuple[int, int]) -> None:
    """Each pixel has a class of the highest probability: at a tie, but for rounding, any of them."""
    probabilities = F.interpolate(logits.float().sigmoid()[None], size=size, mode="bilinear", align_corners=False)[0]
    segmentation, probability = result["segmentation"], result["probability"]
    assert (segmentation.dtype, probability.dtype) == (torch.int64, torch.float32)
    torch.testing.assert_close(result["segmentation_scores"], probabilities, rtol=0, atol=PROBABILITY)
    of_the_class = probabilities.gather(0, segmentation[None])[0]
    for found in (probability, of_the_class):
        torch.testing.assert_close(found, probabilities.amax(0), rtol=0, atol=PROBABILITY)


@given(cases(), st.floats(0, 1), st.sampled_from([-1, 255, 65535]))
def test_any_logits_equal_the_plain_formula_and_any_threshold_ignores_exactly_what_is_below(
    case: Case, threshold: float, ignore_index: int
) -> None:
    all_logits, sizes = case
    outputs = SEDSemanticSegmentationOutput(logits=all_logits)
    every = process(outputs, sizes)
    some = process(outputs, sizes, threshold=threshold, ignore_index=ignore_index)
    for logits, size, before, after in zip(all_logits, sizes, every, some, strict=True):
        assert_most_probable(before, logits, size)
        expected = before["segmentation"].masked_fill(before["probability"] < threshold, ignore_index)
        assert torch.equal(after["segmentation"], expected)
        assert torch.equal(after["probability"], before["probability"])


@given(cases(), st.data())
def test_rejected_classes_win_nowhere_and_the_others_keep_their_numbers(case: Case, data: st.DataObject) -> None:
    all_logits, sizes = case
    batch_size, num_classes = all_logits.shape[:2]
    kept = sorted(data.draw(st.sets(st.integers(0, num_classes - 1), min_size=1)))
    rejecting = SEDSemanticSegmentationOutput(
        logits=all_logits[:, kept],
        logit_classes=torch.tensor(kept),
        kept_classes=torch.zeros(batch_size, 3, num_classes, dtype=torch.bool),
    )
    for logits, size, result in zip(rejecting.all_logits(), sizes, process(rejecting, sizes), strict=True):
        assert set(result["segmentation"].unique().tolist()) <= set(kept)
        assert_most_probable(result, logits, size)
