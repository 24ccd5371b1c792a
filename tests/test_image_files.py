"""Picture files: a stated limit of pixels that a user can move, no other programs, no file that never ends."""

import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from sed_hf import SEDImageProcessor
from sed_hf.data.features import SegmentationMap
from sed_hf.image_files import MAX_PIXELS_VARIABLE, max_image_pixels, read_image
from sed_hf.inference.segmenter import UnreadablePictureError, read_picture

PILLOWS_LIMIT = 178_956_970


def bomb(path: Path, width: int, height: int) -> Path:
    """A small PNG file that states a large size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b""))
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30)).save(path)
    return path


class TestLimit:
    def test_is_pillows_unless_it_is_stated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max_image_pixels() == PILLOWS_LIMIT
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # as programs set it that know Pillow
        assert max_image_pixels() == 100
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, "500000000")
        assert max_image_pixels() == 500_000_000

    def test_refuses_a_bomb_by_its_header_with_the_way_to_raise_it(self, tmp_path: Path) -> None:
        message = r"bomb\.png.*60000 × 50000 pixels are more than the 178,956,970.*SED_HF_MAX_IMAGE_PIXELS"
        with pytest.raises(ValueError, match=message):
            read_image(bomb(tmp_path / "bomb.png", 60_000, 50_000))

    def test_lets_a_picture_through_once_it_is_raised(self, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        with pytest.raises(ValueError, match="more than the 100 that are read"):
            read_image(picture)
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1200")
        assert read_image(picture).size == (40, 30)
        assert Image.MAX_IMAGE_PIXELS == 50

    def test_holds_for_the_command_the_processor_and_label_maps(
        self, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1199")
        with pytest.raises(UnreadablePictureError, match="more than the 1,199"):
            read_picture(picture, SEDImageProcessor())
        with pytest.raises(ValueError, match="more than the 1,199"):
            SEDImageProcessor()(images=str(picture))
        with pytest.raises(ValueError, match="more than the 1,199"):
            SegmentationMap(names=["sky"]).decode_example({"path": str(picture), "bytes": None})

    @pytest.mark.parametrize("stated", ["", "many", "-1", "0", "1e9"])
    def test_that_is_no_number_is_refused(self, stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, stated)
        with pytest.raises(ValueError, match=r"SED_HF_MAX_IMAGE_PIXELS=.*expected a whole number of pixels"):
            max_image_pixels()


class TestFiles:
    @pytest.mark.parametrize("size", [0, 20, 60])
    def test_that_are_damaged_are_named(self, picture: Path, size: int) -> None:
        picture.write_bytes(picture.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"picture\.png: expected a picture"):
            read_image(picture)

    def test_that_another_program_would_run_are_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "drawing.eps")
        (tmp_path / "drawing.eps").rename(tmp_path / "photo.jpg")  # Pillow goes by the content
        with pytest.raises(ValueError, match="cannot identify image file"):
            read_image(tmp_path / "photo.jpg")

    def test_that_never_end_are_not_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(OSError, match=r"pipe\.png: expected a file, found something else"):
            read_image(tmp_path / "pipe.png")
        with pytest.raises(OSError, match="expected a file, found something else"):
            read_image("/dev/zero")
