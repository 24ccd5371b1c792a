import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation, SEDProcessor, cli, conversion
from sed_hf.cli import main
from sed_hf.inference.segmenter import Job, find_files, plan_jobs, unused_label, write_results
from sed_hf.utils import atomic_path

CLASSES = ["sky", "dog, puppy", "grass"]
load_model_once = functools.cache(cli.load_model)


@pytest.fixture(autouse=True)
def _quick_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load_model", load_model_once)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return save_picture(tmp_path / "photo.jpg")


@pytest.fixture
def segment(tiny_hub_folder: Path, tmp_path: Path) -> Callable[..., int]:
    """Run `sed-hf segment` with the tiny model into tmp_path/out."""

    def run(*arguments: object, classes: list[str] | None = None) -> int:
        fixed = ["--model", tiny_hub_folder, "--device", "cpu", "--output", tmp_path / "out"]
        class_arguments = ["--classes", *(classes or CLASSES)] if "--vocabulary" not in arguments else []
        return main([str(argument) for argument in ["segment", *fixed, *arguments, *class_arguments]])

    return run


@pytest.fixture
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(cli, "load_model", fail)


def save_picture(path: Path, size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def read_summary(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# results


def test_segment_writes_overlay_label_map_and_summary(segment: Callable[..., int], photo: Path, tmp_path: Path) -> None:
    assert segment(photo) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"photo_overlay.jpg", "photo_labels.png", "photo.json"}


def test_label_map_holds_what_the_model_predicts(
    segment: Callable[..., int],
    photo: Path,
    tmp_path: Path,
    tiny_model: SEDForSemanticSegmentation,
    tiny_processor: SEDProcessor,
) -> None:
    segment(photo)
    with torch.inference_mode(), Image.open(photo) as image:
        outputs = tiny_model(**tiny_processor(images=image, text=CLASSES, return_tensors="pt"))
    [expected] = tiny_processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 80)])
    with Image.open(tmp_path / "out" / "photo_labels.png") as labels:
        assert np.asarray(labels).tolist() == expected.tolist()  # type: ignore[union-attr]


def test_summary_says_which_classes_cover_how_much(
    segment: Callable[..., int], photo: Path, tmp_path: Path, tiny_hub_folder: Path
) -> None:
    segment(photo)
    summary = read_summary(tmp_path / "out" / "photo.json")
    labels = np.asarray(Image.open(tmp_path / "out" / "photo_labels.png"))

    classes = summary.pop("classes")
    assert summary == {
        "file": str(photo),
        "width": 80,
        "height": 60,
        "model": str(tiny_hub_folder),
        "ignored_pixels": 0,
    }
    assert [entry["share"] for entry in classes] == sorted((entry["share"] for entry in classes), reverse=True)
    for entry in classes:
        assert entry["name"] == CLASSES[entry["index"]]
        assert entry["share"] == pytest.approx(np.mean(labels == entry["index"]), abs=1e-6)
        assert 0 < entry["mean_probability"] < 1


def test_threshold_leaves_pixels_without_a_class(segment: Callable[..., int], photo: Path, tmp_path: Path) -> None:
    segment(photo, "--threshold", "1")
    assert np.all(np.asarray(Image.open(tmp_path / "out" / "photo_labels.png")) == 255)
    summary = read_summary(tmp_path / "out" / "photo.json")
    assert (summary["classes"], summary["ignored_pixels"]) == ([], 80 * 60)


def test_label_map_of_many_classes_has_16_bits(tmp_path: Path) -> None:
    [job] = plan_jobs([Path("photo.jpg")], tmp_path)
    assert isinstance(job, Job)
    result = {"segmentation": np.array([[0, 299, 65535]]), "probability": np.full((1, 3), 0.5)}
    write_results(job, Image.new("RGB", (3, 1)), result, [str(index) for index in range(300)], 65535, "tiny")
    with Image.open(job.labels) as labels:
        assert labels.mode == "I;16"
        assert np.asarray(labels).tolist() == [[0, 299, 65535]]


@pytest.mark.parametrize(("num_classes", "label"), [(1, 255), (255, 255), (256, 65535), (65535, 65535)])
def test_label_of_pixels_without_a_class_is_the_highest_of_the_label_map(num_classes: int, label: int) -> None:
    assert unused_label(num_classes) == label


def test_vocabulary_file_names_the_classes(segment: Callable[..., int], photo: Path, tmp_path: Path) -> None:
    (tmp_path / "pets.txt").write_text("cat\ndog, puppy\n")
    segment(photo, "--vocabulary", tmp_path / "pets.txt")
    names = {entry["name"] for entry in read_summary(tmp_path / "out" / "photo.json")["classes"]}
    assert names <= {"cat", "dog, puppy"}


def test_encoded_vocabulary_gives_the_results_of_its_names(
    segment: Callable[..., int], photo: Path, tiny_hub_folder: Path, tmp_path: Path
) -> None:
    encoded = tmp_path / "classes.safetensors"
    assert main(["encode", str(encoded), "--model", str(tiny_hub_folder), "--classes", *CLASSES]) == 0
    segment(photo)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert segment(photo, "--vocabulary", encoded) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected


def test_classes_of_an_earlier_run_are_not_encoded_again(
    segment: Callable[..., int], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(photo)

    def fail(*arguments: object) -> None:
        raise AssertionError("a class was encoded again")

    monkeypatch.setattr("sed_hf.inference.class_embeddings.encode_chunk", fail)
    assert segment(photo) == 0


def test_cache_is_shown_and_cleared(
    segment: Callable[..., int], photo: Path, cache_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment(photo)
    assert main(["cache"]) == 0
    assert f"3 classes, 0 MiB in {cache_home}" in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0
    assert "3 classes, 0 MiB removed from" in capsys.readouterr().out
    assert main(["cache"]) == 0
    assert "0 classes" in capsys.readouterr().out


def test_topk_reaches_the_model(segment: Callable[..., int], photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = SEDForSemanticSegmentation.forward

    def spy(self: SEDForSemanticSegmentation, *args: object, **kwargs: object) -> object:
        seen.append(kwargs["early_rejection_topk"])
        return forward(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(SEDForSemanticSegmentation, "forward", spy)
    segment(photo)
    segment(photo, "--topk", "1")
    assert seen == [None, 1]


def test_everything_else_takes_what_other_names_win(segment: Callable[..., int], photo: Path, tmp_path: Path) -> None:
    (tmp_path / "others.txt").write_text("grass\nsand\nwater\n")  # "grass" is one of the classes already
    segment(photo, "--output", tmp_path / "all", classes=[*CLASSES, "sand", "water"])
    segment(photo, "--everything-else", tmp_path / "others.txt")
    among_all, labels = (
        np.asarray(Image.open(tmp_path / folder / "photo_labels.png")).astype(int) for folder in ("all", "out")
    )
    assert (labels == np.minimum(among_all, 3)).all()
    names = [entry["name"] for entry in read_summary(tmp_path / "out" / "photo.json")["classes"]]
    assert set(names) <= {*CLASSES, "everything else"}


def test_everything_else_leaves_uncertain_pixels_without_a_class(
    segment: Callable[..., int], photo: Path, tmp_path: Path
) -> None:
    segment(photo, "--everything-else", "pascal_voc_20", "--threshold", "1")
    assert (np.asarray(Image.open(tmp_path / "out" / "photo_labels.png")) == 255).all()


def test_a_sliding_window_that_one_tile_fills_changes_nothing(
    segment: Callable[..., int], photo: Path, tmp_path: Path
) -> None:
    segment(photo)
    segment(photo, "--output", tmp_path / "tiled", "--sliding-window", 96)
    maps = [np.asarray(Image.open(tmp_path / folder / "photo_labels.png")) for folder in ("out", "tiled")]
    assert (maps[0] == maps[1]).all()


def test_a_sliding_window_cuts_large_pictures(
    segment: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = save_picture(tmp_path / "large.png", (200, 100))
    seen = []
    forward = SEDForSemanticSegmentation.forward

    def count(model: SEDForSemanticSegmentation, *arguments: object, **options: object) -> object:
        seen.append(1)
        return forward(model, *arguments, **options)

    monkeypatch.setattr(SEDForSemanticSegmentation, "forward", count)
    assert segment(photo, "--sliding-window", 100, "--overlap", 0, "--global-view") == 0
    assert len(seen) == 3
    assert Image.open(tmp_path / "out" / "large_labels.png").size == (200, 100)


def test_classes_are_encoded_once_for_all_pictures(
    segment: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        save_picture(tmp_path / "in" / f"{name}.png")
    calls = []
    encode = SEDForSemanticSegmentation.get_class_embeddings

    def spy(self: SEDForSemanticSegmentation, *args: Tensor, **kwargs: Tensor) -> Tensor:
        calls.append(kwargs)
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(SEDForSemanticSegmentation, "get_class_embeddings", spy)
    segment(tmp_path / "in")
    assert len(calls) == 1


def test_batches_of_pictures_of_mixed_sizes_give_the_results_of_single_ones(
    segment: Callable[..., int], tmp_path: Path
) -> None:
    for index, size in enumerate([(80, 60), (50, 70), (64, 64)]):
        save_picture(tmp_path / "in" / f"{index}.png", size)

    def label_maps() -> list[np.ndarray]:
        return [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").glob("*_labels.png"))]

    segment(tmp_path / "in")
    single = label_maps()
    segment(tmp_path / "in", "--batch-size", "2")
    assert all(np.mean(one == batched) > 0.99 for one, batched in zip(single, label_maps(), strict=True))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_picture_of_any_mode_is_segmented(segment: Callable[..., int], tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    path = tmp_path / f"picture.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13).save(path)
    else:
        save_picture(path, mode=mode)
    assert segment(path) == 0
    assert (tmp_path / "out" / "picture_overlay.jpg").is_file()


def test_results_are_the_right_way_up(segment: Callable[..., int], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    Image.new("RGB", (80, 60)).save(tmp_path / "turned.jpg", exif=exif)
    segment(tmp_path / "turned.jpg")
    with Image.open(tmp_path / "out" / "turned_labels.png") as labels:
        assert labels.size == (60, 80)


# unreadable pictures


def test_unreadable_pictures_are_named_and_skipped_and_the_rest_is_written(
    segment: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    good = save_picture(folder / "good.jpg")
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:-500])
    (folder / "text.jpg").write_text("no picture")

    assert segment(folder, "--batch-size", "2") == 1

    errors = capsys.readouterr().err
    assert f"skipped {folder / 'cut.jpg'}: image file is truncated" in errors
    assert f"skipped {folder / 'text.jpg'}: cannot identify image file" in errors
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"good.json"}


def test_progress_is_shown_for_many_pictures(
    segment: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_picture(tmp_path / "in" / "a.png")
    save_picture(tmp_path / "in" / "b.png")
    segment(tmp_path / "in")
    assert "2/2" in capsys.readouterr().err


# inputs and names of results


def test_folder_gives_the_pictures_directly_in_it(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "._a.jpg", "deeper/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files([str(tmp_path)]) == [tmp_path / "a.jpg", tmp_path / "b.PNG"]


def test_glob_goes_as_deep_as_it_says(tmp_path: Path) -> None:
    for name in ("a.jpg", "deeper/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files([f"{tmp_path}/**/*.jpg"]) == [tmp_path / "a.jpg", tmp_path / "deeper" / "c.jpg"]


def test_file_with_the_signs_of_a_glob_in_its_name_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "photo[1].jpg"
    path.touch()
    assert find_files([str(path)]) == [path]


def test_picture_given_twice_is_segmented_once(photo: Path) -> None:
    assert find_files([str(photo), str(photo.parent)]) == [photo]


def test_pictures_of_one_name_get_results_of_different_names() -> None:
    jobs = plan_jobs([Path("a/photo.jpg"), Path("b/photo.png"), Path("b/Photo.jpg"), Path("photo_2.jpg")], Path("out"))
    assert [job.summary.stem for job in jobs] == ["photo", "photo_2", "Photo_3", "photo_2_2"]


def test_interruption_leaves_neither_half_a_file_nor_the_temporary_one(tmp_path: Path) -> None:
    def write_half_a_file() -> None:
        with atomic_path(tmp_path / "a.json") as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half_a_file()
    assert list(tmp_path.iterdir()) == []


# refused before the model is loaded


@pytest.mark.usefixtures("no_model_is_loaded")
class TestRefused:
    @pytest.fixture
    def refused(self, segment: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        """Run `sed-hf segment`, which must fail with status 2, and return its message."""

        def run(*arguments: object, **kwargs: list[str]) -> str:
            try:
                status = segment(*arguments, **kwargs)
            except SystemExit as exit_of_argparse:
                status = exit_of_argparse.code  # type: ignore[assignment]
            assert status == 2
            return capsys.readouterr().err

        return run

    def test_file_that_is_not_there(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "nowhere.jpg: expected a picture" in refused(tmp_path / "nowhere.jpg")

    def test_glob_that_matches_nothing(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "nothing matches it as a glob" in refused(tmp_path / "*.jpg")

    def test_folder_without_pictures(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "a folder without pictures" in refused(tmp_path)

    def test_unknown_vocabulary(self, refused: Callable[..., str], photo: Path) -> None:
        assert "unknown vocabulary 'ade'" in refused(photo, "--vocabulary", "ade")

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
        ],
    )
    def test_value_out_of_range(
        self, refused: Callable[..., str], photo: Path, option: str, value: str, expected: str
    ) -> None:
        message = refused(photo, option, value)
        assert option in message
        assert expected in message

    def test_model_folder_that_is_not_there(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status = main(["segment", str(photo), "--model", str(tmp_path / "none"), "--classes", "sky"])
        assert (status, "expected a model folder" in capsys.readouterr().err) == (2, True)

    def test_model_that_is_no_model_folder(self, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status = main(["segment", str(photo), "--model", str(photo), "--classes", "sky"])
        assert (status, "no config.json" in capsys.readouterr().err) == (2, True)

    def test_a_global_view_without_tiles(self, refused: Callable[..., str], photo: Path) -> None:
        assert "--global-view: expected only with --sliding-window" in refused(photo, "--global-view")

    def test_an_overlap_without_tiles(self, refused: Callable[..., str], photo: Path) -> None:
        assert "--overlap: expected only with --sliding-window" in refused(photo, "--overlap", "0.5")

    def test_an_overlap_out_of_range(self, refused: Callable[..., str], photo: Path) -> None:
        message = refused(photo, "--sliding-window", "64", "--overlap", "2")
        assert "expected overlap to be from 0 to 0.75, got 2.0" in message

    def test_tiles_that_are_too_small(self, refused: Callable[..., str], photo: Path) -> None:
        assert "tile_size of at least 32 pixels, got 8" in refused(photo, "--sliding-window", "8")

    def test_output_that_is_a_file(
        self, photo: Path, tiny_hub_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--model", str(tiny_hub_folder), "--classes", "sky", "--output", str(photo)]
        assert (main(["segment", str(photo), *arguments]), "it is a file" in capsys.readouterr().err) == (2, True)

    def test_result_that_would_overwrite_a_picture(self, refused: Callable[..., str], tmp_path: Path) -> None:
        save_picture(tmp_path / "out" / "photo.jpg")
        save_picture(tmp_path / "out" / "photo_overlay.jpg")
        assert "photo_overlay.jpg is one of the pictures" in refused(tmp_path / "out")


def test_device_that_is_not_there_is_refused(
    segment: Callable[..., int], photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert segment(photo, "--device", "cuda") == 2
    assert "--device cuda: torch finds no such device" in capsys.readouterr().err


def test_interruption_has_an_exit_status_and_no_traceback(
    segment: Callable[..., int], photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_model", interrupt)
    with pytest.raises(SystemExit) as exit_:
        segment(photo)
    assert exit_.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "sed-hf: interrupted"


def test_exhausted_memory_is_an_error_of_one_line_and_what_needs_less(
    segment: Callable[..., int], photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhaust(*arguments: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(cli, "load_model", exhaust)
    assert segment(photo) == 2
    error, advice = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("sed-hf: error: ")
    assert "can't allocate memory" in error
    assert advice == "sed-hf: a smaller --batch-size and --topk 8 need less memory"


# convert


@pytest.fixture
def tiny_checkpoint(tiny_weights: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "model_final.pth"
    torch.save({"model": tiny_weights}, path)
    return path


@pytest.fixture
def convert(tiny_checkpoint: Path, tiny_hub_folder: Path, tmp_path: Path) -> Callable[..., int]:
    """Run `sed-hf convert` on a tiny checkpoint, into tmp_path/model."""

    def run(*options: str, checkpoint: Path = tiny_checkpoint, config: Path = tiny_hub_folder / "config.json") -> int:
        return main(["convert", str(checkpoint), str(tmp_path / "model"), "--config", str(config), *options])

    return run


def test_convert_writes_a_folder_that_segment_takes(convert: Callable[..., int], photo: Path, tmp_path: Path) -> None:
    assert convert() == 0
    arguments = ["--model", str(tmp_path / "model"), "--classes", "sky", "grass", "--output", str(tmp_path / "out")]
    assert main(["segment", str(photo), *arguments]) == 0


def test_convert_refuses_a_folder_that_is_not_empty(
    convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert convert() == 2
    assert "expected a new or empty folder" in capsys.readouterr().err


def test_overwrite_replaces_a_model_folder(convert: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "old.safetensors").touch()
    assert convert("--overwrite") == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "model" / "old.safetensors").exists()


def test_overwrite_does_not_touch_a_folder_that_holds_no_model(
    convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").touch()
    assert convert("--overwrite") == 2
    assert "replaces model folders only" in capsys.readouterr().err
    assert (tmp_path / "model" / "thesis.txt").exists()


def test_convert_names_a_checkpoint_that_is_not_there(
    convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(checkpoint=tmp_path / "none.pth") == 2
    assert "none.pth: expected a checkpoint file" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["no JSON", '{"num_attention_heads": 0}', '{"num_attention_heads": "many"}', "[]"])
def test_convert_refuses_a_bad_config(
    convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    assert convert(config=tmp_path / "config.json") == 2
    assert f"sed-hf: error: --config {tmp_path / 'config.json'}: " in capsys.readouterr().err


def test_convert_refuses_a_checkpoint_with_code_without_running_it(
    convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "code_was_run"

    class Malicious:
        def __reduce__(self) -> tuple:
            return (Path.touch, (marker,))

    buffer = io.BytesIO()
    torch.save({"model": {"weight": Malicious()}}, buffer)
    (tmp_path / "bad.pth").write_bytes(buffer.getvalue())

    assert convert(checkpoint=tmp_path / "bad.pth") == 2
    assert "sed-hf: error: checkpoint:" in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "model").exists()


# init


def test_init_writes_a_folder_that_segment_takes(
    tiny_model: SEDForSemanticSegmentation, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def make_tiny(variant: str, pretrained: str | None) -> SEDForSemanticSegmentation:
        asked.append((variant, pretrained))
        return tiny_model

    monkeypatch.setattr(conversion, "from_open_clip", make_tiny)
    assert main(["init", "convnext_base_w_320", str(tmp_path / "model"), "--pretrained", "laion"]) == 0
    assert asked == [("convnext_base_w_320", "laion")]
    arguments = ["--model", str(tmp_path / "model"), "--classes", "sky", "grass", "--output", str(tmp_path / "out")]
    assert main(["segment", str(photo), *arguments]) == 0


def test_init_refuses_an_unknown_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "ViT-B-32", str(tmp_path / "model")]) == 2
    assert "variant='ViT-B-32': expected a timm ConvNeXt" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


# help


@pytest.mark.parametrize("command", ["segment", "convert", "init", "demo"])
def test_help_gives_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of_argparse:
        main([command, "--help"])
    assert exit_of_argparse.value.code == 0
    assert f"\n  sed-hf {command} " in capsys.readouterr().out
