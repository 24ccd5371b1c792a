"""Videos: what is kept of the original, how results appear, and how the legend behaves from frame to frame."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sed_hf.cli import main
from sed_hf.data.scenes import render_scene
from sed_hf.inference.video import UnreadableVideoError, VideoOverlay, check_video, segment_video
from sed_hf.visualization import class_colors

CLASSES = ["left", "right, starboard"]
Results = list[dict[str, np.ndarray]]


@dataclass
class Decoded:
    """What a player finds in a file."""

    times: list[float]
    images: list[np.ndarray]
    sound: np.ndarray


def write_clip(
    path: Path,
    times: list[int] | range = range(10),
    size: tuple[int, int] = (64, 48),
    sound: str | None = "aac",
    rotation: int = 0,
    pixel_width: Fraction = Fraction(1),
    start: int = 0,
    title: str = "",
) -> Path:
    """A camera that pans over a generated scene, beside a tone; `times` and `start` in tenths of a second."""
    scene, _ = render_scene(0, 0, "test", 192)
    with path.open("wb") as file, av.open(file, "w", format=FORMATS[path.suffix]) as container:
        container.metadata["title"] = title
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 10)
        stream.codec_context.sample_aspect_ratio = pixel_width
        if rotation:
            stream.set_display_rotation(rotation)
        voice = container.add_stream(sound, rate=16_000, layout="mono") if sound else None
        for time in times:
            pixels = np.ascontiguousarray(scene[time : time + size[1], time : time + size[0]])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = start + time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice:
            tone = np.sin(2 * np.pi * 440 / 16_000 * np.arange((max(times) + 1) * 1600))
            sound_frame = av.AudioFrame.from_ndarray(
                (tone * 16_000).astype(np.int16)[None], format="s16", layout="mono"
            )
            sound_frame.sample_rate, sound_frame.pts = 16_000, start * 1600
            sound_frame.time_base = Fraction(1, 16_000)
            container.mux(voice.encode(sound_frame))
            container.mux(voice.encode(None))
    return path


FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".mts": "mpegts", ".webm": "webm", ".avi": "avi"}


def decode(path: Path) -> Decoded:
    """Decode a file completely."""
    times, images, sound = [], [], [np.zeros(0, dtype=np.float32)]
    with path.open("rb") as file, av.open(file) as container:
        for frame in container.decode(*container.streams.video, *container.streams.audio):
            if isinstance(frame, av.VideoFrame):
                times.append(frame.time)
                images.append(frame.to_ndarray(format="rgb24"))
            else:
                sound.append(frame.to_ndarray().ravel())
    return Decoded(times, images, np.concatenate(sound))


def sound_packets(path: Path) -> list[tuple[int | None, bytes]]:
    with av.open(str(path)) as container:
        return [(packet.pts, bytes(packet)) for packet in container.demux(audio=0) if packet.size]


def halves(images: list[Image.Image]) -> Results:
    """Class 0 in the left half of each image, class 1 in the right one."""
    labels = np.zeros((images[0].height, images[0].width), dtype=np.int64)
    labels[:, images[0].width // 2 :] = 1
    return [{"segmentation": labels, "probability": np.full(labels.shape, 0.75, dtype=np.float32)} for _ in images]


@dataclass
class StubSegmenter:
    """Takes the place of `Segmenter`."""

    segment: Callable[[list[Image.Image]], Results] = halves
    ignore_index: int | None = None
    class_names = CLASSES

    def __call__(self, images: list[Image.Image]) -> Results:
        return self.segment(images)


def overlay_of(
    path: Path,
    segment: Callable[[list[Image.Image]], Results] = halves,
    ignore_index: int | None = None,
    batch_size: int = 1,
) -> Path:
    """Write `out/STEM_overlay.mp4` and `out/STEM.json` beside a video, and return the overlay's path."""
    output = path.parent / "out"
    output.mkdir(exist_ok=True)
    overlay, summary = output / f"{path.stem}_overlay.mp4", output / f"{path.stem}.json"
    segmenter = StubSegmenter(segment, ignore_index)
    segment_video(path, overlay, summary, segmenter, model_name="stub", batch_size=batch_size)  # type: ignore[arg-type]
    return overlay


def summary_of(path: Path) -> dict:
    return json.loads((path.parent / "out" / f"{path.stem}.json").read_text())


def interrupt_after(num_frames: int, error: BaseException) -> Callable[[list[Image.Image]], Results]:
    """A segmenter that raises instead of segmenting one more frame."""
    remaining = iter(range(num_frames))

    def segment(images: list[Image.Image]) -> Results:
        if next(remaining, None) is None:
            raise error
        return halves(images)

    return segment


# The same video


def test_ten_seconds_with_sound_in_are_ten_seconds_with_the_same_sound_out(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", range(100))
    overlay = overlay_of(clip, batch_size=8)
    before, after = decode(clip), decode(overlay)
    assert after.times == before.times
    assert np.array_equal(after.sound, before.sound)
    assert sound_packets(overlay) == sound_packets(clip)
    with av.open(str(overlay)) as container:
        assert container.duration / av.time_base == pytest.approx(10, abs=0.1)
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]


def test_video_without_sound_has_none(tmp_path: Path) -> None:
    assert len(decode(overlay_of(write_clip(tmp_path / "clip.mp4", sound=None))).sound) == 0


def test_sound_that_mp4_files_do_not_hold_is_encoded_anew(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mov", range(20), sound="pcm_s16le")
    before, after = decode(clip).sound.astype(float), decode(overlay_of(clip)).sound
    assert len(after) == pytest.approx(len(before), abs=1024)  # a packet of AAC
    middle = slice(8_000, 24_000)
    assert np.corrcoef(before[middle], after[middle])[0, 1] > 0.99


def test_variable_frame_rate_is_kept(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", [0, 1, 2, 7, 8, 15, 30])
    assert decode(overlay_of(clip)).times == pytest.approx([0, 0.1, 0.2, 0.7, 0.8, 1.5, 3.0])


@pytest.mark.parametrize(("suffix", "sound"), [(".mkv", "aac"), (".mts", "mp2"), (".webm", "libopus")])
def test_video_in_any_container_is_read(tmp_path: Path, suffix: str, sound: str) -> None:
    clip = write_clip(tmp_path / f"clip{suffix}", sound=sound)
    before, after = decode(clip), decode(overlay_of(clip))
    assert np.diff(after.times) == pytest.approx(np.diff(before.times), abs=0.001)
    assert len(after.sound) == pytest.approx(len(before.sound), rel=0.15)


def test_avi_file_whose_frames_are_stored_out_of_order_shows_them_at_even_times(tmp_path: Path) -> None:
    overlay = overlay_of(write_clip(tmp_path / "clip.avi", sound="mp3"))
    assert decode(overlay).times == pytest.approx([time / 10 for time in range(10)])


def test_title_that_is_not_utf_8_is_no_hindrance(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", range(2), title="Käse")
    clip.write_bytes(clip.read_bytes().replace("Käse".encode(), b"K\xe4\xe4se"))
    assert len(decode(overlay_of(clip)).times) == 2


@pytest.mark.parametrize("name", ["12:30.mp4", os.fsdecode(b"caf\xe9.mp4"), "%03d.mp4"])
def test_any_file_name_can_be_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(decode(overlay_of(write_clip(Path(name), range(2)))).times) == 2


def test_recording_that_starts_late_starts_at_once(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mts", start=50, sound="mp2")
    assert decode(clip).times[0] >= 5
    assert decode(overlay_of(clip)).times[0] == pytest.approx(0, abs=0.1)


def test_video_of_a_phone_held_upright_is_upright(tmp_path: Path) -> None:
    seen: list[Image.Image] = []
    clip = write_clip(tmp_path / "clip.mov", rotation=-90)
    overlay_of(clip, lambda images: seen.extend(images) or halves(images))
    assert seen[0].size == (48, 64)
    assert np.abs(np.asarray(seen[0], dtype=int) - np.rot90(decode(clip).images[0], -1)).max() < 10


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", pixel_width=Fraction(3, 2))
    overlay_of(clip)
    assert (summary_of(clip)["width"], summary_of(clip)["height"]) == (96, 48)


def test_summary_says_which_classes_cover_how_much_of_all_frames(tmp_path: Path) -> None:
    def only_left(images: list[Image.Image]) -> Results:
        results = halves(images)
        results[0]["segmentation"][results[0]["segmentation"] == 1] = 255
        return results

    clip = write_clip(tmp_path / "clip.mp4")
    overlay_of(clip, only_left, ignore_index=255)
    assert summary_of(clip) == {
        "file": str(clip),
        "width": 64,
        "height": 48,
        "frames": 10,
        "model": "stub",
        "classes": [{"index": 0, "name": "left", "share": 0.5, "mean_probability": 0.75}],
        "ignored_pixels": 10 * 64 * 48 / 2,
    }


def test_colors_of_the_file_are_those_of_the_classes(tmp_path: Path) -> None:
    [first, *_] = decode(overlay_of(write_clip(tmp_path / "clip.mp4"))).images
    legend = first[384:].reshape(-1, 3).astype(int)
    for color in class_colors(CLASSES).astype(int):
        assert np.abs(legend - color).max(axis=1).min() < 12


def test_without_an_h264_encoder_the_video_is_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    overlay = overlay_of(write_clip(tmp_path / "clip.mts", sound="mp2"))  # its time base is finer than MPEG-4 allows
    with av.open(str(overlay)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert np.diff(decode(overlay).times) == pytest.approx(0.1)


def test_only_one_batch_of_frames_is_held_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[weakref.ref] = []
    sizes, held = [], []

    def count(images: list[Image.Image]) -> Results:
        held.append(sum(image() is not None for image in seen))
        sizes.append(len(images))
        seen.extend(map(weakref.ref, images))
        return halves(images)

    overlay_of(write_clip(tmp_path / "clip.mp4", range(22)), count, batch_size=4)
    assert sizes == [4, 4, 4, 4, 4, 2]
    assert max(held) <= 2  # the first and the last frame
    assert "22/22" in capsys.readouterr().err


# How results appear


def test_interrupted_half_way_leaves_a_video_that_plays_under_a_name_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", range(100))
    with pytest.raises(KeyboardInterrupt):
        overlay_of(clip, interrupt_after(50, KeyboardInterrupt()))
    [partial] = (tmp_path / "out").iterdir()
    assert partial.name == "clip_overlay.partial.mp4"
    assert f"the first 50 frames are in {partial}" in capsys.readouterr().err
    before, after = decode(clip), decode(partial)
    assert after.times == before.times[:50]
    assert len(after.sound) >= 5 * 16_000
    assert np.array_equal(after.sound, before.sound[: len(after.sound)])


def test_full_disk_is_an_error_that_names_the_overlay(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", range(50))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: .*{tmp_path}/out/clip_overlay.mp4"):
            overlay_of(clip)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []


def test_interrupted_before_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        overlay_of(write_clip(tmp_path / "clip.mp4"), interrupt_after(0, KeyboardInterrupt()))
    assert list((tmp_path / "out").iterdir()) == []


def test_error_of_the_model_stops_the_video(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite"):
        overlay_of(write_clip(tmp_path / "clip.mp4"), interrupt_after(3, ValueError("logits are not finite")))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip_overlay.partial.mp4"]


@pytest.mark.slow
def test_killed_process_leaves_nothing_but_a_hidden_folder(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    program = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_video import interrupt_after, overlay_of

        class Kill(BaseException):
            def __init__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        overlay_of(Path({str(clip)!r}), lambda images: interrupt_after(0, Kill())(images))
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert all(path.name.startswith(".") and path.is_dir() for path in (tmp_path / "out").iterdir())
    assert len(decode(overlay_of(clip)).times) == 10


PLANTED = ["clip_overlay.partial.mp4", "clip_overlay.mp4", "clip.json", ".clip_overlay.mp4.part"]


@pytest.mark.parametrize("is_interrupted", [False, True])
@pytest.mark.parametrize("kind", ["link", "link to a folder", "fifo"])
@pytest.mark.parametrize("name", PLANTED)
def test_nothing_that_is_planted_is_followed(tmp_path: Path, name: str, kind: str, is_interrupted: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".bashrc").write_text("of the user")
    planted = tmp_path / "out" / name
    if kind == "fifo":
        os.mkfifo(planted)
    else:
        planted.symlink_to(tmp_path / "home" / ".bashrc" if kind == "link" else tmp_path / "home")

    clip = write_clip(tmp_path / "clip.mp4", range(2))
    if is_interrupted:
        with pytest.raises(KeyboardInterrupt):
            overlay_of(clip, interrupt_after(1, KeyboardInterrupt()))
        assert len(decode(tmp_path / "out" / "clip_overlay.partial.mp4").times) == 1
    else:
        assert len(decode(overlay_of(clip)).times) == 2
        assert summary_of(clip)["frames"] == 2
    assert (tmp_path / "home" / ".bashrc").read_text() == "of the user"
    assert [path.name for path in (tmp_path / "home").iterdir()] == [".bashrc"]


def test_two_runs_at_once_leave_a_whole_video(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    overlay_of(clip, lambda images: halves(images) if overlay_of(clip) else [])
    assert len(decode(tmp_path / "out" / "clip_overlay.mp4").times) == 10
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip_overlay.mp4", "clip.json"}


# Bad input


@pytest.mark.parametrize("content", [b"", b"not a video", bytes(5000)])
def test_file_that_is_not_a_video_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(UnreadableVideoError, match="expected a video, but it cannot be read: Invalid "):
        check_video(tmp_path / "clip.mp4")


def test_frames_of_more_pixels_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", pixel_width=Fraction(2))  # 64 × 48, shown as 128 × 48
    monkeypatch.setenv("SED_HF_MAX_IMAGE_PIXELS", "6143")
    with pytest.raises(UnreadableVideoError, match="SED_HF_MAX_IMAGE_PIXELS"):
        check_video(clip)
    monkeypatch.setenv("SED_HF_MAX_IMAGE_PIXELS", "6144")
    check_video(clip)


def test_file_without_a_video_stream_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        voice = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(voice.encode(frame))
        container.mux(voice.encode(None))
    with pytest.raises(UnreadableVideoError, match="the file has no video stream; its streams: audio"):
        check_video(tmp_path / "song.mp4")


def test_video_cut_off_in_the_middle_is_segmented_as_far_as_it_goes(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mts", range(50), sound="mp2")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert 10 < len(decode(overlay_of(clip)).times) < 50


def test_video_goes_on_after_damaged_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", range(50), sound=None)
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff" * 200
    clip.write_bytes(content)
    times = decode(overlay_of(clip)).times
    assert 30 < len(times) < 50
    assert times[-1] == pytest.approx(4.9)


# The command


def test_command_writes_the_images_and_videos_of_a_folder_and_names_bad_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "clip.mp4", range(3))
    Image.new("RGB", (64, 48)).save(tmp_path / "in" / "clip.png")
    (tmp_path / "in" / "bad.mp4").write_text("not a video")
    arguments = ["segment", tmp_path / "in", "--output", tmp_path / "out", "--batch-size", "2", "--classes", *CLASSES]
    assert main([str(argument) for argument in arguments]) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "clip_overlay.mp4",
        "clip.json",
        "clip_2_overlay.jpg",
        "clip_2_labels.png",
        "clip_2.json",
    }
    output = capsys.readouterr()
    assert f"skipped {tmp_path / 'in' / 'bad.mp4'}: expected a video, but it cannot be read" in output.err
    assert "2 of 3 images and videos written" in output.out


# The legend, from frame to frame

SIZE = (640, 360)
MANY_NAMES = [f"class {index}" for index in range(300)]


def draw(overlay: VideoOverlay, labels: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """A grey frame with vertical stripes of these labels."""
    stripes = np.array(labels)[np.arange(size[0]) * len(labels) // size[0]]
    frame = Image.new("RGB", size, (128, 128, 128))
    return np.asarray(overlay.draw(frame, np.broadcast_to(stripes, size[::-1])))


def listed(drawn: np.ndarray) -> list[int]:
    """The classes of MANY_NAMES in the legend."""
    found = {tuple(color) for color in drawn[SIZE[1] :].reshape(-1, 3).tolist()}
    return [index for index, color in enumerate(class_colors(MANY_NAMES).tolist()) if tuple(color) in found]


def test_legend_of_a_short_vocabulary_changes_only_in_percentages_and_fading() -> None:
    overlay = VideoOverlay(SIZE, ["sky", "dog, puppy", "grass"])
    swatches = [draw(overlay, labels)[SIZE[1] :, : 3 * 14] for labels in ([0, 0, 1], [2], [1, 0])]
    assert all(np.array_equal(swatches[0], other) for other in swatches)


@pytest.mark.parametrize(("num_classes", "size"), [(1, (641, 361)), (7, (33, 91)), (60, (1, 1)), (300, (361, 641))])
def test_all_frames_have_one_size_of_even_sides(num_classes: int, size: tuple[int, int]) -> None:
    overlay = VideoOverlay(size, MANY_NAMES[:num_classes], ignore_index=65535)
    shapes = {draw(overlay, labels, size).shape for labels in ([0], list(range(num_classes)), [65535])}
    assert shapes == {(overlay.size[1], overlay.size[0], 3)}
    assert overlay.size[0] % 2 == overlay.size[1] % 2 == 0


@pytest.mark.parametrize("size", [(1280, 720), (720, 1280)])
def test_legend_of_many_classes_leaves_most_of_the_frame_to_the_image(size: tuple[int, int]) -> None:
    width, height = VideoOverlay(size, MANY_NAMES).size
    assert size[0] * size[1] > 0.6 * width * height


def test_class_keeps_its_place_and_newcomers_take_those_of_classes_out_of_view_longest() -> None:
    overlay = VideoOverlay(SIZE, MANY_NAMES)
    first = listed(draw(overlay, list(range(23))))
    assert first == list(range(23))
    draw(overlay, list(range(1, 23)))
    assert listed(draw(overlay, [*range(2, 23), 50])) == [*range(1, 23), 50]
    assert listed(draw(overlay, [60])) == [*range(2, 23), 50, 60]


def test_newcomer_takes_no_place_while_all_classes_are_in_view_or_if_it_is_tiny() -> None:
    overlay = VideoOverlay(SIZE, MANY_NAMES)
    assert listed(draw(overlay, list(range(32)))) == list(range(23))
    assert listed(draw(overlay, [0] * 639 + [70])) == list(range(23))
