"""The image processor takes any image of any size in any form, and treats each as if it were alone."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from strategies import (
    ARRAY_FORMS,
    Picture,
    array_pictures,
    as_array,
    gray_of,
    label_maps,
    on_white,
    pictures,
    pil_pictures,
    rgb_arrays,
    seeds,
)
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sed_hf import SEDImageProcessor, image_processing_sed
from sed_hf.image_processing_sed import shortest_edge_size

PIXEL_VALUES = 1e-5

input_edges = st.integers(1, 4).map(lambda count: 32 * count)
shortest_edges = st.integers(1, 64)


def make_processor(shortest: int = 40, longest: int = 160, height: int = 64, width: int = 64) -> SEDImageProcessor:
    return SEDImageProcessor(
        size={"shortest_edge": shortest, "longest_edge": longest}, input_size={"height": height, "width": width}
    )


processors = st.builds(make_processor, shortest_edges, st.integers(64, 200), input_edges, input_edges)


def prepare(processor: SEDImageProcessor, images: Any, **kwargs: Any) -> Tensor:
    """`pixel_values` of one image or several."""
    return processor(images=images, return_tensors="pt", **kwargs)["pixel_values"]


def to_rgb(picture: Picture) -> NDArray[np.uint8]:
    """What the processor makes of a image before any step, (height, width, 3)."""
    rgb = image_processing_sed.to_rgb(picture.image, picture.data_format)
    assert rgb.dtype == torch.uint8
    return rgb.permute(1, 2, 0).numpy()


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


class TestForms:
    @given(array_pictures())
    def test_arrays_and_tensors_of_every_type_and_layout_show_the_same(self, picture: Picture) -> None:
        np.testing.assert_array_equal(to_rgb(picture), picture.rgb)

    @given(pil_pictures())
    def test_pil_images_of_every_mode_show_the_same(self, picture: Picture) -> None:
        np.testing.assert_array_equal(to_rgb(picture), picture.rgb)

    @given(rgb_arrays(), st.integers(1, 8))
    def test_every_exif_orientation_is_undone(self, rgb: NDArray[np.uint8], orientation: int) -> None:
        image = Image.fromarray(rgb)
        image.getexif()[0x0112] = orientation
        upright = {
            1: rgb,
            2: rgb[:, ::-1],
            3: rgb[::-1, ::-1],
            4: rgb[::-1],
            5: rgb.swapaxes(0, 1),
            6: np.rot90(rgb, -1),
            7: rgb[::-1, ::-1].swapaxes(0, 1),
            8: np.rot90(rgb),
        }[orientation]
        np.testing.assert_array_equal(to_rgb(Picture(image, upright, None)), upright)

    @given(rgb_arrays(), seeds, st.booleans())
    def test_any_transparency_is_composited_on_white(self, rgb: NDArray[np.uint8], seed: int, as_array: bool) -> None:
        alpha = np.random.default_rng(seed).integers(0, 256, rgb.shape[:2], dtype=np.uint8)
        rgba = np.dstack([rgb, alpha])
        image = rgba if as_array else Image.fromarray(rgba)
        np.testing.assert_array_equal(to_rgb(Picture(image, rgb, "channels_last")), on_white(rgb, alpha))


class TestSteps:
    @given(processors, pictures)
    def test_pixel_values_are_finite_numbers_of_the_size_asked_for(
        self, processor: SEDImageProcessor, picture: Picture
    ) -> None:
        pixel_values = prepare(processor, picture.image, input_data_format=picture.data_format)
        assert pixel_values.shape == (1, 3, processor.input_size.height, processor.input_size.width)
        assert pixel_values.dtype == torch.float32
        assert pixel_values.isfinite().all()

    @given(processors, rgb_arrays())
    def test_they_equal_the_plain_formulation(self, processor: SEDImageProcessor, rgb: NDArray[np.uint8]) -> None:
        height, width = official_size(*rgb.shape[:2], processor.size.shortest_edge, processor.size.longest_edge)
        resized = np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        normalised = (torch.tensor(resized).permute(2, 0, 1) / 255 - mean) / std
        size = (processor.input_size.height, processor.input_size.width)
        expected = F.interpolate(normalised[None], size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(prepare(processor, Image.fromarray(rgb)), expected, rtol=0, atol=PIXEL_VALUES)

    @given(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 2000), st.integers(1, 4000))
    def test_any_shortest_edge_is_rounded_as_officially(
        self, height: int, width: int, shortest: int, longest: int
    ) -> None:
        assert shortest_edge_size((height, width), shortest, longest) == official_size(height, width, shortest, longest)


class TestBatches:
    @given(st.lists(pil_pictures() | array_pictures(), min_size=1, max_size=4))
    def test_any_images_together_equal_one_by_one(self, several: list[Picture]) -> None:
        # Arrays of a batch share the place of their channels: bring all to where numpy has them.
        images = [picture.image if picture.data_format is None else np.asarray(picture.rgb) for picture in several]
        processor = make_processor()
        options = {"input_data_format": "channels_last"}
        together = prepare(processor, images, **options)
        assert torch.equal(together, torch.cat([prepare(processor, image, **options) for image in images]))

    @given(rgb_arrays(), st.integers(1, 3), st.sampled_from(sorted(ARRAY_FORMS)), st.booleans())
    def test_one_array_of_several_images_is_a_batch(
        self, rgb: NDArray[np.uint8], count: int, form: str, as_tensor: bool
    ) -> None:
        array = np.stack([as_array(np.roll(rgb, shift), form) for shift in range(count)])
        batch = torch.tensor(array) if as_tensor else array
        processor, options = make_processor(), {"input_data_format": "channels_last"}
        alone = [prepare(processor, picture, **options) for picture in batch]
        assert torch.equal(prepare(processor, batch, **options), torch.cat(alone))


class TestSegmentationMaps:
    integers = st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.int64])

    def labels(self, label_map: Any, size: tuple[int, int], processor: SEDImageProcessor) -> Tensor:
        image = np.zeros((*size, 3), np.uint8)
        inputs = processor(
            images=image, segmentation_maps=label_map, input_data_format="channels_last", return_tensors="pt"
        )
        assert inputs["labels"].dtype == torch.int64
        return inputs["labels"]

    @given(label_maps(st.integers(0, 255), 12), integers, processors)
    def test_every_pixel_gets_the_label_of_the_nearest_one(
        self, label_map: NDArray[np.int64], dtype: Any, processor: SEDImageProcessor
    ) -> None:
        labels = self.labels(label_map.astype(dtype), label_map.shape, processor)
        nearest = [
            ((torch.arange(edge) + 0.5) * length / edge).long()
            for edge, length in zip(
                (processor.input_size.height, processor.input_size.width), label_map.shape, strict=True
            )
        ]
        assert torch.equal(labels[0], torch.tensor(label_map)[nearest[0][:, None], nearest[1]])

    @given(label_maps(st.integers(-(2**31), 2**31 - 1), 12))
    def test_without_resizing_every_label_stays(self, label_map: NDArray[np.int64]) -> None:
        processor = make_processor()
        processor.do_resize = processor.do_input_resize = False
        assert self.labels(label_map, label_map.shape, processor)[0].tolist() == label_map.tolist()


@given(rgb_arrays())
def test_grey_images_of_any_form_equal_each_other(rgb: NDArray[np.uint8]) -> None:
    gray = gray_of(rgb)
    processor = make_processor()
    forms = [Image.fromarray(gray), gray, torch.tensor(gray), gray[..., None], torch.tensor(gray)[None]]
    formats = [None, None, None, "channels_last", "channels_first"]
    values = [
        prepare(processor, form, input_data_format=data_format)
        for form, data_format in zip(forms, formats, strict=True)
    ]
    assert all(torch.equal(value, values[0]) for value in values)
