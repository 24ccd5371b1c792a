"""Videos: what is kept of the original, how results appear, and how the legend behaves from frame to frame."""

import json
import os
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from clips import write_clip
from PIL import Image
from planted import disk_takes
from scipy.io import wavfile

from sed_hf.cli import main
from sed_hf.inference.video import UnreadableVideoError, VideoOverlay, check_video, segment_video
from sed_hf.visualization import class_colors

CLASSES = ["left", "right, starboard"]
Results = list[dict[str, np.ndarray]]
Segment = Callable[[list[Image.Image]], Results]
Output = pytest.CaptureFixture[str]


class Decoded(NamedTuple):
    """What a player finds in a file."""

    times: list[float]
    images: list[np.ndarray]
    sound: np.ndarray


def decode(path: Path) -> Decoded:
    times, images, sound = [], [], [np.zeros(0, dtype=np.float32)]
    with path.open("rb") as file, av.open(file) as container:
        for frame in container.decode(*container.streams.video, *container.streams.audio):
            if isinstance(frame, av.VideoFrame):
                times.append(frame.time)
                images.append(frame.to_ndarray(format="rgb24"))
            else:
                sound.append(frame.to_ndarray().ravel())
    return Decoded(times, images, np.concatenate(sound))


def halves(images: list[Image.Image], right: int = 1) -> Results:
    """Class 0 in the left half of each image, another label in the right one."""
    labels = np.zeros((images[0].height, images[0].width), dtype=np.int64)
    labels[:, images[0].width // 2 :] = right
    return [{"segmentation": labels, "probability": np.full(labels.shape, 0.75, dtype=np.float32)} for _ in images]


class Stub(SimpleNamespace):
    """Stands for a `Segmenter`."""

    def __call__(self, images: list[Image.Image]) -> Results:
        return self.segment(images)


def overlay_of(path: Path, segment: Segment = halves, ignore_index: int | None = None, batch_size: int = 1) -> Path:
    """Write `out/STEM_overlay.mp4` and `out/STEM.json` beside a video, and return the overlay's path."""
    output = path.parent / "out"
    output.mkdir(exist_ok=True)
    overlay, summary = output / f"{path.stem}_overlay.mp4", output / f"{path.stem}.json"
    model = SimpleNamespace(name_or_path="stub")
    segmenter: Any = Stub(segment=segment, ignore_index=ignore_index, class_names=CLASSES, model=model)
    segment_video(path, overlay, summary, segmenter, batch_size)
    return overlay


class TestSameVideo:
    def test_ten_seconds_with_sound_in_are_ten_seconds_with_the_same_sound_out(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "clip.mp4", range(100))
        overlay = overlay_of(clip, batch_size=8)
        before, after = decode(clip), decode(overlay)
        assert after.times == before.times
        assert np.array_equal(after.sound, before.sound)
        with av.open(str(overlay)) as container:
            assert container.duration / av.time_base == pytest.approx(10, abs=0.1)
            assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]

    @pytest.mark.parametrize(
        ("name", "sound", "rate"),
        [
            ("clip.mkv", "aac", 16_000),
            ("clip.avi", "mp3", 16_000),
            ("clip.webm", "libopus", 48_000),
            ("clip.mts", "mp2", 48_000),  # this and the next are encoded anew, as MP4 files do not hold them
            ("clip.mov", "pcm_s16le", 48_000),
            ("clip.avi", "pcm_s16le", 48_000),
            ("clip.mkv", "pcm_s16le", 48_000),
        ],
    )
    def test_any_container_keeps_its_times_and_sound(self, tmp_path: Path, name: str, sound: str, rate: int) -> None:
        after = decode(overlay_of(write_clip(tmp_path / name, sound=sound)))
        assert after.times == pytest.approx([time / 10 for time in range(10)], abs=0.05)
        assert len(after.sound) / rate == pytest.approx(1, rel=0.15)
        frequency = np.abs(np.fft.rfft(after.sound)).argmax() * rate / len(after.sound)
        assert frequency == pytest.approx(440, abs=5)

    @pytest.mark.parametrize(("name", "codec"), [("clip.mkv", "libx264"), ("clip.avi", "mpeg4")])
    def test_variable_frame_rate_is_kept(self, name: str, codec: str, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / name, [0, 1, 2, 7, 8, 15, 30], None, codec=codec)
        assert decode(overlay_of(clip)).times == pytest.approx([0, 0.1, 0.2, 0.7, 0.8, 1.5, 3.0])

    def test_recording_that_starts_late_starts_at_once(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "clip.mts", start=50, sound="mp2")
        assert decode(clip).times[0] >= 5
        assert decode(overlay_of(clip)).times[0] == pytest.approx(0, abs=0.1)

    @pytest.mark.parametrize("name", ["12:30.mkv", os.fsdecode(b"caf\xe9.mkv")])
    def test_any_file_name_and_title_can_be_read_and_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        clip = write_clip(Path(name), range(2), title="Käse")
        clip.write_bytes(clip.read_bytes().replace("Käse".encode(), b"K\xe4\xe4se"))
        assert len(decode(overlay_of(clip)).times) == 2

    def test_video_of_a_phone_held_upright_is_upright(self, tmp_path: Path) -> None:
        seen: list[Image.Image] = []
        clip = write_clip(tmp_path / "clip.mov", rotation=-90)
        overlay_of(clip, lambda images: seen.extend(images) or halves(images))
        assert seen[0].size == (48, 64)
        assert np.abs(np.asarray(seen[0], dtype=int) - np.rot90(decode(clip).images[0], -1)).max() < 10

    def test_it_goes_on_after_damaged_frames(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "clip.mp4", range(50), sound=None)
        content = bytearray(clip.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 200] = b"\xff" * 200
        clip.write_bytes(content)
        times = decode(overlay_of(clip)).times
        assert 30 < len(times) < 50
        assert times[-1] == pytest.approx(4.9)


class TestResults:
    def test_summary_says_which_classes_cover_how_much_of_all_frames(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "clip.mp4")
        overlay_of(clip, lambda images: halves(images, right=255), ignore_index=255)
        assert json.loads((tmp_path / "out" / "clip.json").read_text()) == {
            "file": str(clip),
            "width": 64,
            "height": 48,
            "frames": 10,
            "model": "stub",
            "classes": [{"index": 0, "name": "left", "share": 0.5, "mean_probability": 0.75}],
            "ignored_pixels": 10 * 64 * 48 / 2,
        }

    def test_colors_of_the_file_are_those_of_the_classes(self, tmp_path: Path) -> None:
        [first, *_] = decode(overlay_of(write_clip(tmp_path / "clip.mp4"))).images
        legend = first[384:].reshape(-1, 3).astype(int)
        for color in class_colors(CLASSES).astype(int):
            assert np.abs(legend - color).max(axis=1).min() < 12

    def test_only_one_batch_of_frames_is_held_at_a_time(self, tmp_path: Path, capsys: Output) -> None:
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

    def test_an_interruption_leaves_nothing(self, tmp_path: Path) -> None:
        results = [halves, halves]
        with pytest.raises(IndexError):
            overlay_of(write_clip(tmp_path / "clip.mp4"), lambda images: results.pop()(images))
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("num_bytes", [4_000, 45_000])
    def test_full_disk_is_an_error_that_names_the_overlay(self, tmp_path: Path, num_bytes: int) -> None:
        clip = write_clip(tmp_path / "clip.mp4", range(50))
        message = f"File too large: .*{tmp_path}/out/clip_overlay.mp4"
        with disk_takes(num_bytes), pytest.raises(OSError, match=message):
            overlay_of(clip)
        assert list((tmp_path / "out").iterdir()) == []

    def test_command_writes_what_is_in_a_folder_and_names_bad_ones(self, tmp_path: Path, capsys: Output) -> None:
        (tmp_path / "in").mkdir()
        write_clip(tmp_path / "in" / "clip.mp4", range(3))
        Image.new("RGB", (64, 48)).save(tmp_path / "in" / "clip.png")
        (tmp_path / "in" / "bad.mp4").write_text("not a video")
        options = ["--output", str(tmp_path / "out"), "--batch-size", "2", "--classes", *CLASSES]
        assert main(["segment", str(tmp_path / "in"), *options]) == 1
        written = {"clip_overlay.mp4", "clip.json", "clip_2_overlay.jpg", "clip_2_labels.png", "clip_2.json"}
        assert {path.name for path in (tmp_path / "out").iterdir()} == written
        output = capsys.readouterr()
        assert f"{tmp_path / 'in' / 'bad.mp4'}: expected a video, but it cannot be read" in output.err
        assert "2 of 3 images and videos written" in output.out


class TestRefused:
    def test_frames_of_more_pixels_than_the_limit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clip = write_clip(tmp_path / "clip.mp4", pixel_width=Fraction(2))  # 64 × 48, shown as 128 × 48
        monkeypatch.setenv("SED_HF_MAX_IMAGE_PIXELS", "6143")
        with pytest.raises(UnreadableVideoError, match="SED_HF_MAX_IMAGE_PIXELS"):
            check_video(clip)
        monkeypatch.setenv("SED_HF_MAX_IMAGE_PIXELS", "6144")
        assert check_video(clip) == (128, 48)

    def test_a_file_without_a_video_stream(self, tmp_path: Path) -> None:
        wavfile.write(tmp_path / "song.mp4", 16_000, np.zeros(16_000, dtype=np.int16))
        with pytest.raises(UnreadableVideoError, match=r"expected a video, .* none of its streams: audio"):
            check_video(tmp_path / "song.mp4")


class TestLegend:
    """From frame to frame."""

    SIZE = (640, 360)
    NAMES = [f"class {index}" for index in range(300)]

    def draw(self, overlay: VideoOverlay, labels: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
        """A grey frame with vertical stripes of these labels."""
        stripes = np.array(labels)[np.arange(size[0]) * len(labels) // size[0]]
        frame = Image.new("RGB", size, (128, 128, 128))
        return np.asarray(overlay.draw(frame, np.broadcast_to(stripes, size[::-1])))

    def listed(self, overlay: VideoOverlay, labels: list[int]) -> list[int]:
        """The classes in the legend of the next frame."""
        found = {tuple(color) for color in self.draw(overlay, labels)[self.SIZE[1] :].reshape(-1, 3).tolist()}
        return [index for index, color in enumerate(class_colors(self.NAMES).tolist()) if tuple(color) in found]

    def test_of_a_short_vocabulary_changes_only_in_percentages_and_fading(self) -> None:
        overlay = VideoOverlay(self.SIZE, ["sky", "dog, puppy", "grass"])
        swatches = [self.draw(overlay, labels)[self.SIZE[1] :, : 3 * 14] for labels in ([0, 0, 1], [2], [1, 0])]
        assert all(np.array_equal(swatches[0], other) for other in swatches)

    @pytest.mark.parametrize(("num_classes", "size"), [(7, (641, 361)), (60, (1, 1)), (300, (361, 641))])
    def test_all_frames_have_one_size_of_even_sides(self, num_classes: int, size: tuple[int, int]) -> None:
        overlay = VideoOverlay(size, self.NAMES[:num_classes], ignore_index=65535)
        shapes = {self.draw(overlay, labels, size).shape for labels in ([0], list(range(num_classes)), [65535])}
        assert shapes == {(overlay.size[1], overlay.size[0], 3)}
        assert overlay.size[0] % 2 == overlay.size[1] % 2 == 0

    def test_a_class_keeps_its_place_and_newcomers_take_those_of_classes_out_of_view_longest(self) -> None:
        overlay, first = VideoOverlay(self.SIZE, self.NAMES), list(range(22))
        assert self.listed(overlay, list(range(32))) == first
        assert self.listed(overlay, [0] * 639 + [70]) == first  # 70 is too small
        self.draw(overlay, first[1:])
        assert self.listed(overlay, [*first[2:], 50]) == [*first[1:], 50]
        assert self.listed(overlay, [60]) == [*first[2:], 50, 60]
