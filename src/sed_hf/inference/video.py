"""Videos: decoded, segmented in batches of frames, drawn, and encoded again with their sound. Needs PyAV."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from .. import visualization as vis
from ..image_processing_sed import check_pixels
from ..terminal import progress_bar
from ..utils import atomic_path
from .segmenter import Segmenter
from .writers import summary as summary_of

# Sound that players expect in an MP4 file is copied; other sound is encoded to AAC.
COPIED_SOUND = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
MAX_LISTED = 22  # classes in the legend
MIN_LISTED_SHARE = 0.005  # of a frame; smaller classes would make a long vocabulary's legend flicker


class UnreadableVideoError(ValueError):
    """A file cannot be read as a video; the message says why."""


def segment_video(video: Path, overlay: Path, summary: Path, segmenter: Segmenter, batch_size: int = 1) -> None:
    """Write a video with class colours, legend, and the sound of the original, and a summary, with a progress bar.

    The MP4 file `overlay` is written before the JSON file `summary`.

    Raises:
        UnreadableVideoError: The file is not a video, or cannot be read to its end.
    """
    size = check_video(video)
    totals = vis.ClassTotals(segmenter.class_names, segmenter.ignore_index)
    drawing = VideoOverlay(size, segmenter.class_names, segmenter.ignore_index)
    with open_video(video) as source, atomic_path(summary) as summary_path, atomic_path(overlay) as overlay_path:
        with overlay_path.open("wb") as file:
            writer = VideoWriter(file, drawing.size, source)
            try:
                with progress_bar(total=source.video.frames or None, desc=video.name, unit="frame") as progress:
                    for batch in batches(source, writer, batch_size):
                        images = [source.image(frame) for frame in batch]
                        for frame, image, result in zip(batch, images, segmenter(images), strict=True):
                            totals.add(result["segmentation"], result["probability"])
                            writer.write(frame, drawing.draw(image, result["segmentation"]))
                            progress.update()
                writer.close()
            except BaseException:
                with suppress(OSError, av.FFmpegError):  # of a full disk, for one, on which FFmpeg cannot end the file
                    writer.container.close()
                raise
        text = summary_of(video, size, totals, segmenter.model.name_or_path, frames=writer.num_frames)
        summary_path.write_text(text, encoding="utf-8")


def check_video(path: Path) -> tuple[int, int]:
    """Width and height of a video in pixels, as it is shown."""
    with open_video(path) as source:
        for item in source:
            if isinstance(item, av.VideoFrame):
                return source.image(item).size
    raise UnreadableVideoError("expected a video, but no frame of it can be decoded")


def batches(source: "VideoSource", writer: "VideoWriter", size: int) -> Iterator[list[av.VideoFrame]]:
    """The frames in batches; the sound between them is written at once."""
    batch = []
    for item in source:
        if isinstance(item, av.Packet):
            writer.write_sound(item)
            continue
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def decode(packet: av.Packet) -> list[Any]:
    """The frames of a packet; none if it is damaged, since those after it may be whole."""
    with suppress(av.error.InvalidDataError):
        return packet.decode()
    return []


@contextmanager
def open_video(path: Path) -> Iterator["VideoSource"]:
    """Open a video to read it."""
    with path.open("rb") as file:  # by its name, FFmpeg would take "12:30.mp4" for an address
        try:
            container = av.open(file, "r", metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise UnreadableVideoError(f"expected a video, but it cannot be read: {error.strerror}") from error
        with container:
            yield VideoSource(container)


class VideoSource:
    """Decodes the frames of a video, and hands on the packets of its sound. Iterate over it once."""

    def __init__(self, container: av.container.InputContainer) -> None:
        video: Any = container.streams.best("video")
        if video is None or video.codec_context is None:
            found = ", ".join(stream.type for stream in container.streams) or "none"
            raise UnreadableVideoError(f"expected a video, but FFmpeg has a decoder for none of its streams: {found}")
        video.thread_type = "AUTO"
        self.container = container
        self.video = video
        self.sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
        self.frame_rate = Fraction(video.average_rate or video.guessed_rate or 25)
        # Pixels need not be square, and frames may change their size.
        self.decoded_size = (max(1, round(video.width * (video.sample_aspect_ratio or 1))), max(1, video.height))
        try:
            check_pixels(*self.decoded_size)
        except ValueError as error:
            raise UnreadableVideoError(f"its frames are too large: {error}") from error

    def __iter__(self) -> Iterator[av.VideoFrame | av.Packet]:
        """Frames and packets of sound in the order of the file; damaged frames are left out."""
        frame_time = max(1, round(1 / (self.frame_rate * self.video.time_base)))
        next_pts = self.video.start_time or 0
        avi_times: deque[int] = deque()
        try:
            for packet in self.container.demux(self.video, *self.sounds):
                if packet.stream.type == "audio":
                    yield packet
                    continue
                # AVI holds no time stamps, and FFmpeg guesses wrong ones; but its packets, which are in the order of
                # decoding, are counted, also those that are left out to repeat the frame before.
                if self.container.format.name == "avi" and packet.dts is not None:
                    avi_times.append(packet.dts)
                for frame in decode(packet):
                    if avi_times:
                        frame.pts = avi_times.popleft()
                    if frame.pts is None or frame.pts <= next_pts - frame_time:  # damaged files have some that go back
                        frame.pts = next_pts
                    next_pts = frame.pts + frame_time
                    yield frame
        except (av.FFmpegError, OSError) as error:
            raise UnreadableVideoError(f"the file is damaged: {error.strerror}") from error

    def image(self, frame: av.VideoFrame) -> Image.Image:
        """A frame as an RGB image, the right way up and with square pixels."""
        width, height = self.decoded_size
        return frame.to_image(width=width, height=height).rotate(frame.rotation, expand=True)  # phones film so


class VideoWriter:
    """Encodes frames of a size of even numbers to an MP4 file with the times and the sound of a video that is read."""

    def __init__(self, file: BinaryIO, size: tuple[int, int], source: VideoSource) -> None:
        self.num_frames = 0
        # Recordings of television do not start at 0.
        offset = {"output_ts_offset": str(-(source.container.start_time or 0) / av.time_base)}
        self.container = av.open(file, "w", format="mp4", options=offset)
        rate = max(1, round(source.frame_rate))
        options: Any = {"crf": "20", "preset": "veryfast"}  # the text of the legend stays crisp
        self.stream: Any = self.container.add_stream("h264", rate=rate, options=options)
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "yuv420p"
        self.stream.gop_size = 2 * rate  # players can seek to every second second
        context = self.stream.codec_context
        context.time_base = source.video.time_base
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # MPEG: 16 to 235
        self.encoders = [self.stream]
        self.sounds: dict[int, Any] = {}
        for sound in source.sounds:
            if sound.codec_context.codec.canonical_name in COPIED_SOUND:
                self.sounds[sound.index] = self.container.add_stream_from_template(sound)
            else:
                # Where a file names no layout, FFmpeg's is "2 channels"; "2c" is the usual one of so many.
                layout = sound.layout.name.replace(" channels", "c")
                self.sounds[sound.index] = self.container.add_stream("aac", rate=48_000, layout=layout)
                self.encoders.append(self.sounds[sound.index])

    def write(self, frame: av.VideoFrame, image: Image.Image) -> None:
        """Write the image that was made of a frame."""
        # Players take HD video without a colour space for BT.709, and SD video for BT.601: so it is named.
        pixels = av.VideoFrame.from_image(image).reformat(format="yuv420p", dst_colorspace="ITU709")
        pixels.pts, pixels.time_base, pixels.duration = frame.pts, frame.time_base, frame.duration
        self.container.mux(self.stream.encode(pixels))
        self.num_frames += 1

    def write_sound(self, packet: av.Packet) -> None:
        """Write a packet of one of the source's audio streams: as it is, or encoded to AAC."""
        stream = self.sounds[packet.stream.index]
        if stream in self.encoders:
            for frame in decode(packet):
                self.container.mux(stream.encode(frame))
        elif packet.dts is not None:  # without a time, it is the mark of the end
            packet.stream = stream
            self.container.mux(packet)

    def close(self) -> None:
        """Write what the encoders hold back, and finish the file."""
        for stream in self.encoders:
            self.container.mux(stream.encode(None))
        self.container.close()


class VideoOverlay:
    """Draws the frames of one video: as [`draw_overlay`] draws an image, but steady from frame to frame.

    All frames get the same `size`, of even numbers. A short vocabulary is listed completely, with classes that are out
    of view faded. Of a longer one, a class enters when it first covers half a percent of a frame, later ones take the
    places of those that have been out of view longest, and the last row says how many in view have no place.
    """

    def __init__(self, size: tuple[int, int], class_names: Sequence[str], ignore_index: int | None = None) -> None:
        self.class_names = class_names
        self.ignore_index = ignore_index
        self.places = np.arange(len(class_names))  # class index at each place of the legend; -1: free
        if len(class_names) > MAX_LISTED:
            self.places = np.full(MAX_LISTED, -1)
        self.frames_out_of_view = np.where(self.places < 0, np.inf, 0)
        num_rows = len(self.places) + (len(class_names) > MAX_LISTED) + (ignore_index is not None)
        self.legend = vis.Legend(vis.display_size(size), [*class_names, vis.NO_CLASS], num_rows, is_steady=True)
        self.size = (self.legend.size[0] // 2 * 2, self.legend.size[1] // 2 * 2)

    def draw(self, frame: Image.Image, segmentation: npt.NDArray[np.integer]) -> Image.Image:
        """Draw the next frame, RGB, with its class indices (height, width): an RGB image of `size`."""
        statistics = vis.class_statistics(segmentation, self.class_names, ignore_index=self.ignore_index)
        in_view = np.isin(self.places, [entry.index for entry in statistics])
        self.frames_out_of_view = np.where(in_view, 0, self.frames_out_of_view + 1)
        for entry in statistics:  # the largest first
            place = np.argmax(self.frames_out_of_view)
            if entry.index not in self.places and entry.share >= MIN_LISTED_SHARE and self.frames_out_of_view[place]:
                self.places[place] = entry.index
                self.frames_out_of_view[place] = 0
        rows = vis.legend_rows(self.places.tolist(), statistics, self.class_names, self.ignore_index)
        regions = vis.draw_regions(frame, segmentation, self.class_names, ignore_index=self.ignore_index)
        return self.legend.draw(regions, rows).crop((0, 0, *self.size))
