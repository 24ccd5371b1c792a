"""The `sed-hf` command: what it writes, what it skips and says, what it refuses."""

import functools
import json
import subprocess
import sys
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
    class_arguments = ["--classes", *(classes or CLASSES)] if "--vocabulary" not in inputs else []
    options = ["--device", "cpu", "--output", "out", *inputs, *class_arguments]
    return main(["segment", *map(str, options)])


def save_image(name: str, size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def labels_in(folder: str, stem: str = "photo") -> NDArray[np.integer]:
    with Image.open(Path(folder, f"{stem}_labels.png")) as labels:
        return np.asarray(labels)


def summary_in(folder: str, stem: str = "photo") -> dict:
    return json.loads(Path(folder, f"{stem}.json").read_text(encoding="utf-8"))


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


class TestResults:
    def test_are_overlay_label_map_and_summary_of_what_the_model_predicts(self) -> None:
        assert segment("photo.jpg") == 0
        assert names_in("out") == {"photo_overlay.jpg", "photo_labels.png", "photo.json"}
        model, processor = load_model_once(str(TOY_MODEL), "cpu", "float32")
        with torch.inference_mode(), Image.open("photo.jpg") as image:
            outputs = model(**processor(images=image, text=CLASSES, return_tensors="pt"))
        [expected] = processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 80)])
        assert labels_in("out").tolist() == expected.tolist()  # type: ignore[union-attr]

    def test_summary_says_which_classes_cover_how_much(self) -> None:
        segment("photo.jpg")
        summary, labels = summary_in("out"), labels_in("out")
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
        labels = np.array([[0, num_classes - 1, unused_label(num_classes)]])
        assert np.asarray(label_map(labels, num_classes)).tolist() == [[0, num_classes - 1, unused]]
        assert np.asarray(label_map(labels, num_classes)).dtype == dtype

    def test_batches_of_images_of_mixed_sizes_are_those_of_single_images(self) -> None:
        for index, size in enumerate([(80, 60), (50, 70), (64, 64)]):
            save_image(f"in/{index}.png", size)
        segment("in")
        single = [labels_in("out", str(index)) for index in range(3)]
        segment("in", "--batch-size", 2)
        assert all(np.mean(one == labels_in("out", str(index))) > 0.99 for index, one in enumerate(single))


class TestClasses:
    def test_come_encoded_from_a_file(self) -> None:
        assert main(["encode", "classes.safetensors", "--classes", *CLASSES]) == 0
        segment("photo.jpg")
        expected = {path.name: path.read_bytes() for path in Path("out").iterdir()}
        assert segment("photo.jpg", "--vocabulary", "classes.safetensors") == 0
        assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == expected

    def test_a_comma_after_each_is_dropped(self, capsys: Output) -> None:
        segment("photo.jpg")
        expected = summary_in("out")
        assert segment("photo.jpg", classes=["sky,", "dog, puppy,", ",", "grass"]) == 0
        assert summary_in("out") == expected
        assert "is one class" not in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["sky, water, gravel", "sky,water,gravel"])
    def test_one_with_commas_brings_a_hint(self, capsys: Output, name: str) -> None:
        assert segment("photo.jpg", classes=[name]) == 0
        assert f"{name!r} is one class; for 3, write --classes sky water gravel" in capsys.readouterr().err

    def test_are_encoded_once_until_the_cache_is_cleared(self, cache_home: Path, capsys: Output) -> None:
        for is_new in (True, False):
            segment("photo.jpg")
            assert ("Encoding 3 of 3 classes" in capsys.readouterr().err) == is_new
        for options, answer in [([], "3 classes, 0 MiB in"), (["--clear"], "3 classes, 0 MiB removed from")]:
            assert main(["cache", *options]) == 0
            assert f"{answer} {cache_home}" in capsys.readouterr().out
        main(["cache"])
        assert "0 classes" in capsys.readouterr().out


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
        assert find_files([given]) == [Path("in", name) for name in names]

    def test_that_are_left_out_of_a_folder_are_counted(self, capsys: Output) -> None:
        for name in ("a.jpg", "b.HEIC", "c.heic", "notes.txt", "README", ".hidden"):
            Path(name).touch()
        find_files(["."])
        message = "4 files are left out, by their names (1 without ending, 2 .heic, 1 .txt)"
        assert message in capsys.readouterr().err

    def test_given_twice_are_segmented_once(self) -> None:
        assert find_files(["photo.jpg", "."]) == [Path("photo.jpg")]

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
        assert {"long.json", "photo.json"} < names_in("out")

    def test_a_name_that_is_too_long_costs_one_image(self, capsys: Output) -> None:
        names = ["a", "b" * 236, "c" * 244]
        for name in names:
            save_image(f"in/{name}.png")
        assert segment("in") == 1
        assert f"{names[2]}.png: not all results are written: " in capsys.readouterr().err
        endings = ("_labels.png", "_overlay.jpg", ".json")
        written = {name + ending for name in names[:2] for ending in endings}
        assert names_in("out") == {*written, f"{names[2]}_labels.png"}

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
    assert names_in("out") == set()


def test_convert_writes_a_folder_that_segment_takes(
    tiny_model: SEDForSemanticSegmentation, tiny_weights: dict[str, Tensor]
) -> None:
    tiny_model.config.to_json_file("tiny.json")
    torch.save({"model": tiny_weights}, "model_final.pth")
    assert main(["convert", "model_final.pth", "model", "--config", "tiny.json"]) == 0
    assert segment("photo.jpg", "--model", "model") == 0


@pytest.mark.parametrize("config", ["not JSON", '{"projection_dim": "many"}'])
def test_convert_names_a_bad_config(config: str, capsys: Output) -> None:
    Path("config.json").write_text(config)
    assert main(["convert", "model_final.pth", "model", "--config", "config.json"]) == 2
    assert "--config config.json: " in capsys.readouterr().err


def test_init_writes_a_folder_that_segment_takes(
    tiny_model: SEDForSemanticSegmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {("convnext_base_w_320", "laion"): tiny_model}
    monkeypatch.setattr(conversion, "from_open_clip", lambda variant, pretrained: made[variant, pretrained])
    assert main(["init", "convnext_base_w_320", "model", "--pretrained", "laion"]) == 0
    assert segment("photo.jpg", "--model", "model") == 0


@pytest.mark.parametrize("command", ["segment", "explain", "encode", "convert", "init", "export", "push", "demo"])
def test_help_gives_an_example(command: str, capsys: Output) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"\n  sed-hf {command}" in capsys.readouterr().out


def test_help_imports_no_large_library() -> None:
    program = "import sys; from sed_hf.cli.main import build_parser; build_parser(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "numpy", "PIL", "gradio", "av"} & set(modules.split())
