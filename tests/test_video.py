import builtins
import json
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sed_hf import cli
from sed_hf.cli import main
from sed_hf.cli.segment import Job, find_files, plan_jobs
from sed_hf.data.scenes import render_scene
from sed_hf.inference import video
from sed_hf.inference.video import UnreadableVideoError, check_video, segment_video

CLASSES = ["left", "right, starboard"]


@dataclass
class Decoded:
    """What a player finds in a file."""

    times: list[float]
    pictures: list[np.ndarray]
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
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        codec = "libvpx" if path.suffix == ".webm" else "libx264"
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 10)
        stream.codec_context.sample_aspect_ratio = pixel_width
        if rotation:
            stream.set_display_rotation(rotation)
        voice = (
            container.add_stream("libopus" if sound == "opus" else sound, rate=16_000, layout="mono") if sound else None
        )
        for time in times:
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(scene[time : time + size[1], time : time + size[0]]), format="rgb24"
            )
            frame.pts, frame.time_base = start + time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice:
            num_samples = (max(times) + 1) * 1600
            tone = np.sin(2 * np.pi * 440 / 16_000 * np.arange(num_samples))
            samples = (tone * 16_000).astype(np.int16)[None]
            sound_frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            sound_frame.sample_rate, sound_frame.pts = 16_000, start * 1600
            sound_frame.time_base = Fraction(1, 16_000)
            container.mux(voice.encode(sound_frame))
            container.mux(voice.encode(None))
    return path


def decode(path: Path) -> Decoded:
    """Decode a file completely."""
    times, pictures, sound = [], [], [np.zeros(0, dtype=np.float32)]
    with av.open(str(path)) as container:
        for frame in container.decode(*container.streams.video, *container.streams.audio):
            if isinstance(frame, av.VideoFrame):
                times.append(frame.time)
                pictures.append(frame.to_ndarray(format="rgb24"))
            else:
                sound.append(frame.to_ndarray().ravel())
    return Decoded(times, pictures, np.concatenate(sound))


def sound_packets(path: Path) -> list[tuple[int | None, bytes]]:
    with av.open(str(path)) as container:
        return [(packet.pts, bytes(packet)) for packet in container.demux(audio=0) if packet.size]


def top_level_boxes(path: Path) -> list[str]:
    """The types of the boxes that an MP4 file consists of; "moof" begins a fragment."""
    content, start, types = path.read_bytes(), 0, []
    while start < len(content):
        size, kind = struct.unpack(">I4s", content[start : start + 8])
        types.append(kind.decode())
        start += size
    return types


def halves(pictures: list[Image.Image]) -> list[dict[str, np.ndarray]]:
    """Class 0 in the left half of each picture, class 1 in the right one."""
    results = []
    for picture in pictures:
        labels = np.zeros((picture.height, picture.width), dtype=np.int64)
        labels[:, picture.width // 2 :] = 1
        results.append({"segmentation": labels, "probability": np.full(labels.shape, 0.75, dtype=np.float32)})
    return results


def plan(path: Path) -> Job:
    output = path.parent / "out"
    output.mkdir(exist_ok=True)
    [job] = plan_jobs([path], output)
    return job


def overlay_of(path: Path, segment: video.SegmentPictures = halves, **kwargs: int) -> Path:
    job = plan(path)
    segment_video(job, segment, CLASSES, model_name="stub", **kwargs)
    return job.overlay


# the same video


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


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_finds_no_error_in_the_video(tmp_path: Path) -> None:
    overlay = overlay_of(write_clip(tmp_path / "clip.mp4"))
    found = subprocess.run(
        ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", str(overlay)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stderr == ""
    assert "nb_read_frames=10" in found.stdout


def test_finished_video_is_an_ordinary_file_without_fragments(tmp_path: Path) -> None:
    overlay = overlay_of(write_clip(tmp_path / "clip.mp4", range(40)))
    assert sorted(top_level_boxes(overlay)) == ["free", "ftyp", "mdat", "moov"]


def test_video_without_sound_has_none(tmp_path: Path) -> None:
    overlay = overlay_of(write_clip(tmp_path / "clip.mp4", sound=None))
    with av.open(str(overlay)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_sound_that_mp4_files_do_not_hold_is_encoded_anew(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mov", range(20), sound="pcm_s16le")
    before, after = decode(clip).sound.astype(float), decode(overlay_of(clip)).sound
    assert len(after) == pytest.approx(len(before), abs=1024)  # a packet of AAC
    middle = slice(8_000, 24_000)
    assert np.corrcoef(before[middle], after[middle])[0, 1] > 0.99


def test_variable_frame_rate_is_kept(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", [0, 1, 2, 7, 8, 15, 30])
    assert decode(overlay_of(clip)).times == pytest.approx([0, 0.1, 0.2, 0.7, 0.8, 1.5, 3.0])


@pytest.mark.parametrize(("suffix", "sound"), [(".mkv", "aac"), (".mts", "mp2"), (".webm", "opus")])
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


def test_recording_that_starts_late_starts_at_once(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mts", start=50, sound="mp2")
    assert decode(clip).times[0] >= 5
    assert decode(overlay_of(clip)).times[0] == pytest.approx(0, abs=0.1)


def test_video_of_a_phone_held_upright_is_upright(tmp_path: Path) -> None:
    seen: list[Image.Image] = []

    def look(pictures: list[Image.Image]) -> list[dict[str, np.ndarray]]:
        seen.extend(pictures)
        return halves(pictures)

    clip = write_clip(tmp_path / "clip.mov", rotation=-90)
    as_stored = decode(clip).pictures[0]
    overlay_of(clip, look)
    assert seen[0].size == (48, 64)
    assert np.abs(np.asarray(seen[0], dtype=int) - np.rot90(as_stored, -1)).max() < 10


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    overlay_of(write_clip(tmp_path / "clip.mp4", pixel_width=Fraction(3, 2)))
    summary = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert (summary["width"], summary["height"]) == (96, 48)


def test_summary_says_which_classes_cover_how_much_of_all_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    overlay_of(clip)
    assert json.loads((tmp_path / "out" / "clip.json").read_text()) == {
        "file": str(clip),
        "width": 64,
        "height": 48,
        "frames": 10,
        "model": "stub",
        "classes": [
            {"index": 0, "name": "left", "share": 0.5, "mean_probability": 0.75},
            {"index": 1, "name": "right, starboard", "share": 0.5, "mean_probability": 0.75},
        ],
        "ignored_pixels": 0,
    }


def test_pixels_without_a_class_are_counted_in_the_summary(tmp_path: Path) -> None:
    def nothing_on_the_right(pictures: list[Image.Image]) -> list[dict[str, np.ndarray]]:
        results = halves(pictures)
        for result in results:
            result["segmentation"][result["segmentation"] == 1] = 255
        return results

    overlay_of(write_clip(tmp_path / "clip.mp4"), nothing_on_the_right, ignore_index=255)
    summary = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert summary["ignored_pixels"] == 10 * 64 * 48 / 2
    assert [entry["share"] for entry in summary["classes"]] == [0.5]


def test_colors_of_the_file_are_those_that_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    write = video.VideoWriter.write

    def spy(self: video.VideoWriter, frame: video.Frame, picture: Image.Image) -> None:
        drawn.append(np.asarray(picture, dtype=int))
        write(self, frame, picture)

    monkeypatch.setattr(video.VideoWriter, "write", spy)
    pictures = decode(overlay_of(write_clip(tmp_path / "clip.mp4"))).pictures
    for before, after in zip(drawn, pictures, strict=True):
        assert before.shape == after.shape
        assert np.abs(before - after).mean() < 5


def test_without_an_h264_encoder_the_video_is_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    clip = write_clip(tmp_path / "clip.mts", sound="mp2")  # its time base is finer than MPEG-4 allows
    overlay = overlay_of(clip)
    with av.open(str(overlay)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert np.diff(decode(overlay).times) == pytest.approx(0.1)


# streaming


def test_frames_come_in_batches(tmp_path: Path) -> None:
    sizes = []

    def count(pictures: list[Image.Image]) -> list[dict[str, np.ndarray]]:
        sizes.append(len(pictures))
        return halves(pictures)

    overlay_of(write_clip(tmp_path / "clip.mp4"), count, batch_size=4)
    assert sizes == [4, 4, 2]


def test_no_more_than_a_batch_of_frames_is_held_however_long_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, most_held = 0, 0
    read_picture, write = video.VideoReader._picture, video.VideoWriter.write

    def count_read(self: video.VideoReader, frame: av.VideoFrame) -> Image.Image:
        nonlocal held, most_held
        held += 1
        most_held = max(most_held, held)
        return read_picture(self, frame)

    def count_written(self: video.VideoWriter, frame: video.Frame, picture: Image.Image) -> None:
        nonlocal held
        held -= 1
        write(self, frame, picture)

    monkeypatch.setattr(video.VideoReader, "_picture", count_read)
    monkeypatch.setattr(video.VideoWriter, "write", count_written)
    overlay_of(write_clip(tmp_path / "clip.mp4", range(50)), batch_size=4)
    assert most_held == 4


def test_progress_is_shown_in_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay_of(write_clip(tmp_path / "clip.mp4"))
    assert "10/10" in capsys.readouterr().err


# interrupted


def test_interrupted_half_way_leaves_a_video_that_plays_under_a_name_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    num_segmented = 0

    def interrupt_half_way(pictures: list[Image.Image]) -> list[dict[str, np.ndarray]]:
        nonlocal num_segmented
        num_segmented += len(pictures)
        if num_segmented > 50:
            raise KeyboardInterrupt
        return halves(pictures)

    clip = write_clip(tmp_path / "clip.mp4", range(100))
    with pytest.raises(KeyboardInterrupt):
        overlay_of(clip, interrupt_half_way)

    partial = tmp_path / "out" / "clip_overlay.partial.mp4"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [partial.name]
    assert f"the first 50 frames of {clip} are in {partial}" in capsys.readouterr().err
    before, after = decode(clip), decode(partial)
    assert after.times == before.times[:50]
    assert len(after.sound) >= 5 * 16_000
    assert np.array_equal(after.sound, before.sound[: len(after.sound)])


def test_interrupted_before_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(pictures: list[Image.Image]) -> list[dict[str, np.ndarray]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        overlay_of(write_clip(tmp_path / "clip.mp4"), interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_killed_process_leaves_a_video_that_plays(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", range(100))
    (tmp_path / "out").mkdir()
    program = f"""
        import os, signal
        from pathlib import Path
        import numpy as np
        from sed_hf.inference.segmenter import plan_jobs
        from sed_hf.inference.video import segment_video

        num_segmented = 0

        def segment(pictures):
            global num_segmented
            num_segmented += 1
            if num_segmented > 60:
                os.kill(os.getpid(), signal.SIGKILL)
            labels = np.zeros((pictures[0].height, pictures[0].width), dtype=int)
            return [dict(segmentation=labels, probability=labels)]

        [job] = plan_jobs([Path({str(clip)!r})], Path({str(tmp_path / "out")!r}))
        segment_video(job, segment, ["any"], model_name="stub")
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip_overlay.partial.mp4"]
    before, after = decode(clip), decode(tmp_path / "out" / "clip_overlay.partial.mp4")
    assert 20 <= len(after.times) <= 60
    assert after.times == before.times[: len(after.times)]
    assert len(after.sound) > 2 * 16_000


def test_a_video_that_another_process_is_writing_is_left_to_it(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    refused = []

    def write_it_too(pictures: list[Image.Image]) -> list[dict[str, np.ndarray]]:
        if not refused:
            with pytest.raises(OSError, match="another process is writing it") as error:
                overlay_of(clip)
            refused.append(error.value.filename)
        return halves(pictures)

    overlay_of(clip, write_it_too)
    assert refused == [str(plan(clip).partial_overlay)]
    assert len(decode(plan(clip).overlay).times) == len(decode(clip).times)


def test_complete_video_takes_the_place_of_the_partial_one(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    plan(clip).partial_overlay.write_bytes(b"of an earlier run")
    overlay_of(clip)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip_overlay.mp4", "clip.json"}


# bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "it cannot be read"), (b"no video", "it cannot be read"), (bytes(5000), "it cannot be read")],
)
def test_file_that_is_no_video_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=f"expected a video, but {message}"):
        check_video(tmp_path / "clip.mp4")


def test_frames_of_more_pixels_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", pixel_width=Fraction(2))  # 64 × 48, shown as 128 × 48
    monkeypatch.setenv("SED_HF_MAX_IMAGE_PIXELS", "6143")
    with pytest.raises(UnreadableVideoError, match=r"128 × 48 pixels are more than the 6,143 .*SED_HF_MAX_IMAGE"):
        check_video(clip)
    monkeypatch.setenv("SED_HF_MAX_IMAGE_PIXELS", "6144")
    check_video(clip)


def test_file_without_a_video_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        voice = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(voice.encode(frame))
        container.mux(voice.encode(None))
    with pytest.raises(UnreadableVideoError, match="the file has no video stream; its streams: audio"):
        check_video(path)


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


# the command


@pytest.fixture
def segment(tiny_hub_folder: Path, tmp_path: Path) -> Callable[..., int]:
    """Run `sed-hf segment` with the tiny model into tmp_path/out."""

    def run(*arguments: object) -> int:
        fixed = ["--model", tiny_hub_folder, "--device", "cpu", "--output", tmp_path / "out", "--classes", *CLASSES]
        return main([str(argument) for argument in ["segment", *arguments, *fixed]])

    return run


@pytest.fixture
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(cli, "load_model", fail)


def test_command_writes_pictures_and_videos_of_a_folder(
    segment: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "clip.mp4", range(3))
    Image.new("RGB", (64, 48)).save(tmp_path / "in" / "clip.png")
    assert segment(tmp_path / "in", "--batch-size", "2") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "clip_overlay.mp4",
        "clip.json",
        "clip_2_overlay.jpg",
        "clip_2_labels.png",
        "clip_2.json",
    }
    assert "2 of 2 pictures and videos written" in capsys.readouterr().out


def test_command_names_a_bad_video_and_writes_the_others(
    segment: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "good.mp4", range(2))
    (tmp_path / "bad.mp4").write_text("no video")
    assert segment(tmp_path) == 1
    output = capsys.readouterr()
    assert f"skipped {tmp_path / 'bad.mp4'}: expected a video" in output.err
    assert "1 of 2 videos written" in output.out


@pytest.mark.usefixtures("no_model_is_loaded")
class TestRefused:
    @pytest.fixture
    def refused(self, segment: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        """Run `sed-hf segment`, which must fail with status 2, and return its message."""

        def run(*arguments: object) -> str:
            assert segment(*arguments) == 2
            return capsys.readouterr().err

        return run

    def test_only_a_file_that_is_no_video(self, refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "clip.mp4").write_text("no video")
        message = refused(tmp_path / "clip.mp4")
        assert "clip.mp4: expected a video, but it cannot be read: Invalid data found" in message
        assert "error: none of the videos can be read" in message

    def test_video_without_pyav(
        self, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cli, "find_spec", lambda name: None)
        clip = write_clip(tmp_path / "clip.mp4", range(1))
        assert f"{clip}: videos and cameras need PyAV: pip install '.[video]'" in refused(clip)

    def test_video_with_an_old_pyav(
        self, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(av.library_versions, "libavformat", (62, 3, 100))
        clip = write_clip(tmp_path / "clip.mp4", range(1))
        assert f"{clip}: videos and cameras need PyAV with FFmpeg 8.1 or later, got PyAV" in refused(clip)

    def test_result_that_would_overwrite_a_video(self, refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        write_clip(tmp_path / "out" / "clip.mp4", range(1))
        write_clip(tmp_path / "out" / "clip_overlay.mp4", range(1))
        assert "clip_overlay.mp4 is one of the videos" in refused(tmp_path / "out")

    def test_camera_that_is_no_number(self, refused: Callable[..., str]) -> None:
        assert "camera:front: expected camera:N" in refused("camera:front")

    def test_camera_beside_other_inputs(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "camera:0: expected no INPUT beside a camera, got 2" in refused("camera:0", tmp_path)

    def test_camera_without_pyav(self, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cli, "find_spec", lambda name: None)
        assert "camera:0: videos and cameras need PyAV" in refused("camera:0")

    def test_camera_without_a_display(self, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        tkinter = pytest.importorskip("tkinter")

        def fail() -> None:
            raise tkinter.TclError("no display name and no $DISPLAY environment variable")

        monkeypatch.setattr(tkinter, "Tk", fail)
        assert "error: camera:0: the live window needs a display: no display name" in refused("camera:0")

    def test_camera_without_tkinter(self, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        import_module = builtins.__import__

        def fail_for_tkinter(name: str, *arguments: object) -> object:
            if name == "tkinter":
                raise ImportError(name)
            return import_module(name, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(builtins, "__import__", fail_for_tkinter)
        assert "error: camera:0: the live window needs tkinter" in refused("camera:0")

    def test_camera_that_is_not_there(self, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sed_hf.camera.LiveWindow", FakeWindow)
        assert "error: camera:99: expected a camera, but " in refused("camera:99")


class FakeWindow:
    def __init__(self, title: str) -> None:
        pass

    def close(self) -> None:
        pass


def test_video_is_known_by_its_name(tmp_path: Path) -> None:
    for name in ("a.MP4", "b.mkv", "._a.mp4", "notes.txt"):
        (tmp_path / name).touch()
    assert find_files([str(tmp_path)]) == [tmp_path / "a.MP4", tmp_path / "b.mkv"]
