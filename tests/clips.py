"""Short videos with sound."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from sed_hf.data.scenes import render_scene

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".mts": "mpegts", ".webm": "webm", ".avi": "avi"}


def write_clip(
    path: Path,
    times: list[int] | range = range(10),
    sound: str | None = "aac",
    rotation: int = 0,
    pixel_width: Fraction = Fraction(1),
    start: int = 0,
    title: str = "",
    codec: str = "libx264",
) -> Path:
    """A camera of 64 x 48 pixels pans over a generated scene, beside a tone; times in tenths of a second."""
    scene, _ = render_scene(0, 0, "test", 192)
    with path.open("wb") as file, av.open(file, "w", format=FORMATS[path.suffix]) as container:
        container.metadata["title"] = title
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else codec, rate=10)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 10)
        stream.codec_context.sample_aspect_ratio = pixel_width
        if rotation:
            stream.set_display_rotation(rotation)
        voice = container.add_stream(sound, rate=16_000, layout="mono") if sound else None
        for time in times:
            pixels = np.ascontiguousarray(scene[time : time + 48, time : time + 64])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = start + time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice:
            tone = 16_000 * np.sin(2 * np.pi * 440 / 16_000 * np.arange((max(times) + 1) * 1600))
            samples = av.AudioFrame.from_ndarray(tone.astype(np.int16)[None], format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 16_000, start * 1600, Fraction(1, 16_000)
            container.mux(voice.encode(samples))
            container.mux(voice.encode(None))
    return path
