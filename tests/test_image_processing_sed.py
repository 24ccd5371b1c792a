"""The image processor: SED's preprocessing, any picture a user has, and back to labels."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from PIL import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sed_hf import SEDImageProcessor
from sed_hf.image_processing_sed import shortest_edge_size


@pytest.fixture
def image_processor() -> SEDImageProcessor:
    return SEDImageProcessor(size={"shortest_edge": 96, "longest_edge": 384}, input_size={"height": 128, "width": 128})


def random_array(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


class TestSteps:
    @pytest.mark.parametrize(("width", "height"), [(161, 120), (120, 161)], ids=["landscape", "portrait"])
    def test_three_steps_equal_the_plain_formulation(
        self, image_processor: SEDImageProcessor, width: int, height: int
    ) -> None:
        picture = Image.fromarray(random_array(height, width))
        resized = np.asarray(picture.resize((round(width * 0.8), round(height * 0.8)), Image.Resampling.BILINEAR))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        normalised = (torch.tensor(resized).permute(2, 0, 1) / 255 - mean) / std
        expected = F.interpolate(normalised[None], size=(128, 128), mode="bilinear", align_corners=False)
        pixel_values = image_processor(images=picture, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixel_values, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((120, 161), (640, 859)),
            ((161, 120), (859, 640)),
            ((640, 640), (640, 640)),
            ((480, 643), (640, 857)),  # 857.33 truncates
            ((100, 1000), (256, 2560)),
            ((3, 9000), (1, 2560)),
            ((2, 9000), (1, 2560)),  # never no pixel at all
        ],
    )
    def test_shortest_edge_rounds_as_detectron2(self, size: tuple[int, int], expected: tuple[int, int]) -> None:
        assert shortest_edge_size(size, 640, 2560) == expected

    def test_each_step_has_a_switch(self, image_processor: SEDImageProcessor) -> None:
        picture = random_array(50, 60)
        off = {"do_resize": False, "do_input_resize": False}
        raw = image_processor(images=picture, **off, do_rescale=False, do_normalize=False, return_tensors="pt")
        assert torch.equal(raw["pixel_values"][0].to(torch.uint8), torch.tensor(picture).permute(2, 0, 1))
        first = image_processor(images=picture, do_input_resize=False, return_tensors="pt")["pixel_values"]
        assert first.shape[-2:] == (96, 115)
        third = image_processor(images=picture, do_resize=False, return_tensors="pt")["pixel_values"]
        assert third.shape[-2:] == (128, 128)

    def test_sizes_can_be_given_for_one_call(self, image_processor: SEDImageProcessor) -> None:
        inputs = image_processor(
            images=random_array(50, 60), input_size={"height": 64, "width": 96}, return_tensors="pt"
        )
        assert inputs["pixel_values"].shape == (1, 3, 64, 96)

    def test_settings_survive_saving(self, image_processor: SEDImageProcessor, tmp_path: Path) -> None:
        image_processor.do_input_resize = False
        image_processor.save_pretrained(tmp_path)
        loaded = SEDImageProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == image_processor.to_dict()
        assert (loaded.input_size.height, loaded.size.shortest_edge, loaded.do_input_resize) == (128, 96, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"shortest_edge": 10**9, "longest_edge": 10**9}}, "size=.*expected edges from 1 to 65536 pixels"),
        ({"input_size": {"height": 64}}, "input_size"),
        ({"input_size": {"height": 0, "width": 64}}, "input_size=.*expected edges"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean=\(0.5, 0.5\): expected a list of three"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean=.*expected a list of three numbers"),
        ({"image_std": [0.5, 0.5, 0.0]}, "expected positive numbers"),
        ({"rescale_factor": "x"}, "rescale_factor='x'"),
        ({"do_resize": "no"}, "do_resize='no': expected true or false"),
        ({"resample": 99}, "resample=99"),
        ({"ignore_index": 0.5}, "ignore_index=0.5: expected a whole number"),
    ],
)
def test_settings_that_prepare_no_picture_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SEDImageProcessor(**settings)


class TestPictures:
    color = random_array(24, 40)

    @pytest.mark.parametrize(
        "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
    )
    def test_pil_images_of_every_mode_work(self, image_processor: SEDImageProcessor, mode: str) -> None:
        source = Image.fromarray(self.color)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)
        elif mode == "RGBa":
            picture = source.convert("RGBA").convert("RGBa")
        else:
            picture = source.convert("L").convert(mode) if mode in ("I", "F", "LA") else source.convert(mode)
        rgb = image_processor.to_rgb(picture)
        assert rgb.shape == (3, 24, 40)
        assert rgb.dtype == torch.uint8
        gray = mode in ("L", "LA", "I", "F", "I;16")
        expected = np.asarray(source.convert("L").convert("RGB") if gray else source)
        if mode not in ("1", "P"):
            assert np.abs(rgb.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 8

    def test_16_bit_png_is_scaled_not_clipped(self, image_processor: SEDImageProcessor, tmp_path: Path) -> None:
        values = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "deep.png")
        rgb = image_processor.to_rgb(image_processor.fetch_images(str(tmp_path / "deep.png")))
        assert np.array_equal(rgb[0].numpy(), np.round(values / 257).astype(np.uint8))

    def test_transparency_is_composited_on_white(self, image_processor: SEDImageProcessor) -> None:
        rgba = np.zeros((4, 4, 4), np.uint8)
        rgba[:2, :, 3] = 255
        for picture in (Image.fromarray(rgba), rgba):
            rgb = image_processor.to_rgb(picture)
            assert (rgb[:, :2] == 0).all()
            assert (rgb[:, 2:] == 255).all()

    def test_palette_with_a_transparent_colour_is_composited(self, image_processor: SEDImageProcessor) -> None:
        picture = Image.new("P", (2, 1))
        picture.putpalette([255, 0, 0, 0, 0, 255])
        picture.putdata([0, 1])
        picture.info["transparency"] = 1
        assert image_processor.to_rgb(picture)[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]

    def test_exif_orientation_is_applied(self, image_processor: SEDImageProcessor, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90°
        Image.fromarray(self.color).save(tmp_path / "turned.jpg", exif=exif, quality=95)
        path = str(tmp_path / "turned.jpg")
        for picture in (Image.open(path), image_processor.fetch_images(path)):
            assert image_processor.to_rgb(picture).shape == (3, 40, 24)

    @pytest.mark.parametrize(
        "picture",
        [
            color,
            color.transpose(2, 0, 1),
            torch.tensor(color),
            torch.tensor(color).permute(2, 0, 1),
            color / 255,
            (color / 255).astype(np.float32),
            color.astype(np.float32),
            color.astype(np.int64),
            color.astype(np.uint16) * 257,
        ],
    )
    def test_arrays_and_tensors_equal_the_pil_image(self, image_processor: SEDImageProcessor, picture: Any) -> None:
        assert torch.equal(image_processor.to_rgb(picture), image_processor.to_rgb(Image.fromarray(self.color)))

    def test_grayscale_arrays_work(self, image_processor: SEDImageProcessor) -> None:
        for picture in (self.color[..., 0], self.color[..., :1], torch.tensor(self.color[..., 0]) > 127):
            assert image_processor(images=picture, return_tensors="pt")["pixel_values"].shape == (1, 3, 128, 128)
            rgb = image_processor.to_rgb(picture)
            assert rgb.shape == (3, 24, 40)
            assert torch.equal(rgb[0], rgb[2])

    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            (np.full((4, 4, 3), -1.0), "from 0 to 255 for torch.float64, got -1.0 to -1.0"),
            (np.full((4, 4, 3), np.nan), "got nan"),
            (np.full((4, 4, 3), 70_000), "from 0 to 65535"),
            (np.zeros((5, 6, 2), np.uint8), r"got an array of \(5, 6, 2\)"),
            (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        ],
    )
    def test_what_is_no_picture_is_refused(
        self, image_processor: SEDImageProcessor, picture: np.ndarray, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            image_processor.to_rgb(picture)

    def test_no_picture_at_all_is_refused(self, image_processor: SEDImageProcessor) -> None:
        with pytest.raises(ValueError, match="images: expected at least one picture"):
            image_processor(images=[])

    def test_a_path_that_does_not_exist_is_named(self, image_processor: SEDImageProcessor) -> None:
        with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
            image_processor(images="absent.jpg")

    def test_batches_of_mixed_sizes_equal_one_at_a_time(self, image_processor: SEDImageProcessor) -> None:
        pictures = [random_array(20, 40), random_array(60, 30), random_array(33, 33)]
        together = image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        alone = [image_processor(images=picture, return_tensors="pt")["pixel_values"] for picture in pictures]
        assert torch.equal(together, torch.cat(alone))

    def test_a_list_may_mix_grayscale_arrays_with_others(self, image_processor: SEDImageProcessor) -> None:
        pictures = [self.color[..., 0], torch.tensor(self.color[..., 0]), self.color, Image.fromarray(self.color)]
        together = image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        assert torch.equal(together[0], together[1])
        assert torch.equal(together[2], together[3])

    def test_mixed_sizes_without_the_last_step_are_refused(self, image_processor: SEDImageProcessor) -> None:
        with pytest.raises(ValueError, match="different sizes without do_input_resize"):
            image_processor(
                images=[random_array(20, 40), random_array(60, 30)], do_input_resize=False, return_tensors="pt"
            )


class TestSegmentationMaps:
    def test_labels_follow_the_picture_and_keep_their_values(self, image_processor: SEDImageProcessor) -> None:
        labels = np.full((60, 80), 255)
        labels[:30], labels[30:, :40] = 7, 3
        inputs = image_processor(images=random_array(60, 80), segmentation_maps=labels, return_tensors="pt")
        assert inputs["labels"].shape == (1, 128, 128)
        assert inputs["labels"].dtype == torch.int64
        assert (inputs["labels"][0, :64] == 7).all()
        assert (inputs["labels"][0, 64:, :64] == 3).all()
        assert (inputs["labels"][0, 64:, 64:] == 255).all()

    def test_maps_may_be_pil_images_with_a_palette_or_16_bits(self, image_processor: SEDImageProcessor) -> None:
        labels = np.arange(60 * 80).reshape(60, 80)
        palette = Image.fromarray((labels % 200).astype(np.uint8))
        palette.putpalette(list(range(256)) * 3)
        deep = Image.fromarray(labels.astype(np.uint16))
        off = {"do_resize": False, "do_input_resize": False}
        for segmentation_map, expected in ((palette, labels % 200), (deep, labels)):
            inputs = image_processor(
                images=random_array(60, 80), segmentation_maps=segmentation_map, **off, return_tensors="pt"
            )
            assert np.array_equal(inputs["labels"][0].numpy(), expected)

    @pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
    def test_maps_may_be_one_pixel_wide_or_high(
        self, image_processor: SEDImageProcessor, size: tuple[int, int]
    ) -> None:
        inputs = image_processor(
            images=np.zeros((*size, 3), np.uint8), segmentation_maps=np.full(size, 7), return_tensors="pt"
        )
        assert (inputs["labels"] == 7).all()

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.zeros((80, 60), int), r"segmentation_maps\[0\]: expected integers of its image's size \(60, 80\)"),
            (np.zeros((60, 80)), "got torch.float64"),
            ([np.zeros((60, 80), int)] * 2, "segmentation_maps: expected 1, one for each image; got 2"),
        ],
    )
    def test_maps_that_do_not_fit_are_refused(
        self, image_processor: SEDImageProcessor, labels: Any, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            image_processor(images=random_array(60, 80), segmentation_maps=labels)


class TestPostProcessing:
    @staticmethod
    def outputs(*shape: int) -> SimpleNamespace:
        return SimpleNamespace(logits=3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0)))

    @staticmethod
    def plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits.sigmoid()[None], size=size, mode="bilinear", align_corners=False)[0]

    @pytest.mark.parametrize("chunk_elements", [1, 5 * 40 * 50, 2**24])
    def test_classes_and_probabilities_equal_the_official_order(
        self, monkeypatch: pytest.MonkeyPatch, image_processor: SEDImageProcessor, chunk_elements: int
    ) -> None:
        monkeypatch.setattr("sed_hf.image_processing_sed.POST_PROCESS_ELEMENTS_PER_CHUNK", chunk_elements)
        outputs, sizes = self.outputs(2, 17, 12, 16), [(40, 50), (9, 70)]
        results = image_processor.post_process_semantic_segmentation(outputs, sizes, return_probabilities=True)
        for logits, size, result in zip(outputs.logits, sizes, results, strict=True):
            probability, segmentation = self.plain(logits, size).max(0)
            assert torch.equal(result["segmentation"], segmentation)
            torch.testing.assert_close(result["probability"], probability, rtol=0, atol=1e-6)

    def test_no_tensor_of_all_classes_at_full_size_is_made(
        self, monkeypatch: pytest.MonkeyPatch, image_processor: SEDImageProcessor
    ) -> None:
        monkeypatch.setattr("sed_hf.image_processing_sed.POST_PROCESS_ELEMENTS_PER_CHUNK", 4 * 100 * 130)
        outputs = self.outputs(1, 50, 12, 16)
        with LargestTensor() as largest:
            image_processor.post_process_semantic_segmentation(outputs, [(100, 130)])
        assert largest.num_bytes <= 8 * 100 * 130 * 4  # of four classes; some tensors hold 64-bit numbers

    def test_without_target_sizes_the_logits_keep_theirs(self, image_processor: SEDImageProcessor) -> None:
        outputs = self.outputs(1, 5, 12, 16)
        (segmentation,) = image_processor.post_process_semantic_segmentation(outputs)
        assert torch.equal(segmentation, outputs.logits[0].argmax(0))

    def test_pixels_below_the_threshold_are_ignored(self, image_processor: SEDImageProcessor) -> None:
        outputs = self.outputs(1, 5, 12, 16)
        (segmentation,) = image_processor.post_process_semantic_segmentation(outputs, [(30, 30)], threshold=0.9)
        probability = self.plain(outputs.logits[0], (30, 30)).amax(0)
        assert torch.equal(segmentation == 255, probability < 0.9)
        assert 0 < (segmentation == 255).sum() < segmentation.numel()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"target_sizes": [(4, 4)] * 2}, "target_sizes: expected 1"),
            (
                {"target_sizes": [(0, 4)]},
                r"target_sizes\[0\]: expected a height and a width of at least 1, got \(0, 4\)",
            ),
            ({"target_sizes": [(4, -4)]}, r"target_sizes\[0\]: .* got \(4, -4\)"),
            ({"target_sizes": [(3, 4, 4)]}, r"target_sizes\[0\]: .* got \(3, 4, 4\)"),
            ({"threshold": 1.5}, "threshold=1.5"),
            ({"threshold": 0.5, "ignore_index": 3}, "ignore_index=3 is also one of the 5 classes"),
        ],
    )
    def test_wrong_arguments_are_refused_by_name(
        self, image_processor: SEDImageProcessor, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            image_processor.post_process_semantic_segmentation(self.outputs(1, 5, 4, 4), **arguments)
