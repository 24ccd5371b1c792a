"""The image processor: SED's preprocessing, any image a user has, and back to labels."""

import base64
import json
import struct
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from PIL import Image

from sed_hf import SEDImageProcessor
from sed_hf.image_processing_sed import (
    MAX_PIXELS_VARIABLE,
    NonFiniteLogitsError,
    TooManyPixelsError,
    read_rgb,
    to_labels,
    to_rgb,
)

COLOR = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
RAMP = np.linspace(0, 1, 12).reshape(3, 4)


@pytest.fixture
def image_processor() -> SEDImageProcessor:
    return SEDImageProcessor(size={"shortest_edge": 96, "longest_edge": 384}, input_size={"height": 128, "width": 128})


def pixel_values(image_processor: SEDImageProcessor, images: Any, **kwargs: Any) -> torch.Tensor:
    return image_processor(images=images, return_tensors="pt", **kwargs)["pixel_values"]


def write_gray_png(path: Path, size: tuple[int, int], bits: int, rows: np.ndarray) -> None:
    """A grey PNG of any (width, height) and depth, as Pillow cannot write it; `rows` are the packed bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, 0, 0, 0, 0))
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b""))


def test_each_step_has_a_switch(image_processor: SEDImageProcessor) -> None:
    off = {"do_resize": False, "do_input_resize": False}
    raw = pixel_values(image_processor, COLOR, **off, do_rescale=False, do_normalize=False)
    assert torch.equal(raw[0].to(torch.uint8), torch.tensor(COLOR).permute(2, 0, 1))
    assert pixel_values(image_processor, COLOR, do_input_resize=False).shape[-2:] == (96, 160)
    assert pixel_values(image_processor, COLOR, do_resize=False).shape[-2:] == (128, 128)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"do_reduce_labels": True}, "do_reduce_labels"),
            ({"input_sise": 64}, "input_sise"),
            ({"do_center_crop": True, "crop_size": {"height": 4, "width": 4}}, "neither crops nor pads"),
            ({"do_resize": "no"}, "do_resize"),
        ],
    )
    def test_what_would_be_silently_wrong_is_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SEDImageProcessor(**settings)

    def test_misspelt_switches_are_refused_at_a_call_and_at_loading(
        self, image_processor: SEDImageProcessor, tmp_path: Path
    ) -> None:
        with pytest.raises(TypeError, match="do_reduce_labels"):
            image_processor(COLOR, do_reduce_labels=True)
        image_processor.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="do_reduce_labels"):
            SEDImageProcessor.from_pretrained(tmp_path, do_reduce_labels=True)

    def test_of_a_saved_file_may_have_the_keys_that_transformers_adds(self, tmp_path: Path) -> None:
        saved = {"auto_map": {}, "processor_class": "SEDProcessor", "feature_extractor_type": "x", "ignore_index": 7}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
        assert SEDImageProcessor.from_pretrained(tmp_path).ignore_index == 7


class TestToRGB:
    def test_palette_with_a_transparent_colour_is_composited(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.putdata([0, 1])
        image.info["transparency"] = 1
        assert to_rgb(image)[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]

    def test_exif_orientation_is_applied(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90°
        Image.fromarray(COLOR).save(tmp_path / "turned.png", exif=exif)
        assert torch.equal(to_rgb(tmp_path / "turned.png"), to_rgb(np.rot90(COLOR, -1)))

    def test_an_orientation_that_cannot_be_read_is_none(self, tmp_path: Path) -> None:
        exif = b"Exif\0\0" + b"\x00\x08\x00\x02\x01\x12\x00\x03" + bytes(20)
        Image.fromarray(COLOR).save(tmp_path / "image.png", exif=exif)
        assert torch.equal(to_rgb(tmp_path / "image.png"), to_rgb(COLOR))

    @pytest.mark.parametrize(
        "image",
        [
            np.ascontiguousarray(COLOR[..., ::-1])[..., ::-1],
            (COLOR / 255).astype(">f4"),
            COLOR.astype(">u2") * 257,
            torch.tensor(COLOR / 255).requires_grad_(),
        ],
    )
    def test_arrays_and_tensors_equal_the_pil_image(self, image: Any) -> None:
        assert torch.equal(to_rgb(image), to_rgb(Image.fromarray(COLOR)))

    def test_base64_data_is_taken(self) -> None:
        Image.fromarray(COLOR).save(content := BytesIO(), "png")
        text = base64.b64encode(content.getvalue()).decode()
        for image in (text, f"data:image/png;base64,{text}"):
            assert torch.equal(to_rgb(image), to_rgb(COLOR))

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.zeros((5, 6, 2), np.uint8), r"got an array of \(5, 6, 2\)"),
            (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        ],
    )
    def test_what_is_not_an_image_is_refused(self, image: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            to_rgb(image)


class TestScale:
    """A scale is known or stated, never guessed from what could be several."""

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    @pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1.0000002), (-0.05, 1.08)])
    def test_overshoot_of_floats_is_clipped(self, dtype: Any, low: float, high: float) -> None:
        values = (low + (high - low) * RAMP).astype(dtype)
        expected = np.rint(values.astype(float).clip(0, 1) * 255)
        assert np.array_equal(to_rgb(values)[0].numpy(), expected)
        assert np.abs(to_rgb(values.astype(float) * 255)[0].numpy() - expected).max() <= 1

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (1.5 * RAMP, "scale of float64 from 0 to 1.5 is ambiguous; state the scale by rescale_factor"),
            ((4095 * RAMP).astype(np.uint16), "scale of uint16 from 0 to 4095 is ambiguous"),
            (2 * RAMP - 1, "from 0 to 1 for float64, got -1 to 1"),
            (RAMP * np.nan, "from 0 to 255 for float64, got nan"),
            (RAMP * 255 * 257, "from 0 to 255 for float64, got 0 to 65535"),
            ((RAMP * 255).astype(int) - 1, "from 0 to 255 for int64, got -1 to 254"),
        ],
    )
    def test_other_ranges_are_refused(self, values: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            to_rgb(values)

    @pytest.mark.parametrize("bits", [8, 12, 16])
    def test_may_be_stated(self, image_processor: SEDImageProcessor, bits: int) -> None:
        white = 2**bits - 1
        values = np.rint(white * RAMP).astype(np.uint16)
        levels = np.rint(values * (255 / white)).astype(np.uint8)
        assert np.array_equal(to_rgb(values, rescale_factor=1 / white)[0].numpy(), levels)
        expected = pixel_values(image_processor, levels)
        assert torch.equal(pixel_values(image_processor, values, rescale_factor=1 / white), expected)
        if bits > 8:  # 1 / 255 is the default, which states nothing
            image_processor.rescale_factor = 1 / white
            assert torch.equal(pixel_values(image_processor, values), expected)

    def test_floats_that_are_rescaled_already_stay(self, image_processor: SEDImageProcessor) -> None:
        expected = pixel_values(image_processor, RAMP)
        assert torch.equal(pixel_values(image_processor, RAMP, do_rescale=False), expected)

    @pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
    def test_of_a_16_bit_file_is_that_of_its_format(self, name: str, tmp_path: Path) -> None:
        values = np.linspace(0, 4095, 24 * 40).reshape(24, 40).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / name)
        for image in (tmp_path / name, Image.open(tmp_path / name)):
            assert np.array_equal(to_rgb(image)[0].numpy(), np.round(values / 257).astype(np.uint8))

    def test_of_a_big_endian_file_too(self, tmp_path: Path) -> None:
        values = np.array([[0, 257, 65535, 514]], np.uint16)
        header = struct.pack(">2sHI", b"MM", 42, 16) + values.astype(">u2").tobytes()
        tags = [(256, 4), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 8)]
        entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
        (tmp_path / "big.tif").write_bytes(header + struct.pack(">H", len(tags)) + entries + bytes(4))
        assert to_rgb(tmp_path / "big.tif")[0].tolist() == [[0, 1, 255, 2]]
        assert to_labels(tmp_path / "big.tif").tolist() == values.tolist()


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        Image.fromarray(COLOR).save(tmp_path / "image.png")
        return tmp_path / "image.png"

    @pytest.mark.parametrize("size", [0, 60])
    def test_that_are_damaged_are_named(self, path: Path, size: int) -> None:
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises((OSError, ValueError), match=r"image\.png"):
            read_rgb(path)

    def test_that_another_program_would_run_are_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "drawing.eps")
        (tmp_path / "drawing.eps").rename(tmp_path / "photo.jpg")  # Pillow goes by the content
        with pytest.raises(OSError, match=r"photo\.jpg: not an image file of a format that is read here"):
            read_rgb(tmp_path / "photo.jpg")

    def test_of_other_formats_than_those_asked_for_are_refused(self, path: Path) -> None:
        with pytest.raises(OSError, match="not an image file of a format"):
            read_rgb(path, formats=["JPEG"])

    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_jpeg_without_its_end_marker_is_shown_with_a_warning(
        self, progressive: bool, tmp_path: Path, sed_hf_log: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "photo.jpg"
        Image.fromarray(COLOR).save(path, progressive=progressive)
        whole = to_rgb(path)
        path.write_bytes(path.read_bytes()[:-2])
        for image in (path, Image.open(path), read_rgb(BytesIO(path.read_bytes()))):
            assert torch.equal(to_rgb(image), whole)
        assert len(sed_hf_log.records) == 3
        assert "photo.jpg: the JPEG file lacks its last bytes" in sed_hf_log.text

    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("kept", [0.3, 0.99])
    def test_a_jpeg_that_lacks_pixels_is_refused(self, progressive: bool, kept: float, tmp_path: Path) -> None:
        path = tmp_path / "photo.jpg"
        Image.fromarray(np.tile(COLOR, (4, 4, 1))).save(path, progressive=progressive)
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(ValueError, match=r"photo\.jpg: cannot be read as an image: .*truncated"):
            read_rgb(path)


class TestLimitOfPixels:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        Image.new("L", (40, 30)).save(tmp_path / "image.png")
        return tmp_path / "image.png"

    def test_is_pillows(self, tmp_path: Path) -> None:
        bomb = tmp_path / "bomb.png"
        write_gray_png(bomb, (60_000, 50_000), bits=8, rows=np.zeros((9, 9), np.uint8))
        with pytest.raises(TooManyPixelsError, match=r"bomb\.png: .*3000000000 pixels.*SED_HF_MAX_IMAGE_PIXELS"):
            read_rgb(bomb)

    def test_is_moved_by_the_environment_for_images_and_label_maps(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1199")
        for read in (read_rgb, to_rgb, to_labels, SEDImageProcessor()):
            with pytest.raises(TooManyPixelsError, match=MAX_PIXELS_VARIABLE):
                read(str(path))
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1200")
        assert read_rgb(path).size == (40, 30)

    def test_may_be_lower_for_one_file(self, path: Path) -> None:
        with pytest.raises(TooManyPixelsError, match=r"image\.png: 40 × 30 pixels are more than the 1,000"):
            read_rgb(path, max_pixels=1000)

    @pytest.mark.parametrize("stated", ["", "0", "1e9"])
    def test_that_is_not_a_number_is_refused(self, stated: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, stated)
        with pytest.raises(ValueError, match=r"SED_HF_MAX_IMAGE_PIXELS=.*expected a whole number of pixels"):
            read_rgb(path)


class TestSegmentationMaps:
    def labels(self, image_processor: SEDImageProcessor, segmentation_maps: Any, **kwargs: Any) -> torch.Tensor:
        image = np.zeros((60, 80, 3), np.uint8)
        return image_processor(image, segmentation_maps, return_tensors="pt", **kwargs)["labels"]

    @pytest.mark.parametrize("bits", [1, 2, 4, 8, "palette of 4", "palette of 8", 16])
    def test_the_stored_ids_are_read(self, image_processor: SEDImageProcessor, bits: Any, tmp_path: Path) -> None:
        highest = {"palette of 4": 15, "palette of 8": 199}.get(bits) or 2**bits - 1
        ids = np.arange(60 * 80).reshape(60, 80) % (highest + 1)
        path = tmp_path / "labels.png"
        if str(bits).startswith("palette"):
            image = Image.fromarray(ids.astype(np.uint8))
            image.putpalette(list(range(255, -1, -1)) * 3)
            image.save(path, bits=int(bits[-1]))
        elif bits == 16:
            Image.fromarray(ids.astype(np.uint16)).save(path)
        else:
            unpacked = np.unpackbits(ids.astype(np.uint8)[..., None], axis=-1)[..., -bits:].reshape(60, -1)
            write_gray_png(path, (80, 60), bits, np.packbits(unpacked, axis=1))
        for label_map in (Image.open(path), str(path)):
            labels = self.labels(image_processor, label_map, do_resize=False, do_input_resize=False)
            assert np.array_equal(labels[0].numpy(), ids)

    def test_may_be_arrays_that_torch_cannot_hold(self, image_processor: SEDImageProcessor) -> None:
        labels = np.arange(60 * 80).reshape(60, 80) % 2
        reversed_twice = np.ascontiguousarray(labels[:, ::-1])[:, ::-1]
        for given in (labels.astype(">i4"), reversed_twice, torch.tensor(labels), labels == 1):
            assert torch.equal(self.labels(image_processor, given), self.labels(image_processor, labels))

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.zeros((80, 60), int), r"segmentation_maps\[0\]: expected integers of its image's size \(60, 80\)"),
            (np.zeros((60, 80)), "got float64"),
            ([np.zeros((60, 80), int)] * 2, "one label map for each if any; got 1 and 2 segmentation_maps"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, image_processor: SEDImageProcessor, labels: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.labels(image_processor, labels)


@pytest.mark.parametrize(
    ("images", "message"),
    [([], "images: expected at least one"), ([COLOR, COLOR[:9]], "different sizes without do_input_resize")],
)
def test_images_that_make_no_batch_are_refused(image_processor: SEDImageProcessor, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_processor(images=images, do_input_resize=False, return_tensors="pt")


class TestPostProcessing:
    @staticmethod
    def outputs(*shape: int) -> SimpleNamespace:
        return SimpleNamespace(logits=3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0)))

    def test_many_classes_are_taken_in_chunks(self, image_processor: SEDImageProcessor) -> None:
        outputs = self.outputs(1, 300, 12, 16)
        with LargestTensor() as largest:
            (segmentation,) = image_processor.post_process_semantic_segmentation(outputs, [(150, 400)])
        assert largest.num_bytes <= 2**22 * 4  # of all classes 72 MB
        expected = F.interpolate(outputs.logits.sigmoid(), size=(150, 400), mode="bilinear", align_corners=False)
        assert torch.equal(segmentation, expected[0].argmax(0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_one_logit_that_is_not_finite_is_an_error_that_says_which_image(
        self, image_processor: SEDImageProcessor, dtype: torch.dtype, value: float
    ) -> None:
        outputs = self.outputs(3, 5, 4, 4)
        outputs.logits = outputs.logits.to(dtype)
        outputs.logits[0] = torch.finfo(dtype).min  # as of classes that are rejected in one image and not in others
        image_processor.post_process_semantic_segmentation(outputs)
        outputs.logits[1, 2, 3, 3] = value
        with pytest.raises(NonFiniteLogitsError, match="image 1: the logits are not finite; use float32") as error:
            image_processor.post_process_semantic_segmentation(outputs)
        assert error.value.index == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"target_sizes": [(4, 4)] * 2}, "target_sizes: expected 1, one for each image; got 2"),
            ({"threshold": 1.5}, "threshold=1.5"),
            ({"threshold": 0.5, "ignore_index": 3}, "ignore_index=3 is also one of the 5 classes"),
        ],
    )
    def test_wrong_arguments_are_refused_by_name(
        self, image_processor: SEDImageProcessor, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            image_processor.post_process_semantic_segmentation(self.outputs(1, 5, 4, 4), **arguments)
