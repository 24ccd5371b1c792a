"""The image processor: SED's preprocessing, any image a user has, and back to labels. See also properties/."""

import base64
import itertools
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
from decoder_inputs import LargestTensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import InterpolationMode

from sed_hf import SEDImageProcessor
from sed_hf.image_processing_sed import MAX_PIXELS_VARIABLE, NonFiniteLogitsError, read_rgb, to_labels, to_rgb

COLOR = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
RAMP = np.linspace(0, 1, 12).reshape(3, 4)
AS_STORED = {"do_resize": False, "do_input_resize": False}


def pixel_values(images: Any, **kwargs: Any) -> Tensor:
    """Of an image processor for small images."""
    sizes = {"size": {"shortest_edge": 96, "longest_edge": 384}, "input_size": 128}
    return SEDImageProcessor(**sizes)(images, return_tensors="pt", **kwargs).pixel_values


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 40 × 24 pixels."""
    Image.fromarray(COLOR).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_without_any_step_the_values_are_those_of_the_image() -> None:
    raw = pixel_values(COLOR, **AS_STORED, do_rescale=False, do_normalize=False)
    assert torch.equal(raw[0].to(torch.uint8), torch.tensor(COLOR).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images: expected at least one"),
        ([COLOR, COLOR[:9]], "different sizes without do_input_resize"),
        (np.zeros((5, 6, 2), np.uint8), r"got an array of \(5, 6, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
    ],
)
def test_what_makes_no_batch_of_images_is_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixel_values(images, do_input_resize=False)


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

    def test_misspelt_switches_are_refused_at_a_call_and_at_loading(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="do_reduce_labels"):
            SEDImageProcessor()(COLOR, do_reduce_labels=True)
        SEDImageProcessor().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="do_reduce_labels"):
            SEDImageProcessor.from_pretrained(tmp_path, do_reduce_labels=True)

    @pytest.mark.parametrize(
        ("size", "resample"),
        [
            (12, 2),
            ({"longest_edge": 20}, 2),
            ({"max_height": 12, "max_width": 30}, 2),
            ({"shortest_edge": 12, "longest_edge": 90}, "bicubic"),
            ({"height": 12, "width": 20}, InterpolationMode.BICUBIC),
        ],
    )
    def test_every_size_and_filter_of_transformers_is_taken(self, size: Any, resample: Any) -> None:
        inputs = SEDImageProcessor(do_input_resize=False)(COLOR, size=size, resample=resample)
        assert inputs.pixel_values[0].shape == (3, 12, 20)

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

    def test_exif_orientation_is_applied_unless_it_cannot_be_read(self, path: Path) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6  # by 90°
        damaged = b"Exif\0\0" + b"\x00\x08\x00\x02\x01\x12\x00\x03" + bytes(20)
        for exif, shown in ((turned, np.rot90(COLOR, -1)), (damaged, COLOR)):
            Image.fromarray(COLOR).save(path, exif=exif)
            assert torch.equal(to_rgb(path), to_rgb(shown))

    def test_pil_images_count_as_their_pixels_though_pillow_keeps_exif_data(self, path: Path) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.fromarray(COLOR).save(path, exif=turned)
        photo = Image.open(path)
        processor = SEDImageProcessor(**AS_STORED, do_rescale=False, do_normalize=False)
        for image in (photo, photo.convert("RGB"), photo.crop((0, 0, 30, 20)), photo.rotate(-90, expand=True)):
            inputs = processor(image, image.getchannel("R"))
            assert torch.equal(inputs.pixel_values[0][0], inputs.labels[0].float())

    @pytest.mark.parametrize(
        "image",
        [
            pytest.param(np.ascontiguousarray(COLOR[..., ::-1])[..., ::-1], id="negative stride"),
            pytest.param((COLOR / 255).astype(">f4"), id="big-endian floats"),
            pytest.param(COLOR.astype(">u2") * 257, id="big-endian integers"),
            pytest.param(torch.tensor(COLOR / 255).requires_grad_(), id="requires gradient"),
        ],
    )
    def test_arrays_and_tensors_of_any_kind_are_taken(self, image: Any) -> None:
        assert torch.equal(to_rgb(image), to_rgb(Image.fromarray(COLOR)))

    def test_base64_data_is_taken(self, path: Path) -> None:
        text = base64.b64encode(path.read_bytes()).decode()
        for image in (text, f"data:image/png;base64,{text}"):
            assert torch.equal(to_rgb(image), to_rgb(COLOR))


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
    def test_other_ranges_are_refused(self, values: NDArray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            to_rgb(values)

    @pytest.mark.parametrize("white", [2**12 - 1, 2**16 - 1])
    def test_may_be_stated_for_a_call_or_for_all(self, white: int, path: Path) -> None:
        values = np.rint(white * RAMP).astype(np.uint16)
        levels = np.rint(values * (255 / white)).astype(np.uint8)
        Image.fromarray(values).save(path)
        for image in (values, path, Image.open(path), levels):
            assert np.array_equal(to_rgb(image, rescale_factor=1 / white)[0].numpy(), levels)
            for_a_call = SEDImageProcessor(**AS_STORED)(image, rescale_factor=1 / white).pixel_values[0]
            for_all = SEDImageProcessor(**AS_STORED, rescale_factor=1 / white)(image).pixel_values[0]
            assert torch.equal(for_a_call, pixel_values(levels, **AS_STORED)[0])
            assert torch.equal(for_all, for_a_call)

    @pytest.mark.parametrize("factor", [1 / 256, -1.0])
    def test_of_8_bits_may_be_any_but_that_of_more_bits(self, factor: float) -> None:
        values = pixel_values(COLOR, rescale_factor=factor, do_normalize=False, **AS_STORED)[0].permute(1, 2, 0)
        torch.testing.assert_close(values, torch.from_numpy(COLOR * np.float32(factor)))

    def test_of_floats_that_are_rescaled_already_stays(self) -> None:
        assert torch.equal(pixel_values(RAMP, do_rescale=False), pixel_values(RAMP))

    @pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
    @pytest.mark.parametrize("byte_order", "<>")
    def test_of_a_16_bit_file_is_that_of_its_format(self, name: str, byte_order: str, tmp_path: Path) -> None:
        values = np.linspace(0, 4095, 24 * 40).reshape(24, 40).astype(f"{byte_order}u2")
        Image.fromarray(values).save(tmp_path / name)
        for image, factor in itertools.product((tmp_path / name, Image.open(tmp_path / name)), (None, 1 / 255)):
            assert np.array_equal(to_rgb(image, None, factor)[0].numpy(), np.round(values / 257).astype(np.uint8))
        assert np.array_equal(to_labels(tmp_path / name), values)


class TestFiles:
    @pytest.mark.parametrize("size", [0, 60])
    def test_that_are_damaged_are_named(self, path: Path, size: int) -> None:
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises((OSError, ValueError), match=r"image\.png"):
            read_rgb(path)

    def test_that_another_program_would_run_are_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg", "EPS")  # Pillow goes by the content
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
    def test_is_pillows(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 479)  # twice that is an error
        with pytest.raises(ValueError, match=r"image\.png: .*960 pixels.*SED_HF_MAX_IMAGE_PIXELS"):
            read_rgb(path)

    def test_is_moved_by_the_environment_for_label_maps_too(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, "959")
        for read in (read_rgb, to_rgb, to_labels, SEDImageProcessor()):
            with pytest.raises(ValueError, match=MAX_PIXELS_VARIABLE):
                read(str(path))
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, "960")
        assert read_rgb(path).size == (40, 24)

    def test_may_be_lower_for_one_file(self, path: Path) -> None:
        with pytest.raises(ValueError, match=r"image\.png: .*40 × 24 pixels are more than the 900"):
            read_rgb(path, max_pixels=900)

    @pytest.mark.parametrize("stated", ["", "0", "1e9"])
    def test_that_is_not_a_number_is_refused(self, stated: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, stated)
        with pytest.raises(ValueError, match=r"SED_HF_MAX_IMAGE_PIXELS=.*expected a whole number of pixels"):
            read_rgb(path)


def write_gray_png(path: Path, ids: NDArray[np.integer], bits: int) -> None:
    """A grey PNG of 1, 2, 4 or 8 bits, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = ids.shape
    unpacked = np.unpackbits(ids.astype(np.uint8)[..., None], axis=-1)[..., -bits:].reshape(height, -1)
    content = b"".join(b"\0" + row.tobytes() for row in np.packbits(unpacked, axis=1))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b""))


def write_palette_png(path: Path, ids: NDArray[np.integer], bits: int) -> None:
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path, bits=bits)


def labels_of(segmentation_maps: Any) -> Tensor:
    """The labels of an image of 80 × 60 pixels."""
    return SEDImageProcessor(**AS_STORED)(np.zeros((60, 80, 3), np.uint8), segmentation_maps).labels


class TestSegmentationMaps:
    @pytest.mark.parametrize(
        ("write", "bits", "count"),
        [
            *((write_gray_png, bits, 2**bits) for bits in (1, 2, 4, 8)),
            (write_palette_png, 4, 16),
            (write_palette_png, 8, 200),
            (lambda path, ids, bits: Image.fromarray(ids.astype(np.uint16)).save(path), 16, 2**16),
            (lambda path, ids, bits: Image.fromarray(ids.astype(np.uint8)).save(path, "GIF"), 8, 256),
        ],
    )
    def test_the_stored_ids_are_read(self, write: Any, bits: int, count: int, tmp_path: Path) -> None:
        ids = np.arange(60 * 80).reshape(60, 80) % count
        write(tmp_path / "labels.png", ids, bits)
        for label_map in (Image.open(tmp_path / "labels.png"), str(tmp_path / "labels.png")):
            assert np.array_equal(labels_of(label_map)[0].numpy(), ids)

    def test_are_resized_where_float64_is_known(self) -> None:
        class WithoutFloat64(TorchDispatchMode):
            """Has the device "meta" stand for MPS."""

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                kinds = [(leaf.device.type, leaf.dtype) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
                assert ("meta", torch.float64) not in kinds
                return result

        with WithoutFloat64():
            (labels,) = SEDImageProcessor()(COLOR, COLOR[..., 0], device="meta").labels
        assert (labels.device.type, labels.dtype) == ("meta", torch.int64)

    def test_may_be_arrays_that_torch_cannot_hold(self) -> None:
        labels = np.arange(60 * 80).reshape(60, 80) % 2
        reversed_twice = np.ascontiguousarray(labels[:, ::-1])[:, ::-1]
        for given in (labels.astype(">i4"), reversed_twice, torch.tensor(labels), labels == 1):
            assert torch.equal(labels_of(given)[0], torch.tensor(labels))

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.zeros((80, 60), int), r"segmentation_maps\[0\]: expected integers of its image's size \(60, 80\)"),
            (np.zeros((60, 80)), "got float64"),
            ([np.zeros((60, 80), int)] * 2, "one label map for each if any; got 1 and 2 segmentation_maps"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, labels: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            labels_of(labels)


class TestPostProcessing:
    process = staticmethod(SEDImageProcessor().post_process_semantic_segmentation)

    def outputs(self, *shape: int) -> SimpleNamespace:
        return SimpleNamespace(logits=3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0)))

    def test_many_classes_are_taken_in_chunks(self) -> None:
        outputs = self.outputs(1, 300, 12, 16)
        with LargestTensor() as largest:
            (segmentation,) = self.process(outputs, [(150, 400)])
        assert largest.num_bytes <= 2**22 * 4  # of all classes 72 MB
        expected = F.interpolate(outputs.logits.sigmoid(), size=(150, 400), mode="bilinear", align_corners=False)
        assert torch.equal(segmentation, expected[0].argmax(0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_one_logit_that_is_not_finite_is_an_error_that_says_which_image(self, dtype: Any, value: float) -> None:
        outputs = self.outputs(3, 5, 4, 4)
        outputs.logits = outputs.logits.to(dtype)
        outputs.logits[0] = torch.finfo(dtype).min  # as of classes that are rejected in one image and not in others
        self.process(outputs)
        outputs.logits[1, 2, 3, 3] = value
        with pytest.raises(NonFiniteLogitsError, match="image 1: the logits are not finite; use float32") as error:
            self.process(outputs)
        assert error.value.index == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"target_sizes": [(4, 4)] * 2}, "target_sizes: expected 1, one for each image; got 2"),
            ({"threshold": 1.5}, "threshold=1.5"),
            ({"threshold": 0.5, "ignore_index": 3}, "ignore_index=3 is also one of the 5 classes"),
        ],
    )
    def test_wrong_arguments_are_refused_by_name(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.process(self.outputs(1, 5, 4, 4), **arguments)
