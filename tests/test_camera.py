import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sed_hf.camera import camera_device, newest, show_live


class FakeWindow:
    """A window that a person closes after some pictures."""

    def __init__(self, num_pictures: int) -> None:
        self.num_pictures = num_pictures
        self.shown: list[Image.Image] = []

    def show(self, picture: Image.Image) -> bool:
        self.shown.append(picture)
        return len(self.shown) < self.num_pictures


def segment(pictures: list[Image.Image]) -> list[dict[str, np.ndarray]]:
    return [{"segmentation": np.zeros((picture.height, picture.width), dtype=int)} for picture in pictures]


def endless_camera() -> Iterator[Image.Image]:
    while True:
        yield Image.new("RGB", (640, 480))


def test_pictures_are_shown_with_overlay_and_legend_until_the_window_is_closed() -> None:
    window = FakeWindow(3)
    show_live(endless_camera(), window, segment, ["wall"])
    assert len(window.shown) == 3
    assert {picture.width for picture in window.shown} == {640}
    assert {picture.height > 480 for picture in window.shown} == {True}


def test_camera_that_ends_ends_the_loop() -> None:
    window = FakeWindow(100)
    show_live([Image.new("RGB", (64, 48))], window, segment, ["wall"])
    assert len(window.shown) == 1


def test_slow_consumer_gets_the_newest_item_and_not_those_that_piled_up() -> None:
    first_is_taken, all_have_come = threading.Event(), threading.Event()

    def come_quickly() -> Iterator[int]:
        yield 0
        first_is_taken.wait(5)
        yield from range(1, 10)
        all_have_come.set()

    taken = []
    for item in newest(come_quickly()):
        taken.append(item)
        first_is_taken.set()
        all_have_come.wait(5)
    assert taken == [0, 9]


def test_error_of_the_camera_reaches_the_consumer() -> None:
    def unplugged() -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(newest(unplugged()))


@pytest.mark.parametrize(
    ("platform", "device", "device_format"),
    [("linux", "/dev/video1", "v4l2"), ("darwin", "1:none", "avfoundation")],
)
def test_camera_is_named_as_the_platform_does(platform: str, device: str, device_format: str) -> None:
    assert camera_device(1, platform)[:2] == (device, device_format)


def test_camera_of_windows_is_the_one_at_its_place_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [
        SimpleNamespace(name="Microphone", media_types=["audio"]),
        SimpleNamespace(name="Front", media_types=["video"]),
        SimpleNamespace(name="Back", media_types=["video"]),
    ]
    monkeypatch.setattr("av.enumerate_input_devices", lambda name: devices)
    assert camera_device(1, "win32")[:2] == ("video=Back", "dshow")
    with pytest.raises(OSError, match="camera:2: expected a camera, but Windows lists 2"):
        camera_device(2, "win32")
