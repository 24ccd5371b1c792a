"""Videos and cameras: decoded, segmented in batches of frames, drawn, and encoded again. Needs the extra `video`."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ..image_processing_sed import TooManyPixelsError, check_pixels
from ..utils import atomic_path, printable, progress_bar
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
from .segmenter import Segmenter
from .writers import summary

try:
    import av
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.stream import Disposition
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
except ImportError as error:
    raise ImportError("videos and cameras need PyAV: pip install '.[video]' in the clone of sed-hf") from error

# Encoders and their options for a quality at which the text of the legend stays crisp; the first one present is taken.
VIDEO_ENCODERS = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    "mpeg4": {"qmin": "2", "qmax": "4", "b": "20M"},
}
# Sound that players expect in an MP4 file is copied; other sound is encoded to AAC.
COPIED_SOUND = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
# While it is written, the file is a row of fragments that each can be played, so that a killed process leaves a video.
# When it is closed, it becomes an ordinary MP4 file, in which all players can seek. The header waits for the first
# packets, since without their time stamps it could not say where the sound starts.
FRAGMENTED = {"movflags": "hybrid_fragmented+delay_moov", "frag_duration": "1000000", "flush_packets": "1"}
MAX_MPEG4_TIME_BASE = 60_000  # ticks a second: MPEG-4 allows no more than 65535, and common frame rates divide this one
# PyAV 18 reads no file whose title is not UTF-8 unless it is told how; PyAV 19 reads all, and has no such argument.
METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
KEYFRAME_SECONDS = 2  # how exactly players can seek
MAX_LEGEND_ROWS = 24
CLEARLY_VISIBLE = 0.005  # share of a frame; a smaller class takes no other's place in the legend


class UnreadableVideoError(Exception):
    """A file cannot be read as a video; the message says why."""


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One frame of a video, the right way up and with square pixels.

    Attributes:
        picture: RGB.
        pts: When it is shown, in units of the video stream's time base.
        duration: How long, in the same units; 0: not known.
    """

    picture: Image.Image
    pts: int
    duration: int


class VideoReader:
    """Decodes the frames of a video file, and hands on the packets of its sound.

    Args:
        path: A file that FFmpeg can read.

    Attributes:
        video: The first video stream that is not a cover picture.
        sounds: The audio streams.
        size: Width and height of the frames in pixels, as they are shown.

    Raises:
        UnreadableVideoError: The file is none that FFmpeg can read, or has no video stream, or no frame of it can be
            decoded.
    """

    def __init__(self, path: Path) -> None:
        with closing(_open(path)) as container:
            first_frame, aspect_ratio = _first_frame(container)
        self._decoded_size = (max(1, round(first_frame.width * aspect_ratio)), first_frame.height)
        try:
            check_pixels(*self._decoded_size)
        except TooManyPixelsError as error:
            raise UnreadableVideoError(f"its frames are too large: {error}") from error
        is_turned = _quarter_turns(first_frame) % 2 == 1
        self.size = self._decoded_size[::-1] if is_turned else self._decoded_size
        # Opened again, since not all formats can be wound back.
        self._container = _open(path)
        self.video = _choose_video_stream(self._container)
        self.video.thread_type = "AUTO"
        self.sounds = [stream for stream in self._container.streams.audio if stream.codec_context is not None]
        # AVI holds no time stamps, and FFmpeg guesses them wrong where frames are stored in another order than they are
        # shown. So each frame gets the time of the next packet that was read.
        self._avi_pts: deque[int] = deque()

    def close(self) -> None:
        self._container.close()

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
        if self.video.frames:
            return self.video.frames
        if self.video.duration:
            return round(self.video.duration * self.time_base * self.frame_rate)
        if self._container.duration:
            return round(Fraction(self._container.duration, av.time_base) * self.frame_rate)
        return None

    def start(self, time_base: Fraction) -> int:
        """The time stamp with which the file starts: 0 in most, but not in recordings of television."""
        return round(Fraction(self._container.start_time or 0, av.time_base) / time_base)

    def __iter__(self) -> Iterator[Frame | av.Packet]:
        """Frames and packets of sound in the order of the file; damaged frames are left out.

        Raises:
            UnreadableVideoError: The file ends in the middle or is damaged so that nothing more can be read.
        """
        packets = self._container.demux(self.video, *self.sounds)
        last_pts = -1
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                raise UnreadableVideoError(f"the file is damaged: {error.strerror}") from error
            if packet.stream.index != self.video.index:
                yield packet
                continue
            if self._container.format.name == "avi" and packet.dts is not None and packet.size:
                self._avi_pts.append(packet.dts)
            for frame in _decode(packet):
                pts = self._pts(frame, last_pts)
                yield Frame(self._picture(frame), pts, frame.duration)
                last_pts = pts

    def _picture(self, frame: VideoFrame) -> Image.Image:
        # Frames may change their size in the middle of a stream; here all get that of the first.
        pixels = frame.to_ndarray(format="rgb24", width=self._decoded_size[0], height=self._decoded_size[1])
        return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame)))).resize(self.size)

    def _pts(self, frame: VideoFrame, last_pts: int) -> int:
        """The time stamp from the start of the file; one that is missing or goes back comes after the last one."""
        pts = self._avi_pts.popleft() if self._avi_pts else frame.pts
        if pts is None:
            step = max(1, round(1 / (self.frame_rate * self.time_base)))
            return last_pts + step if last_pts >= 0 else 0
        return max(pts - self.start(self.time_base), last_pts + 1)


def _open(path: Path) -> InputContainer:
    try:
        return av.open(str(path), **METADATA)
    except av.FFmpegError as error:
        raise UnreadableVideoError(f"expected a video, but it cannot be read: {error.strerror}") from error


def _choose_video_stream(container: InputContainer) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        found = ", ".join(stream.type for stream in container.streams) or "none"
        raise UnreadableVideoError(f"expected a video, but the file has no video stream; its streams: {found}")
    if streams[0].codec_context is None:
        raise UnreadableVideoError("expected a video, but FFmpeg has no decoder for it")
    return streams[0]


def _first_frame(container: InputContainer) -> tuple[VideoFrame, Fraction]:
    """The first frame, and the width of its pixels relative to their height."""
    stream = _choose_video_stream(container)
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            for frame in _decode(packet):
                return frame, Fraction(stream.sample_aspect_ratio or 1)
    raise UnreadableVideoError("expected a video, but no frame of it can be decoded")


def _decode(packet: av.Packet) -> list[VideoFrame]:
    try:
        return packet.decode()
    except av.error.InvalidDataError:  # the frames after a damaged one may be whole
        return []


def _quarter_turns(frame: VideoFrame) -> int:
    """By how many quarter turns, counterclockwise, a player turns the frame; phones film upright videos so."""
    return round(frame.rotation / 90)


# Writing -------------------------------------------------------------------------------------------------------------


class VideoWriter:
    """Encodes frames to an MP4 file with the time stamps and the sound of a video that was read.

    Args:
        path: File to write.
        size: Width and height of the frames in pixels, even numbers.
        source: The video.

    Attributes:
        num_frames: How many frames were written.
    """

    def __init__(self, path: Path, size: tuple[int, int], source: VideoReader) -> None:
        self.num_frames = 0
        self._source = source
        self._container: OutputContainer = av.open(str(path), "w", format="mp4", options=FRAGMENTED)
        self._stream = self._add_video_stream(size)
        self._sounds = {stream.index: self._add_sound(stream) for stream in source.sounds}

    def write(self, frame: Frame, picture: Image.Image) -> None:
        """Write the picture that was made of a frame."""
        # Players take HD video without a colour space for BT.709, and SD video for BT.601: so it is named.
        pixels = VideoFrame.from_image(picture).reformat(format="yuv420p", dst_colorspace="ITU709")
        pixels.pts, pixels.time_base, pixels.duration = frame.pts, self._source.time_base, frame.duration
        self._container.mux(self._stream.encode(pixels))
        self.num_frames += 1

    def write_sound(self, packet: av.Packet) -> None:
        """Write a packet of one of the source's audio streams."""
        self._sounds[packet.stream.index].write(packet)

    def close(self) -> None:
        """Write what the encoders hold back, and finish the file."""
        with closing(self._container):
            if self.num_frames:
                self._container.mux(self._stream.encode(None))
            for sound in self._sounds.values():
                sound.finish()

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

    def _add_sound(self, stream: AudioStream) -> _CopiedSound | _EncodedSound:
        start = self._source.start(Fraction(stream.time_base or Fraction(1, stream.rate)))
        kind = _CopiedSound if stream.codec_context.codec.canonical_name in COPIED_SOUND else _EncodedSound
        return kind(self._container, stream, start)


class _CopiedSound:
    """Packets of sound handed on as they are."""

    def __init__(self, container: OutputContainer, source: AudioStream, start: int) -> None:
        self._container = container
        self._stream = container.add_stream_from_template(source)
        self._start = start

    def write(self, packet: av.Packet) -> None:
        if packet.dts is None:  # the mark of the end
            return
        packet.dts -= self._start
        if packet.pts is not None:
            packet.pts -= self._start
        packet.stream = self._stream
        self._container.mux(packet)

    def finish(self) -> None:
        """Nothing is held back."""


class _EncodedSound:
    """Sound decoded and encoded to AAC."""

    def __init__(self, container: OutputContainer, source: AudioStream, start: int) -> None:
        self._container = container
        rates = av.Codec("aac", "w").audio_rates or []
        stream = container.add_stream("aac", rate=source.rate if source.rate in rates else 48_000)
        assert isinstance(stream, AudioStream)
        stream.layout = source.layout
        self._stream = stream
        self._start = start

    def write(self, packet: av.Packet) -> None:
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:  # damaged sound is left out, as damaged frames are
            return
        for frame in frames:
            assert isinstance(frame, AudioFrame)
            if frame.pts is not None:
                frame.pts -= self._start
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))


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


# Videos --------------------------------------------------------------------------------------------------------------


def check_video(path: Path) -> None:
    """Refuse a file of which no frame can be decoded.

    Raises:
        UnreadableVideoError: It is no video; the message says what it is.
    """
    VideoReader(path).close()


def segment_video(
    video: Path,
    overlay_path: Path,
    summary_path: Path,
    segmenter: Segmenter,
    *,
    model_name: str,
    batch_size: int = 1,
) -> None:
    """Write a video with overlay, legend, and the sound of the original, and a summary, with a progress bar.

    Until it is complete, the name of the video ends in `.partial.mp4`. If something happens, what is written so far
    stays under this name and can be played, and a message on standard error says so.

    Args:
        video: File to read.
        overlay_path: Video to write; its folder exists.
        summary_path: JSON file to write.
        segmenter: Segments the frames of a batch.
        model_name: For the summary.
        batch_size: Frames at a time.

    Raises:
        UnreadableVideoError: The file is no video, or cannot be read to its end.
        OSError: The result cannot be written, or another process is writing it.
    """
    partial_path = overlay_path.with_suffix(".partial.mp4")
    with closing(VideoReader(video)) as reader:
        overlay = VideoOverlay(reader.size, segmenter.class_names, ignore_index=segmenter.ignore_index)
        totals = ClassTotals(segmenter.class_names, segmenter.ignore_index)
        with nullcontext():
            writer = VideoWriter(partial_path, overlay.size, reader)

            def frames_with_sound_written() -> Iterator[Frame]:
                for item in reader:
                    if isinstance(item, Frame):
                        yield item
                    else:
                        writer.write_sound(item)

            progress = progress_bar(total=reader.num_frames, desc=printable(video.name), unit="frame")
            try:
                with progress:
                    frames = frames_with_sound_written()
                    while batch := list(islice(frames, batch_size)):
                        results = segmenter([frame.picture for frame in batch])
                        for frame, result in zip(batch, results, strict=True):
                            totals.add(result["segmentation"], result["probability"])
                            writer.write(frame, overlay.draw(frame.picture, result["segmentation"]))
                            progress.update()
                writer.close()
            except BaseException:
                keep_partial_video(video, partial_path, writer)
                raise
            partial_path.replace(overlay_path)

    with atomic_path(summary_path) as path:
        text = summary(
            video, reader.size, totals.statistics(), totals.ignored_pixels, model_name, frames=writer.num_frames
        )
        path.write_text(text, encoding="utf-8")


def keep_partial_video(video: Path, partial_path: Path, writer: VideoWriter) -> None:
    """Finish the file of an interrupted video so that it plays, and say where it is; without a frame, remove it."""
    with suppress(av.FFmpegError):  # what stopped the video, a full disk for example, may stop this too
        writer.close()
    if writer.num_frames:
        message = f"the first {writer.num_frames} frames of {video} are in {partial_path}"
        tqdm.write(f"sed-hf: {printable(message)}", file=sys.stderr)
    else:
        partial_path.unlink(missing_ok=True)
