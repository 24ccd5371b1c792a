"""The `sed-hf` command: what it writes, what it skips and says, what it refuses."""

import functools
import json
from pathlib import Path
from unittest.mock import Mock

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
from sed_hf.inference.segmenter import unused_label
from sed_hf.inference.writers import label_map

CLASSES = ["sky", "dog, puppy", "grass"]
Output = pytest.CaptureFixture[str]
load_model_once = functools.cache(arguments.load_model)


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "load_model", load_model_once)
    monkeypatch.chdir(tmp_path)
    save_image("photo.jpg")


def segment(*inputs: object, classes: list[str] | None = None) -> int:
    """Run `sed-hf segment` with the toy model into `out`."""
    class_arguments = [] if {"--vocabulary", "--classes"} & {*inputs} else ["--classes", *(classes or CLASSES)]
    options = ["--device", "cpu", "--output", "out", *inputs, *class_arguments]
    return main(["segment", *map(str, options)])


def save_image(name: str, size: tuple[int, int] = (80, 60)) -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


def labels_in(folder: str, stem: str = "photo") -> NDArray[np.integer]:
    return np.asarray(Image.open(Path(folder, f"{stem}_labels.png")))


def summary_in(folder: str) -> dict:
    return json.loads(Path(folder, "photo.json").read_text(encoding="utf-8"))


def files_in(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class TestResults:
    def test_are_overlay_label_map_and_summary_of_what_the_model_predicts(self) -> None:
        assert segment("photo.jpg") == 0
        assert set(files_in("out")) == {"photo_overlay.jpg", "photo_labels.png", "photo.json"}
        model, processor = load_model_once(str(TOY_MODEL), "cpu", "float32")
        with torch.inference_mode(), Image.open("photo.jpg") as image:
            outputs = model(**processor(images=image, text=CLASSES, return_tensors="pt"))
        [expected] = processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 80)])
        labels, summary = labels_in("out"), summary_in("out")
        assert labels.tolist() == expected.tolist()  # type: ignore[union-attr]
        classes = summary.pop("classes")
        size = {"width": 80, "height": 60}
        assert summary == {"file": "photo.jpg", **size, "model": str(TOY_MODEL), "ignored_pixels": 0}
        assert [entry["share"] for entry in classes] == sorted((entry["share"] for entry in classes), reverse=True)
        for entry in classes:
            assert entry["name"] == CLASSES[entry["index"]]
            assert entry["share"] == pytest.approx(np.mean(labels == entry["index"]), abs=1e-6)
            assert 0 < entry["mean_probability"] < 1

    @pytest.mark.parametrize(
        ("num_classes", "dtype", "unused"), [(1, "uint8", 255), (255, "uint8", 255), (256, "uint16", 65535)]
    )
    def test_label_map_has_as_many_bits_as_it_needs(self, num_classes: int, dtype: str, unused: int) -> None:
        found = np.asarray(label_map(np.array([[0, num_classes - 1, unused_label(num_classes)]]), num_classes))
        assert (found.tolist(), found.dtype) == ([[0, num_classes - 1, unused]], dtype)


class TestClasses:
    def test_come_encoded_from_a_file(self) -> None:
        assert main(["encode", "classes.safetensors", "--classes", *CLASSES]) == 0
        segment("photo.jpg")
        expected = files_in("out")
        assert segment("photo.jpg", "--vocabulary", "classes.safetensors") == 0
        assert files_in("out") == expected

    def test_lose_a_comma_at_their_end_and_are_encoded_once(self, capsys: Output) -> None:
        segment("photo.jpg")
        assert "Encoding 3 of 3 classes" in capsys.readouterr().err
        expected = files_in("out")
        assert segment("photo.jpg", classes=["sky,", "dog, puppy,", ",", "grass"]) == 0
        assert files_in("out") == expected
        error = capsys.readouterr().err
        assert not any(message in error for message in ("Encoding", "is one class"))

    @pytest.mark.parametrize("name", ["sky, water, gravel", "sky,water,gravel"])
    def test_one_with_commas_brings_a_hint(self, capsys: Output, name: str) -> None:
        assert segment("photo.jpg", classes=[name]) == 0
        assert (
            f"{name!r} is one class; for 3, write each on a line of a vocabulary, or --classes sky"
            in capsys.readouterr().err
        )


class TestOptions:
    def test_threshold_leaves_pixels_without_a_class(self) -> None:
        segment("photo.jpg", "--threshold", 1)
        assert np.all(labels_in("out") == 255)
        assert (summary_in("out")["classes"], summary_in("out")["ignored_pixels"]) == ([], 80 * 60)

    def test_topk_reaches_the_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spy = Mock(side_effect=SEDForSemanticSegmentation.forward)
        monkeypatch.setattr(SEDForSemanticSegmentation, "forward", lambda *args, **kwargs: spy(*args, **kwargs))
        segment("photo.jpg")
        segment("photo.jpg", "--topk", 1)
        assert [call.kwargs["early_rejection_topk"] for call in spy.call_args_list] == [None, 1]

    def test_everything_else_takes_what_other_names_win(self) -> None:
        Path("others.txt").write_text("grass\nsand\nwater\n")  # "grass" is one of the classes already
        segment("photo.jpg", "--output", "all", classes=[*CLASSES, "sand", "water"])
        segment("photo.jpg", "--everything-else", "others.txt")
        assert (labels_in("out") == np.minimum(labels_in("all"), 3)).all()
        assert {entry["name"] for entry in summary_in("out")["classes"]} <= {*CLASSES, "everything else"}
        segment("photo.jpg", "--everything-else", "others.txt", "--threshold", 1)
        assert (labels_in("out") == 255).all()

    def test_a_sliding_window_cuts_large_images(self) -> None:
        photo = save_image("photo.png", (200, 100))
        assert segment(photo, "--sliding-window", 100, "--overlap", 0) == 0
        for side, left in [("left", 0), ("right", 100)]:
            Image.open(photo).crop((left, 0, left + 100, 100)).save(f"{side}.png")
            segment(f"{side}.png")
        halves = np.concatenate([labels_in("out", "left"), labels_in("out", "right")], 1)
        assert (labels_in("out") == halves).mean() > 0.99
        segment(photo, "--sliding-window", 100, "--overlap", 0, "--global-view")
        assert (labels_in("out") != halves).any()


class TestInputs:
    @pytest.mark.parametrize(
        ("given", "names"),
        [
            ("in", ["a.jpg", "b.PNG", "c.jfif", "d.jpe", "e.MPO", "photo[1].jpg"]),
            ("in/**/*.jpg", ["a.jpg", "deeper/c.jpg", "photo[1].jpg"]),
            ("in/photo[1].jpg", ["photo[1].jpg"]),  # which has the signs of a glob
        ],
    )
    def test_are_the_images_of_a_folder_what_a_glob_matches_or_a_file(self, given: str, names: list[str]) -> None:
        Path("in/deeper").mkdir(parents=True)
        for name in ("b.PNG", "a.jpg", "c.jfif", "d.jpe", "e.MPO", "._a.jpg", "deeper/c.jpg", "photo[1].jpg"):
            Path("in", name).touch()
        assert find_files([given, given]) == [Path("in", name) for name in names]

    def test_that_are_left_out_of_a_folder_are_counted(self, capsys: Output) -> None:
        for name in ("a.jpg", "b.HEIC", "c.heic", "notes.txt", "README", ".hidden"):
            Path(name).touch()
        find_files(["."])
        message = "4 files are left out, by their names (1 without ending, 2 .heic, 1 .txt)"
        assert message in capsys.readouterr().err

    def test_of_one_name_get_results_of_different_names(self) -> None:
        files = [Path("a/photo.jpg"), Path("b/photo.png"), Path("b/Photo.jpg"), Path("photo_2.jpg")]
        names = [job.results[-1].name for job in plan_jobs(files, Path("out"))]
        assert names == ["photo.json", "photo_2.json", "Photo_3.json", "photo_2_2.json"]


class TestSkipped:
    def test_unreadable_images_are_named_and_the_rest_is_written(self, capsys: Output) -> None:
        good = save_image("in/good.png")
        Path("in/cut.png").write_bytes(good.read_bytes()[:-500])
        Path("in/\x1bwhole.jpg").write_bytes(Path("photo.jpg").read_bytes()[:-2])
        Path("in/text.jpg").write_text("not an image")
        assert segment("in", "--batch-size", 2) == 1
        output = capsys.readouterr()
        assert "skipped in/cut.png: " in output.err
        assert "skipped in/text.jpg: " in output.err
        assert r"\x1bwhole.jpg: the JPEG file lacks its last bytes" in output.err
        assert "2 of 4 images written" in output.out
        assert {path.name for path in Path("out").glob("*.json")} == {"good.json", "\x1bwhole.json"}

    def test_what_fits_into_no_jpeg_gets_a_smaller_overlay(self, capsys: Output) -> None:
        Image.new("RGB", (20, 70400)).save("long.png")
        assert segment("long.png", "photo.jpg") == 1
        assert "long.png: its overlay is made smaller: a JPEG file has" in capsys.readouterr().err
        assert labels_in("out", "long").shape == (70400, 20)
        assert max(Image.open("out/long_overlay.jpg").size) == 65500
        assert {"long.json", "photo.json"} < set(files_in("out"))

    def test_a_name_that_is_too_long_costs_one_image(self, capsys: Output) -> None:
        names = ["a", "b" * 236, "c" * 244]
        for name in names:
            save_image(f"in/{name}.png")
        assert segment("in") == 1
        assert f"{names[2]}.png: not all results are written: " in capsys.readouterr().err
        written = {name + ending for name in names[:2] for ending in ("_labels.png", "_overlay.jpg", ".json")}
        assert set(files_in("out")) == {*written, f"{names[2]}_labels.png"}

    def test_control_characters_of_a_name_do_not_reach_the_terminal(self, capsys: Output) -> None:
        Path("\x1b[2Jred\n\x07.png").write_text("not an image")
        save_image("\x9bphoto.png")
        segment(".", "--output", "\x1bout")
        segment("\x1bnone.png")
        output = "".join(capsys.readouterr())
        assert not {"\x1b", "\x07", "\x9b"} & set(output)
        assert r"\x1b[2Jred \x07.png" in output
        assert r"\x1bnone.png" in output


class TestRefused:
    """Before the model is loaded, with status 2."""

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["none.jpg"], "none.jpg: expected an image"),
            (["*.bmp"], "nothing matches it as a glob"),
            (["empty"], "a folder without them"),
            (["out"], "photo_overlay.jpg is one of the inputs"),
            (["photo.jpg", "--output", "photo.jpg/out"], "Not a directory: 'photo.jpg/out'"),
            (["photo.jpg", "--model", "none"], "expected a model folder"),
            (["photo.jpg", "--vocabulary", "ade"], "unknown vocabulary 'ade'"),
            (["photo.jpg", "--vocabulary", "many.json"], "at most 65535 classes"),
            (["photo.jpg", "--vocabulary", "ade20k_150", "--classes", "sky"], "either --classes"),
            (["photo.jpg", "--classes", "sky", "b.PNG", "c.mp4"], "--classes takes all that follows it: give b.PNG, c"),
            (["--classes", "sky", "photo.jpg"], "required: INPUT (before --classes, which takes all that follows it)"),
            (["photo.jpg", "--vocabulary", "ade20k_150", "--everything-else", "ade20k_150"], "names are among yours"),
            (["photo.jpg", "--topk", "-1"], "a whole number of at least 0"),
            (["photo.jpg", "--threshold", "nan"], "a number from 0 to 1"),
            (["photo.jpg", "--global-view"], "--global-view: expected only with --sliding-window"),
            (["photo.jpg", "--sliding-window", "8"], "tile_size of at least 32 pixels, got 8"),
            (["photo.jpg", "--sliding-window=64", "--overlap=2"], "overlap to be from 0 to 0.75, got 2.0"),
        ],
    )
    def test_arguments(self, options: list[str], expected: str, capsys: Output) -> None:
        Path("empty").mkdir()
        save_image("out/photo.jpg")
        save_image("out/photo_overlay.jpg")
        Path("many.json").write_text(json.dumps([str(index) for index in range(65536)]))
        try:
            status: object = segment(*options)
        except SystemExit as exit_of_argparse:
            status = exit_of_argparse.code
        message = capsys.readouterr().err
        assert status == 2
        assert expected in message
        assert "sed-hf: loading" not in message


def test_logits_that_are_not_finite_stop_it_with_the_name_of_the_image_and_the_remedy(capsys: Output) -> None:
    encoder = text_encoder_sha256(*load_model_once(str(TOY_MODEL), "cpu", "float32"))
    save_class_embeddings("nan.safetensors", CLASSES, torch.full((3, 4, 128), torch.nan), encoder)
    assert segment("photo.jpg", "--vocabulary", "nan.safetensors") == 2
    message = "photo.jpg: the logits are not finite; use float32 or bfloat16"
    assert capsys.readouterr().err.splitlines()[-1] == f"sed-hf: error: {message}"
    assert files_in("out") == {}


@pytest.mark.parametrize(
    "command",
    ["convert model_final.pth converted --config tiny.json", "init convnext_base_w_320 initial --pretrained laion"],
)
def test_convert_and_init_write_a_folder_that_segment_takes(
    command: str,
    tiny_model: SEDForSemanticSegmentation,
    tiny_weights: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_model.config.to_json_file("tiny.json")
    torch.save({"model": tiny_weights}, "model_final.pth")
    made = {("convnext_base_w_320", "laion"): tiny_model}
    monkeypatch.setattr(conversion, "from_open_clip", lambda variant, pretrained: made[variant, pretrained])
    assert main(command.split()) == 0
    assert segment("photo.jpg", "--model", command.split()[2]) == 0


@pytest.mark.parametrize("config", ["not JSON", '{"projection_dim": "many"}'])
def test_convert_names_a_bad_config(config: str, capsys: Output) -> None:
    Path("config.json").write_text(config)
    assert main(["convert", "model_final.pth", "model", "--config", "config.json"]) == 2
    assert "--config config.json: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["segment", "explain", "encode", "convert", "init", "export", "demo"])
def test_help_gives_an_example(command: str, capsys: Output) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"\n  sed-hf {command}" in capsys.readouterr().out
