"""A camera in a live window, each frame segmented as soon as the last one is shown. Needs the extra `video`."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import Protocol, TypeVar

from PIL import Image

from .video import SegmentPictures, av
from .video_overlay import VideoOverlay

MAX_WAIT = 0.1  # seconds between two looks at whether to stop

Item = TypeVar("Item")


class Window(Protocol):
    """Where the frames are shown."""

    def show(self, picture: Image.Image) -> bool:
        """Show a picture; whether the window is still open."""


class LiveWindow:
    """A window of the desktop; it is closed by its button, `q` or Esc.

    Raises:
        OSError: There is no display, or Python came without tkinter.
    """

    def __init__(self, title: str) -> None:
        try:
            import tkinter
        except ImportError as error:
            raise OSError(f"{title}: the live window needs tkinter, in Debian the package python3-tk") from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise OSError(f"{title}: the live window needs a display: {error}") from error
        self._root.title(title)
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._is_open = True
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        for key in ("q", "<Escape>"):
            self._root.bind(key, lambda event: self.close())
        self._root.update()

    def show(self, picture: Image.Image) -> bool:
        """Show a picture, made smaller if the screen is; whether the window is still open."""
        from PIL import ImageTk

        self._root.update()  # a click on the close button since the last frame is handled here
        if self._is_open:
            picture.thumbnail((self._root.winfo_screenwidth(), self._root.winfo_screenheight()))
            self._photo = ImageTk.PhotoImage(picture, master=self._root)  # tkinter itself keeps no reference
            self._label.configure(image=self._photo)
            self._root.update()
        return self._is_open

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._root.destroy()


class Camera:
    """The frames of a camera as RGB pictures.

    Args:
        index: Which camera, from 0.

    Raises:
        OSError: There is no such camera, or it cannot be opened.
    """

    def __init__(self, index: int) -> None:
        device, device_format, options = camera_device(index, sys.platform)
        try:
            self._container = av.open(device, format=device_format, options=options)
        except (av.FFmpegError, ValueError) as error:  # ValueError: a PyAV that was built without cameras
            reason = error.strerror if isinstance(error, av.FFmpegError) else error
            raise OSError(f"camera:{index}: expected a camera, but {device} cannot be opened: {reason}") from error

    def __iter__(self) -> Iterator[Image.Image]:
        return (frame.to_image() for frame in self._container.decode(video=0))

    def close(self) -> None:
        self._container.close()


def camera_device(index: int, platform: str) -> tuple[str, str, dict[str, str]]:
    """FFmpeg's name of a camera, its input format, and options, on a platform as `sys.platform` names it.

    Raises:
        OSError: Windows lists no such camera.
    """
    if platform == "darwin":
        return f"{index}:none", "avfoundation", {"framerate": "30"}  # its default of 29.97 is refused by many cameras
    if platform == "win32":
        devices = [d for d in av.enumerate_input_devices("dshow") if "video" in d.media_types]
        if index >= len(devices):
            raise OSError(f"camera:{index}: expected a camera, but Windows lists {len(devices)}")
        return f"video={devices[index].name}", "dshow", {}
    return f"/dev/video{index}", "v4l2", {}


def show_live(
    pictures: Iterable[Image.Image],
    window: Window,
    segment: SegmentPictures,
    class_names: Sequence[str],
    *,
    ignore_index: int | None = None,
) -> None:
    """Segment the newest picture, show it with overlay and legend, and so on until the window is closed.

    Args:
        pictures: RGB, all of one size, as they come.
        window: Where to show them.
        segment: Segments a batch of one picture.
        class_names: The T class names.
        ignore_index: Label of pixels that have no class.
    """
    overlay: VideoOverlay | None = None
    with closing(newest(pictures)) as newest_pictures:
        for picture in newest_pictures:
            overlay = overlay or VideoOverlay(picture.size, class_names, ignore_index=ignore_index)
            [result] = segment([picture])
            if not window.show(overlay.draw(picture, result["segmentation"])):
                return


def newest(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The newest item at each time that one is asked for; those that came and went between are left out.

    A thread takes the items as they come, so that a camera's frames do not pile up behind a slow consumer.
    """
    waiting: queue.Queue[Item] = queue.Queue(maxsize=1)
    ended = threading.Event()
    stopped = threading.Event()
    errors: list[Exception] = []

    def read() -> None:
        try:
            for item in items:
                with suppress(queue.Empty):
                    waiting.get_nowait()
                waiting.put(item)
                if stopped.is_set():
                    return
        except Exception as error:  # it belongs to the thread that consumes
            errors.append(error)
        finally:
            ended.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            try:
                yield waiting.get(timeout=MAX_WAIT)
            except queue.Empty:
                if ended.is_set() and waiting.empty():
                    if errors:
                        raise errors[0] from None
                    return
    finally:
        stopped.set()
        reader.join(timeout=1)  # a camera must not be closed while it is read
