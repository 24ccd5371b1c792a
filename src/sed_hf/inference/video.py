"""Videos: decoded, segmented in batches of frames, drawn, and encoded again with their sound. Needs PyAV."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..image_processing_sed import TooManyPixelsError, check_pixels
from ..terminal import progress_bar, say
from ..utils import atomic_path
from ..visualization import (
    NO_CLASS,
    ClassTotals,
    Legend,
    LegendRow,
    class_colors,
    class_statistics,
    display_size,
    draw_regions,
)
from .writers import summary as summary_of

try:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.stream import Disposition
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
except ImportError as error:
    raise ImportError("videos need PyAV: pip install '.[video]' in the clone of sed-hf") from error

if TYPE_CHECKING:
    from .segmenter import Segmenter

# Encoders and their options for a quality at which the text of the legend stays crisp; the first one present is taken.
VIDEO_ENCODERS = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    "mpeg4": {"qmin": "2", "qmax": "4", "b": "20M"},
}
# Sound that players expect in an MP4 file is copied; other sound is encoded to AAC.
COPIED_SOUND = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
MAX_MPEG4_TIME_BASE = 60_000  # ticks a second: MPEG-4 allows no more than 65535, and common frame rates divide this one
# PyAV 18 reads no file whose title is not UTF-8 unless it is told how; PyAV 19 reads all, and has no such argument.
METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
KEYFRAME_SECONDS = 2  # how exactly players can seek
MAX_LEGEND_ROWS = 24
CLEARLY_VISIBLE = 0.005  # share of a frame; a smaller class takes no other's place in the legend


class UnreadableVideoError(ValueError):
    """A file cannot be read as a video; the message says why."""


def segment_video(
    video: Path, overlay: Path, summary: Path, segmenter: Segmenter, *, model_name: str, batch_size: int = 1
) -> None:
    """Write a video with class colours, legend, and the sound of the original, and a summary, with a progress bar.

    If it is interrupted, the frames so far are kept under the overlay's name with ".partial" before its ending, and a
    message says so.

    Args:
        video: File to read.
        overlay: MP4 file to write.
        summary: JSON file to write, after the overlay.
        segmenter: Segments the frames of a batch.
        model_name: For the summary.
        batch_size: Frames at a time.

    Raises:
        UnreadableVideoError: The file is not a video, or cannot be read to its end.
        OSError: The result cannot be written.
    """
    totals = ClassTotals(segmenter.class_names, segmenter.ignore_index)
    with open_video(video) as reader, atomic_path(summary) as summary_path, atomic_path(overlay) as overlay_path:
        drawing = VideoOverlay(reader.size, segmenter.class_names, segmenter.ignore_index)
        with overlay_path.open("wb") as file:
            writer = VideoWriter(file, drawing.size, reader)
            try:
                with progress_bar(total=reader.num_frames, desc=video.name, unit="frame") as progress:
                    for batch in _batches(reader, writer, batch_size):
                        results = segmenter([frame.image for frame in batch])
                        for frame, result in zip(batch, results, strict=True):
                            totals.add(result["segmentation"], result["probability"])
                            writer.write(frame, drawing.draw(frame.image, result["segmentation"]))
                            progress.update()
                writer.close()
            except BaseException:
                with suppress(OSError, av.FFmpegError):  # of a full disk, for one, where nothing can be kept
                    _keep_partial(writer, overlay_path, overlay)
                raise
        text = summary_of(
            video,
            reader.size,
            totals.statistics(),
            totals.ignored_pixels,
            model_name,
            frames=writer.num_frames,
        )
        summary_path.write_text(text, encoding="utf-8")


def check_video(path: Path) -> None:
    """Refuse a file of which no frame can be decoded.

    Raises:
        UnreadableVideoError: The message says what it is.
    """
    with open_video(path):
        pass


def _batches(reader: VideoReader, writer: VideoWriter, size: int) -> Iterator[list[Frame]]:
    """The frames in batches; the sound between them is written at once."""
    batch = []
    for item in reader:
        if not isinstance(item, Frame):
            writer.write_sound(item)
            continue
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _keep_partial(writer: VideoWriter, written: Path, overlay: Path) -> None:
    """Finish an interrupted video so that it plays, and keep it under a name that says what it is."""
    writer.close()
    if writer.num_frames:
        partial = overlay.with_name(f"{overlay.stem}.partial{overlay.suffix}")
        with atomic_path(partial) as path:
            written.rename(path)
        say(f"the first {writer.num_frames} frames are in {partial}")


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One frame of a video, the right way up and with square pixels.

    Attributes:
        image: RGB.
        pts: When it is shown, in units of the video stream's time base.
        duration: How long, in the same units; 0: not known.
    """

    image: Image.Image
    pts: int
    duration: int


@contextmanager
def open_video(path: Path) -> Iterator[VideoReader]:
    """Open a video to read it.

    Raises:
        UnreadableVideoError: FFmpeg cannot read it, or it has no video stream, or no frame of it can be decoded.
    """
    with path.open("rb") as file:  # by its name alone, FFmpeg would take "12:30.mp4" for an address
        try:
            container = av.open(file, **METADATA)
        except (av.FFmpegError, OSError) as error:
            raise UnreadableVideoError(f"expected a video, but it cannot be read: {error.strerror}") from error
        with container:
            yield VideoReader(container)


class VideoReader:
    """Decodes the frames of a video, and hands on the packets of its sound. Iterate over it once.

    Args:
        container: See [`open_video`].

    Attributes:
        video: The first video stream that is not a cover image.
        sounds: The audio streams.
        size: Width and height of the frames in pixels, as they are shown.
    """

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        self.video = _choose_video_stream(container)
        self.video.thread_type = "AUTO"
        self.sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
        # AVI holds no time stamps, and FFmpeg guesses them wrong where frames are stored in another order than they are
        # shown. So each frame gets the time of the next packet that was read.
        self._avi_pts: deque[int] = deque()
        self._decoded_size: tuple[int, int] | None = None  # of the first frame; later ones are scaled to it
        self._items = self._read()
        self._first_items = []  # the first frame, which tells the size, and the sound before it
        for item in self._items:
            self._first_items.append(item)
            if isinstance(item, Frame):
                self.size = item.image.size
                return
        raise UnreadableVideoError("expected a video, but no frame of it can be decoded")

    @property
    def time_base(self) -> Fraction:
        """Seconds in a unit of the frames' time stamps."""
        return Fraction(self.video.time_base or Fraction(1, av.time_base))

    @property
    def frame_rate(self) -> Fraction:
        """Frames a second on average."""
        return Fraction(self.video.average_rate or self.video.guessed_rate or 25)

    @property
    def num_frames(self) -> int | None:
        """About how many frames there are, if the file says so."""
        seconds = (self.video.duration or 0) * self.time_base or Fraction(self._container.duration or 0, av.time_base)
        return self.video.frames or round(seconds * self.frame_rate) or None

    def start(self, time_base: Fraction) -> int:
        """The time stamp with which the file starts: 0 in most, but not in recordings of television."""
        return round(Fraction(self._container.start_time or 0, av.time_base) / time_base)

    def __iter__(self) -> Iterator[Frame | av.Packet]:
        """Frames and packets of sound in the order of the file; damaged frames are left out.

        Raises:
            UnreadableVideoError: The file is damaged so that nothing more can be read.
        """
        return chain(self._first_items, self._items)

    def _read(self) -> Iterator[Frame | av.Packet]:
        last_pts = -1
        try:
            for packet in self._container.demux(self.video, *self.sounds):
                if packet.stream.index != self.video.index:
                    yield packet
                    continue
                if self._container.format.name == "avi" and packet.dts is not None and packet.size:
                    self._avi_pts.append(packet.dts)
                for frame in _decode(packet):
                    last_pts = self._pts(frame, last_pts)
                    yield Frame(self._upright_image(frame), last_pts, frame.duration)
        except (av.FFmpegError, OSError) as error:
            raise UnreadableVideoError(f"the file is damaged: {error.strerror}") from error

    def _upright_image(self, frame: VideoFrame) -> Image.Image:
        if self._decoded_size is None:
            width = max(1, round(frame.width * Fraction(self.video.sample_aspect_ratio or 1)))
            try:
                check_pixels(width, frame.height)
            except TooManyPixelsError as error:
                raise UnreadableVideoError(f"its frames are too large: {error}") from error
            self._decoded_size = (width, frame.height)
        pixels = frame.to_ndarray(format="rgb24", width=self._decoded_size[0], height=self._decoded_size[1])
        # Phones film upright videos so: a player turns the frame counterclockwise.
        return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))))

    def _pts(self, frame: VideoFrame, last_pts: int) -> int:
        """The time stamp from the start of the file; one that is missing or goes back comes after the last one."""
        pts = self._avi_pts.popleft() if self._avi_pts else frame.pts
        if pts is None:
            return last_pts + max(1, round(1 / (self.frame_rate * self.time_base))) if last_pts >= 0 else 0
        return max(pts - self.start(self.time_base), last_pts + 1)


def _choose_video_stream(container: InputContainer) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        found = ", ".join(stream.type for stream in container.streams) or "none"
        raise UnreadableVideoError(f"expected a video, but the file has no video stream; its streams: {found}")
    if streams[0].codec_context is None:
        raise UnreadableVideoError("expected a video, but FFmpeg has no decoder for it")
    return streams[0]


def _decode(packet: av.Packet) -> list[Any]:
    """The frames of a packet; without those that are damaged, since the ones after them may be whole."""
    try:
        return packet.decode()
    except av.error.InvalidDataError:
        return []


# Writing -------------------------------------------------------------------------------------------------------------


class VideoWriter:
    """Encodes frames to an MP4 file with the time stamps and the sound of a video that was read.

    Args:
        file: Where to write.
        size: Width and height of the frames in pixels, even numbers.
        source: The video.

    Attributes:
        num_frames: How many frames were written.
    """

    def __init__(self, file: BinaryIO, size: tuple[int, int], source: VideoReader) -> None:
        self.num_frames = 0
        self._source = source
        self._container = av.open(file, "w", format="mp4")
        self._stream = self._add_video_stream(size)
        self._sounds = {stream.index: self._add_sound(stream) for stream in source.sounds}

    def write(self, frame: Frame, image: Image.Image) -> None:
        """Write the image that was made of a frame."""
        # Players take HD video without a colour space for BT.709, and SD video for BT.601: so it is named.
        pixels = VideoFrame.from_image(image).reformat(format="yuv420p", dst_colorspace="ITU709")
        pixels.pts, pixels.time_base, pixels.duration = frame.pts, self._source.time_base, frame.duration
        self._container.mux(self._stream.encode(pixels))
        self.num_frames += 1

    def write_sound(self, packet: av.Packet) -> None:
        """Write a packet of one of the source's audio streams: as it is, or encoded to AAC."""
        source = packet.stream
        stream, start = self._sounds[source.index]
        if not _is_copied(source):
            for frame in _decode(packet):
                if frame.pts is not None:
                    frame.pts -= start
                self._container.mux(stream.encode(frame))
        elif packet.dts is not None:  # without a time, it is the mark of the end
            packet.dts -= start
            if packet.pts is not None:
                packet.pts -= start
            packet.stream = stream
            self._container.mux(packet)

    def close(self) -> None:
        """Write what the encoders hold back, and finish the file."""
        with closing(self._container):
            if self.num_frames:
                self._container.mux(self._stream.encode(None))
            for source in self._source.sounds:
                if not _is_copied(source):
                    self._container.mux(self._sounds[source.index][0].encode(None))

    def _add_video_stream(self, size: tuple[int, int]) -> VideoStream:
        encoder = next(name for name in VIDEO_ENCODERS if name in av.codecs_available)
        rate = self._source.frame_rate.limit_denominator(1001)
        stream = self._container.add_stream(encoder, rate=rate, options=dict(VIDEO_ENCODERS[encoder]))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = max(1, round(KEYFRAME_SECONDS * rate))
        context = stream.codec_context
        context.time_base = self._source.time_base
        if encoder == "mpeg4" and context.time_base < Fraction(1, MAX_MPEG4_TIME_BASE):
            context.time_base = Fraction(1, MAX_MPEG4_TIME_BASE)
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # MPEG: 16 to 235
        return stream

    def _add_sound(self, source: AudioStream) -> tuple[AudioStream, int]:
        """An audio stream, and the time stamp of the source's that is its 0."""
        start = self._source.start(Fraction(source.time_base or Fraction(1, source.rate)))
        if _is_copied(source):
            return self._container.add_stream_from_template(source), start
        rates = av.Codec("aac", "w").audio_rates or []
        stream = self._container.add_stream("aac", rate=source.rate if source.rate in rates else 48_000)
        assert isinstance(stream, AudioStream)
        stream.layout = source.layout
        return stream, start


def _is_copied(sound: AudioStream) -> bool:
    return sound.codec_context.codec.canonical_name in COPIED_SOUND


# Drawing -------------------------------------------------------------------------------------------------------------


class VideoOverlay:
    """Draws the frames of one video: as [`draw_overlay`] draws an image, but steady from frame to frame.

    All frames get the same size, and each class has one place in the legend. A short vocabulary is listed completely,
    with classes that are out of view faded. Of a longer one, classes enter when they first occur, and later take the
    places of those that have been out of view longest; the last row says how many in view have no place. Percentages
    are those of the frame. Regions have no numbers, which would jump about.

    Args:
        size: Width and height of the frames in pixels.
        class_names: The T class names; synonyms separated by ", ".
        ignore_index: Label of pixels that have no class.

    Attributes:
        size: Width and height of the drawn frames: even numbers, as video encoders want them.
    """

    def __init__(self, size: tuple[int, int], class_names: Sequence[str], ignore_index: int | None = None) -> None:
        self._class_names = class_names
        self._ignore_index = ignore_index
        self._colors = [tuple(color) for color in class_colors(class_names).tolist()]
        names = [*class_names, *([] if ignore_index is None else [NO_CLASS])]
        num_rows = min(len(names), MAX_LEGEND_ROWS)
        self._legend = Legend(display_size(size), names, num_rows, digits=0)  # more digits would flicker
        self.size = (self._legend.size[0] // 2 * 2, self._legend.size[1] // 2 * 2)
        # Class index at each place of the legend; `None`: free.
        self._places: list[int | None] = list(range(len(class_names)))
        if len(names) > num_rows:
            self._places = [None] * (num_rows - 1 - (ignore_index is not None))
        self._last_seen: dict[int | None, int] = {}  # number of the frame in which each class was in view last
        self._num_frames = 0

    def draw(self, frame: Image.Image, segmentation: npt.ArrayLike) -> Image.Image:
        """Draw the next frame, RGB, with its class indices (height, width): an RGB image of `size`."""
        statistics = class_statistics(segmentation, self._class_names, ignore_index=self._ignore_index)
        shares = {entry.index: entry.share for entry in statistics}
        self._update_places(shares)
        rows: list[LegendRow | None] = [
            None if index is None else LegendRow(self._class_names[index], shares.get(index, 0), self._colors[index])
            for index in self._places
        ]
        if self._ignore_index is not None:
            rows.append(LegendRow(NO_CLASS, 1 - sum(shares.values()), (255, 255, 255)))
        if others := shares.keys() - set(self._places):
            rows.append(LegendRow(f"{len(others)} more", sum(shares[index] for index in others)))
        regions = draw_regions(frame, segmentation, self._class_names, ignore_index=self._ignore_index)
        return self._legend.draw(regions, rows).crop((0, 0, *self.size))

    def _update_places(self, shares: dict[int, float]) -> None:
        """Take in the next frame, with the shares of the classes in view, the largest first."""
        self._num_frames += 1
        self._last_seen.update(dict.fromkeys(shares, self._num_frames))
        for newcomer in [index for index in shares if index not in self._places]:
            place = min(range(len(self._places)), key=lambda place: self._last_seen.get(self._places[place], 0))
            occupant = self._places[place]
            if occupant is None or (occupant not in shares and shares[newcomer] >= CLEARLY_VISIBLE):
                self._places[place] = newcomer
