"""The `sed-hf` command: what it writes, what it skips and says, what it refuses."""

import functools
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation, conversion
from sed_hf.cli import arguments, main
from sed_hf.cli.inputs import find_files, plan_jobs
from sed_hf.hub.load import TOY_MODEL
from sed_hf.inference.class_embeddings import save_class_embeddings, text_encoder_sha256
from sed_hf.inference.writers import unused_label, write_results

CLASSES = ["sky", "dog, puppy", "grass"]
Run = Callable[..., int]


@pytest.fixture(autouse=True)
def _quick_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "load_model", load_model_once)


load_model_once = functools.cache(arguments.load_model)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return save_image(tmp_path / "photo.jpg")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def segment(out: Path) -> Run:
    """Run `sed-hf segment` with the toy model into `out`."""

    def run(*inputs: object, classes: list[str] | None = None) -> int:
        fixed = ["--device", "cpu", "--output", out]
        class_arguments = ["--classes", *(classes or CLASSES)] if "--vocabulary" not in inputs else []
        return main([str(argument) for argument in ["segment", *fixed, *inputs, *class_arguments]])

    return run


def save_image(path: Path, size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def labels_in(folder: Path, stem: str = "photo") -> NDArray[np.integer]:
    with Image.open(folder / f"{stem}_labels.png") as labels:
        return np.asarray(labels)


def summary_in(folder: Path, stem: str = "photo") -> dict:
    return json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestResults:
    def test_are_overlay_label_map_and_summary(self, segment: Run, photo: Path, out: Path) -> None:
        assert segment(photo) == 0
        assert names_in(out) == {"photo_overlay.jpg", "photo_labels.png", "photo.json"}

    def test_label_map_holds_what_the_model_predicts(
        self,
        segment: Run,
        photo: Path,
        out: Path,
    ) -> None:
        segment(photo)
        model, processor = load_model_once(str(TOY_MODEL), "cpu", "float32")
        with torch.inference_mode(), Image.open(photo) as image:
            outputs = model(**processor(images=image, text=CLASSES, return_tensors="pt"))
        [expected] = processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 80)])
        assert labels_in(out).tolist() == expected.tolist()  # type: ignore[union-attr]

    def test_summary_says_which_classes_cover_how_much(self, segment: Run, photo: Path, out: Path) -> None:
        segment(photo)
        summary, labels = summary_in(out), labels_in(out)
        classes = summary.pop("classes")
        size = {"width": 80, "height": 60}
        assert summary == {"file": str(photo), **size, "model": str(TOY_MODEL), "ignored_pixels": 0}
        assert [entry["share"] for entry in classes] == sorted((entry["share"] for entry in classes), reverse=True)
        for entry in classes:
            assert entry["name"] == CLASSES[entry["index"]]
            assert entry["share"] == pytest.approx(np.mean(labels == entry["index"]), abs=1e-6)
            assert 0 < entry["mean_probability"] < 1

    def test_label_map_of_many_classes_has_16_bits(self, tmp_path: Path) -> None:
        [job] = plan_jobs([Path("photo.jpg")], tmp_path)
        result = {"segmentation": np.array([[0, 299, 65535]]), "probability": np.full((1, 3), 0.5)}
        names = [str(index) for index in range(300)]
        write_results(job.results, job.source, Image.new("RGB", (3, 1)), result, names, 65535, "tiny")
        assert labels_in(tmp_path).tolist() == [[0, 299, 65535]]
        assert labels_in(tmp_path).dtype == np.uint16

    @pytest.mark.parametrize(("num_classes", "label"), [(1, 255), (255, 255), (256, 65535), (65535, 65535)])
    def test_label_of_pixels_without_a_class_is_the_highest_of_the_label_map(
        self, num_classes: int, label: int
    ) -> None:
        assert unused_label(num_classes) == label

    def test_batches_of_images_of_mixed_sizes_are_those_of_single_images(
        self, segment: Run, tmp_path: Path, out: Path
    ) -> None:
        for index, size in enumerate([(80, 60), (50, 70), (64, 64)]):
            save_image(tmp_path / "in" / f"{index}.png", size)
        segment(tmp_path / "in")
        single = [labels_in(out, str(index)) for index in range(3)]
        segment(tmp_path / "in", "--batch-size", "2")
        assert all(np.mean(one == labels_in(out, str(index))) > 0.99 for index, one in enumerate(single))

    def test_are_the_right_way_up(self, segment: Run, tmp_path: Path, out: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: to be turned by 90 degrees
        Image.new("RGB", (80, 60)).save(tmp_path / "photo.jpg", exif=exif)
        segment(tmp_path / "photo.jpg")
        assert labels_in(out).shape == (80, 60)

    @pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK"])
    def test_there_are_some_for_every_mode(self, segment: Run, tmp_path: Path, out: Path, mode: str) -> None:
        assert segment(save_image(tmp_path / "photo.tif", mode=mode)) == 0


class TestClasses:
    def test_come_from_a_vocabulary_file(self, segment: Run, photo: Path, tmp_path: Path, out: Path) -> None:
        (tmp_path / "pets.txt").write_text("cat\ndog, puppy\n")
        segment(photo, "--vocabulary", tmp_path / "pets.txt")
        assert {entry["name"] for entry in summary_in(out)["classes"]} <= {"cat", "dog, puppy"}

    def test_come_encoded_from_a_file(self, segment: Run, photo: Path, tmp_path: Path, out: Path) -> None:
        encoded = tmp_path / "classes.safetensors"
        assert main(["encode", str(encoded), "--classes", *CLASSES]) == 0
        segment(photo)
        expected = {path.name: path.read_bytes() for path in out.iterdir()}
        assert segment(photo, "--vocabulary", encoded) == 0
        assert {path.name: path.read_bytes() for path in out.iterdir()} == expected

    def test_are_encoded_once_in_all_runs(self, segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in "abc":
            save_image(tmp_path / "in" / f"{name}.png")
        calls = []
        encode = SEDForSemanticSegmentation.get_class_embeddings

        def spy(self: SEDForSemanticSegmentation, *args: Tensor, **kwargs: Tensor) -> Tensor:
            calls.append(kwargs)
            return encode(self, *args, **kwargs)

        monkeypatch.setattr(SEDForSemanticSegmentation, "get_class_embeddings", spy)
        segment(tmp_path / "in")
        segment(tmp_path / "in")
        assert len(calls) == 1

    def test_a_comma_after_each_is_dropped(
        self, segment: Run, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        segment(photo)
        expected = (out / "photo.json").read_text()
        assert segment(photo, classes=["sky,", "dog, puppy,", ",", "grass"]) == 0
        assert (out / "photo.json").read_text() == expected
        assert "is one class" not in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["sky, water, gravel", "sky,water,gravel"])
    def test_one_with_commas_brings_a_hint(
        self, segment: Run, photo: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        assert segment(photo, classes=[name]) == 0
        assert f"{name!r} is one class; for 3, write --classes sky water gravel" in capsys.readouterr().err

    def test_cache_is_shown_and_cleared(
        self, segment: Run, photo: Path, cache_home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        segment(photo)
        capsys.readouterr()
        for options, answer in [([], "3 classes, 0 MiB in"), (["--clear"], "3 classes, 0 MiB removed from")]:
            assert main(["cache", *options]) == 0
            assert f"{answer} {cache_home}" in capsys.readouterr().out
        main(["cache"])
        assert "0 classes" in capsys.readouterr().out


class TestOptions:
    def test_threshold_leaves_pixels_without_a_class(self, segment: Run, photo: Path, out: Path) -> None:
        segment(photo, "--threshold", "1")
        assert np.all(labels_in(out) == 255)
        assert (summary_in(out)["classes"], summary_in(out)["ignored_pixels"]) == ([], 80 * 60)

    def test_topk_reaches_the_model(self, segment: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []
        forward = SEDForSemanticSegmentation.forward

        def spy(self: SEDForSemanticSegmentation, *args: object, **kwargs: object) -> object:
            seen.append(kwargs["early_rejection_topk"])
            return forward(self, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(SEDForSemanticSegmentation, "forward", spy)
        segment(photo)
        segment(photo, "--topk", "1")
        assert seen == [None, 1]

    def test_everything_else_takes_what_other_names_win(
        self, segment: Run, photo: Path, tmp_path: Path, out: Path
    ) -> None:
        (tmp_path / "others.txt").write_text("grass\nsand\nwater\n")  # "grass" is one of the classes already
        segment(photo, "--output", tmp_path / "all", classes=[*CLASSES, "sand", "water"])
        segment(photo, "--everything-else", tmp_path / "others.txt")
        assert (labels_in(out) == np.minimum(labels_in(tmp_path / "all"), 3)).all()
        assert {entry["name"] for entry in summary_in(out)["classes"]} <= {*CLASSES, "everything else"}
        segment(photo, "--everything-else", tmp_path / "others.txt", "--threshold", "1")
        assert (labels_in(out) == 255).all()

    def test_a_sliding_window_that_one_tile_fills_changes_nothing(
        self, segment: Run, photo: Path, tmp_path: Path, out: Path
    ) -> None:
        segment(photo)
        segment(photo, "--output", tmp_path / "tiled", "--sliding-window", 96)
        assert (labels_in(out) == labels_in(tmp_path / "tiled")).all()

    def test_a_sliding_window_cuts_large_images(self, segment: Run, tmp_path: Path, out: Path) -> None:
        photo = save_image(tmp_path / "photo.png", (200, 100))
        assert segment(photo, "--sliding-window", 100, "--overlap", 0) == 0
        for side, left in [("left", 0), ("right", 100)]:
            Image.open(photo).crop((left, 0, left + 100, 100)).save(tmp_path / f"{side}.png")
            segment(tmp_path / f"{side}.png")
        halves = np.concatenate([labels_in(out, "left"), labels_in(out, "right")], 1)
        assert (labels_in(out) == halves).mean() > 0.99
        segment(photo, "--sliding-window", 100, "--overlap", 0, "--global-view")
        assert (labels_in(out) != halves).any()


class TestInputs:
    def touch(self, folder: Path, *names: str) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()

    def test_of_a_folder_are_the_images_directly_in_it(self, tmp_path: Path) -> None:
        self.touch(tmp_path, "b.PNG", "a.jpg", "c.jfif", "d.jpe", "e.MPO", "._a.jpg", "deeper/c.jpg")
        names = ["a.jpg", "b.PNG", "c.jfif", "d.jpe", "e.MPO"]
        assert find_files([str(tmp_path)]) == [tmp_path / name for name in names]

    def test_that_are_left_out_of_a_folder_are_counted(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.touch(tmp_path, "a.jpg", "b.HEIC", "c.heic", "notes.txt", "README", ".hidden")
        find_files([str(tmp_path)])
        message = f"{tmp_path}: 4 files are left out, by their names (1 without ending, 2 .heic, 1 .txt)"
        assert message in capsys.readouterr().err

    def test_of_a_glob_are_as_deep_as_it_says(self, tmp_path: Path) -> None:
        self.touch(tmp_path, "a.jpg", "deeper/c.jpg")
        assert find_files([f"{tmp_path}/**/*.jpg"]) == [tmp_path / "a.jpg", tmp_path / "deeper" / "c.jpg"]

    def test_may_have_the_signs_of_a_glob_in_their_names(self, tmp_path: Path) -> None:
        self.touch(tmp_path, "photo[1].jpg")
        assert find_files([str(tmp_path / "photo[1].jpg")]) == [tmp_path / "photo[1].jpg"]

    def test_given_twice_are_segmented_once(self, photo: Path) -> None:
        assert find_files([str(photo), str(photo.parent)]) == [photo]

    def test_of_one_name_get_results_of_different_names(self) -> None:
        files = [Path("a/photo.jpg"), Path("b/photo.png"), Path("b/Photo.jpg"), Path("photo_2.jpg")]
        assert [job.stem.name for job in plan_jobs(files, Path("out"))] == [
            "photo",
            "photo_2",
            "Photo_3",
            "photo_2_2",
        ]


class TestSkipped:
    def test_unreadable_images_are_named_and_the_rest_is_written(
        self, segment: Run, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "in"
        good = save_image(folder / "good.png")
        (folder / "cut.png").write_bytes(good.read_bytes()[:-500])
        (folder / "\x1bwhole.jpg").write_bytes(save_image(tmp_path / "whole.jpg").read_bytes()[:-2])
        (folder / "text.jpg").write_text("not an image")
        assert segment(folder, "--batch-size", "2") == 1
        output = capsys.readouterr()
        assert f"skipped {folder / 'cut.png'}: " in output.err
        assert f"skipped {folder / 'text.jpg'}: " in output.err
        assert r"\x1bwhole.jpg: the JPEG file lacks its last bytes" in output.err
        assert "2 of 4 images written" in output.out
        assert {path.name for path in out.glob("*.json")} == {"good.json", "\x1bwhole.json"}

    def test_what_fits_into_no_jpeg_gets_a_smaller_overlay(
        self, segment: Run, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.new("RGB", (20, 70400)).save(tmp_path / "in.png")
        save_image(tmp_path / "photo.png")
        assert segment(tmp_path) == 1
        assert f"{tmp_path / 'in.png'}: its overlay is made smaller: a JPEG file has" in capsys.readouterr().err
        assert labels_in(out, "in").shape == (70400, 20)
        assert max(Image.open(out / "in_overlay.jpg").size) == 65500
        assert {"in.json", "photo.json"} < names_in(out)

    def test_a_name_that_is_too_long_costs_one_image(
        self, segment: Run, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("a", "b" * 236, "c" * 244):
            save_image(tmp_path / f"{name}.png")
        assert segment(tmp_path) == 1
        assert f"{'c' * 244}.png: not all results are written: " in capsys.readouterr().err
        endings = ("_labels.png", "_overlay.jpg", ".json")
        written = {name + ending for name in ("a", "b" * 236) for ending in endings}
        assert names_in(out) == {*written, f"{'c' * 244}_labels.png"}

    def test_control_characters_of_a_name_do_not_reach_the_terminal(
        self, segment: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "\x1b[2Jred\n\x07.png").write_text("not an image")
        save_image(tmp_path / "\x9bphoto.png")
        segment(tmp_path, "--output", tmp_path / "\x1bout")
        main(["segment", str(tmp_path / "\x1bnone.png"), "--classes", "sky"])
        output = "".join(capsys.readouterr())
        assert not {"\x1b", "\x07", "\x9b"} & set(output)
        assert r"\x1b[2Jred \x07.png" in output
        assert r"\x1bnone.png" in output


class TestProgress:
    def test_is_shown_for_many_images(self, segment: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for index in range(6):
            save_image(tmp_path / "in" / f"{index}.png", (8, 6))
        segment(tmp_path / "in")
        error = capsys.readouterr().err
        assert "6/6" in error
        assert error.count("Segmenting") <= 3  # standard error is not a terminal here


class TestRefused:
    """Before the model is loaded, with status 2."""

    @pytest.fixture
    def refused(self, segment: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        """Run `sed-hf segment`, which must refuse, and return its message."""

        def run(*inputs: object, **kwargs: list[str]) -> str:
            try:
                status = segment(*inputs, **kwargs)
            except SystemExit as exit_of_argparse:
                status = exit_of_argparse.code  # type: ignore[assignment]
            message = capsys.readouterr().err
            assert status == 2
            assert "sed-hf: loading" not in message
            return message

        return run

    def test_file_that_is_not_there(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "nowhere.jpg: expected an image" in refused(tmp_path / "nowhere.jpg")

    def test_glob_that_matches_nothing(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "nothing matches it as a glob" in refused(tmp_path / "*.jpg")

    def test_folder_without_images(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "a folder without them" in refused(tmp_path)

    def test_unknown_vocabulary(self, refused: Callable[..., str], photo: Path) -> None:
        assert "unknown vocabulary 'ade'" in refused(photo, "--vocabulary", "ade")

    def test_encoded_vocabulary_that_is_not_there(self, refused: Callable[..., str], photo: Path) -> None:
        assert "none.safetensors" in refused(photo, "--vocabulary", "none.safetensors")

    def test_duplicate_class_names(self, refused: Callable[..., str], photo: Path) -> None:
        assert "'Sky' is the same class name" in refused(photo, classes=["sky", "Sky"])

    def test_more_classes_than_a_label_map_can_hold(
        self, refused: Callable[..., str], photo: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "many.json").write_text(json.dumps([str(index) for index in range(65536)]))
        assert "at most 65535 classes" in refused(photo, "--vocabulary", tmp_path / "many.json")

    @pytest.mark.parametrize(
        ("option", "value", "expected"),
        [
            ("--topk", "-1", "a whole number of at least 0"),
            ("--topk", "two", "a whole number of at least 0"),
            ("--batch-size", "-1", "a whole number of at least 1"),
            ("--threshold", "1.5", "a probability from 0 to 1"),
            ("--threshold", "nan", "a probability from 0 to 1"),
            ("--dtype", "int8", "invalid choice"),
            ("--global-view", None, "--global-view: expected only with --sliding-window"),
            ("--overlap", "0.5", "--overlap: expected only with --sliding-window"),
            ("--sliding-window", "8", "tile_size of at least 32 pixels, got 8"),
            ("--sliding-window=64", "--overlap=2", "overlap to be from 0 to 0.75, got 2.0"),
        ],
    )
    def test_value_out_of_range(
        self, refused: Callable[..., str], photo: Path, option: str, value: str | None, expected: str
    ) -> None:
        assert expected in refused(photo, option, *([] if value is None else [value]))

    def test_model_that_is_not_there(self, refused: Callable[..., str], photo: Path, tmp_path: Path) -> None:
        assert "expected a model folder" in refused(photo, "--model", tmp_path / "none")

    def test_model_that_is_not_a_model_folder(self, refused: Callable[..., str], photo: Path) -> None:
        assert "no config.json" in refused(photo, "--model", photo)

    def test_output_that_is_a_file(self, refused: Callable[..., str], photo: Path) -> None:
        assert "it is a file" in refused(photo, "--output", photo)
        assert f"{photo} is a file" in refused(photo, "--output", photo / "out")

    def test_result_that_would_overwrite_an_image(self, refused: Callable[..., str], out: Path) -> None:
        save_image(out / "photo.jpg")
        save_image(out / "photo_overlay.jpg")
        assert "photo_overlay.jpg is one of the inputs" in refused(out)


def test_device_that_is_not_there_is_refused(
    segment: Run, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert segment(photo, "--device", "cuda") == 2
    assert "device cuda: " in capsys.readouterr().err


def test_logits_that_are_not_finite_stop_it_with_the_name_of_the_image_and_the_remedy(
    segment: Run, photo: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = text_encoder_sha256(*load_model_once(str(TOY_MODEL), "cpu", "float32"))
    embeddings = torch.full((3, 4, 128), torch.nan)
    save_class_embeddings(tmp_path / "nan.safetensors", CLASSES, embeddings, encoder)
    assert segment(photo, "--vocabulary", tmp_path / "nan.safetensors") == 2
    message = f"{photo}: the logits are not finite; use float32 or bfloat16"
    assert capsys.readouterr().err.splitlines()[-1] == f"sed-hf: error: {message}"
    assert names_in(out) == set()


# Models ---------------------------------------------------------------------------------------------------------------


class TestConvert:
    @pytest.fixture
    def convert(self, tiny_model: SEDForSemanticSegmentation, tiny_weights: dict[str, Tensor], tmp_path: Path) -> Run:
        """Run `sed-hf convert` on a tiny checkpoint, into tmp_path/model."""
        tiny_model.config.to_json_file(tmp_path / "tiny.json")
        torch.save({"model": tiny_weights}, tmp_path / "model_final.pth")

        def run(*options: str, checkpoint: str = "model_final.pth", config: Path | None = None) -> int:
            paths = [str(tmp_path / checkpoint), str(tmp_path / "model")]
            return main(["convert", *paths, "--config", str(config or tmp_path / "tiny.json"), *options])

        return run

    def test_writes_a_folder_that_segment_takes(self, convert: Run, segment: Run, photo: Path, tmp_path: Path) -> None:
        assert convert() == 0
        assert segment(photo, "--model", tmp_path / "model") == 0

    def test_overwrite_replaces_a_model_folder(
        self, convert: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        (tmp_path / "model" / "old.safetensors").touch()
        assert convert() == 2
        assert "expected a new or empty folder" in capsys.readouterr().err
        assert convert("--overwrite") == 0
        assert "model.safetensors" in names_in(tmp_path / "model")
        assert "old.safetensors" not in names_in(tmp_path / "model")

    def test_overwrite_does_not_touch_a_folder_that_holds_no_model(
        self, convert: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "thesis.txt").touch()
        assert convert("--overwrite") == 2
        assert "expected a model folder to replace" in capsys.readouterr().err
        assert names_in(tmp_path / "model") == {"thesis.txt"}

    def test_names_a_checkpoint_that_is_not_there(self, convert: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert convert(checkpoint="none.pth") == 2
        assert "none.pth" in capsys.readouterr().err

    @pytest.mark.parametrize("config", ["not JSON", '{"projection_dim": "many"}', "[]"])
    def test_refuses_a_bad_config(
        self, convert: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str
    ) -> None:
        (tmp_path / "config.json").write_text(config)
        assert convert(config=tmp_path / "config.json") == 2
        assert f"--config {tmp_path / 'config.json'}: " in capsys.readouterr().err

    def test_refuses_a_checkpoint_with_code_without_running_it(
        self, convert: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        marker = tmp_path / "code_was_run"

        class Malicious:
            def __reduce__(self) -> tuple:
                return (Path.touch, (marker,))

        buffer = io.BytesIO()
        torch.save({"model": {"weight": Malicious()}}, buffer)
        (tmp_path / "bad.pth").write_bytes(buffer.getvalue())
        assert convert(checkpoint="bad.pth") == 2
        assert "sed-hf: error: " in capsys.readouterr().err
        assert not marker.exists()
        assert not (tmp_path / "model").exists()


class TestInit:
    def test_writes_a_folder_that_segment_takes(
        self,
        tiny_model: SEDForSemanticSegmentation,
        segment: Run,
        photo: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        asked = []

        def make_tiny(variant: str, pretrained: str | None) -> SEDForSemanticSegmentation:
            asked.append((variant, pretrained))
            return tiny_model

        monkeypatch.setattr(conversion, "from_open_clip", make_tiny)
        assert main(["init", "convnext_base_w_320", str(tmp_path / "model"), "--pretrained", "laion"]) == 0
        assert asked == [("convnext_base_w_320", "laion")]
        assert segment(photo, "--model", tmp_path / "model") == 0

    def test_refuses_an_unknown_variant(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["init", "ViT-B-32", str(tmp_path / "model")]) == 2
        assert "variant='ViT-B-32': expected a timm ConvNeXt" in capsys.readouterr().err
        assert not (tmp_path / "model").exists()


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["segment", "explain", "encode", "convert", "init", "export", "push", "demo"])
def test_help_gives_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of_argparse:
        main([command, "--help"])
    assert exit_of_argparse.value.code == 0
    assert f"\n  sed-hf {command}" in capsys.readouterr().out


def test_help_imports_no_large_library() -> None:
    program = "import sys; from sed_hf.cli.main import build_parser; build_parser(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "numpy", "PIL", "gradio", "av"} & set(modules.split())
