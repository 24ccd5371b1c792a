"""The demo without a browser: what its page's controls do, and what it refuses in which words."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.data.vocabularies import load_vocabulary

gradio = pytest.importorskip("gradio")

from sed_hf.demo import build_demo, example_scenes  # noqa: E402
from sed_hf.demo.inputs import (  # noqa: E402
    MAX_CLASS_NAMES,
    OWN_CLASSES,
    InputError,
    max_upload_pixels,
    parse_class_names,
    read_upload,
)
from sed_hf.demo.page import Demo, legend_choices, legend_colors  # noqa: E402
from sed_hf.demo.results import Result, Results  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def upload_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return tmp_path / "gradio"


@pytest.fixture
def demo(tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor) -> Demo:
    return Demo(tiny_model, tiny_processor, "tiny")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def result() -> Result:
    """4 × 6 pixels: class 2 on the left with 0.8, class 0 on the right with 0.3."""
    labels = np.full((4, 6), 2)
    labels[:, 4:] = 0
    probability = np.where(labels == 2, 0.8, 0.3).astype(np.float32)
    picture = Image.new("RGB", (6, 4), (10, 200, 10))
    return Result("photo.jpg", picture, labels, probability, ["sky", "sea", "dog, puppy"], "tiny")


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is and ends there."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\1IDAT"


# segmenting


def test_segment_shows_an_overlay_and_lists_the_classes_found(demo: Demo, photo: str) -> None:
    key, overlay, _, legend, *_ = demo.segment(photo, OWN_CLASSES, "sky\n\ndog, puppy\n", 0, 0.0, None)
    result = demo.results.get(key)
    assert result is not None
    with Image.open(overlay) as picture:
        assert picture.size == result.view.size
    assert {label.split(" · ")[0].split()[-1] for label, _ in legend["choices"]} <= {"sky", "dog"}
    assert legend["value"] == result.listed


@pytest.mark.parametrize("topk", [0, 1])
def test_segment_takes_a_built_in_vocabulary(demo: Demo, photo: str, topk: int) -> None:
    key, *_ = demo.segment(photo, "pascal_voc_20", "is not read", topk, 0.0, None)
    result = demo.results.get(key)
    assert result is not None
    assert result.class_names == load_vocabulary("pascal_voc_20")


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_downloads_are_the_files_of_the_command(
    demo: Demo, photo: str, tiny_hub_folder: Path, tmp_path: Path, threshold: float | None
) -> None:
    *_, labels, summary, _ = demo.segment(photo, OWN_CLASSES, "sky\ndog, puppy", 0, threshold or 0.0, None)
    options = [] if threshold is None else ["--threshold", str(threshold)]
    arguments = ["--model", str(tiny_hub_folder), "--classes", "sky", "dog, puppy", *options, "--topk", "0"]
    assert main(["segment", photo, *arguments, "--output", str(tmp_path)]) == 0

    assert Path(labels["value"]).name == "photo_labels.png"
    assert np.array_equal(Image.open(labels["value"]), Image.open(tmp_path / "photo_labels.png"))
    expected = json.loads((tmp_path / "photo.json").read_text())
    assert json.loads(Path(summary["value"]).read_text()) == expected | {"file": "photo.png", "model": "tiny"}


def test_a_new_picture_takes_the_place_of_the_visitors_last_one(demo: Demo, photo: str) -> None:
    first, *_ = demo.segment(photo, OWN_CLASSES, "sky", 0, 0.0, None)
    demo.segment(photo, OWN_CLASSES, "dog", 0, 0.0, first)
    assert len(demo.results) == 1


def test_threshold_and_hiding_do_not_run_the_network(demo: Demo, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, *_ = demo.segment(photo, OWN_CLASSES, "sky\ndog", 0, 0.0, None)
    monkeypatch.setattr("sed_hf.demo.page.Segmenter", lambda *_, **__: pytest.fail("segmented again"))
    demo.change_threshold(key, 0.9, [0, 1])
    demo.show_classes(key, 0.9, [0])


def test_a_threshold_before_the_first_picture_changes_nothing(demo: Demo) -> None:
    assert demo.change_threshold(None, 0.5, []) == tuple(gradio.skip() for _ in range(5))


def test_a_forgotten_result_is_a_sentence(demo: Demo) -> None:
    with pytest.raises(gradio.Error, match=r"no longer kept here. Please press Segment again\."):
        demo.change_threshold("forgotten", 0.5, [])


# refusals


def test_segment_asks_for_a_picture(demo: Demo) -> None:
    with pytest.raises(gradio.Error, match="Please drop a picture first"):
        demo.segment(None, OWN_CLASSES, "sky", 0, 0.0, None)


def test_a_text_file_named_png_is_refused_when_it_arrives(demo: Demo, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    with pytest.raises(gradio.Error, match=r"notes.png is not a picture that can be read here"):
        demo.check_picture(str(path))


def test_a_refusal_cannot_put_markup_into_the_page(demo: Demo, photo: str) -> None:
    with pytest.raises(gradio.Error, match="“&lt;img&gt;” is the same class name"):
        demo.segment(photo, OWN_CLASSES, "<img>\n<img>", 0, 0.0, None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("2 GiB"), "There is not enough memory for this picture"),
        (RuntimeError("a bug"), "Something went wrong on the server"),
    ],
)
def test_a_failure_is_a_sentence_without_details(
    demo: Demo, photo: str, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sed_hf.demo.page.Segmenter", fail)
    with pytest.raises(gradio.Error, match=message) as refusal:
        demo.segment(photo, OWN_CLASSES, "sky", 0, 0.0, None)
    assert str(error) not in str(refusal.value)


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (6000, 5000, "has more than 25 megapixels"),
        (60_000, 50_000, "has more than 25 megapixels"),
    ],
)
def test_too_large_a_picture_is_refused_by_its_header(
    tiny_processor: SEDProcessor, tmp_path: Path, width: int, height: int, message: str
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(width, height))
    with pytest.raises(InputError, match=message):
        read_upload(path, tiny_processor)


def test_25_megapixels_are_taken_unless_the_limit_of_all_pictures_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max_upload_pixels() == 5000 * 5000
    monkeypatch.setenv("SED_HF_MAX_IMAGE_PIXELS", "100000000")
    assert max_upload_pixels() == 100_000_000


def test_a_damaged_picture_is_refused(tiny_processor: SEDProcessor, tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(png_header(60, 50))
    with pytest.raises(InputError, match=r"half.png cannot be read completely"):
        read_upload(path, tiny_processor)


def test_formats_that_pillow_hands_to_other_programs_are_refused(tiny_processor: SEDProcessor, tmp_path: Path) -> None:
    path = tmp_path / "drawing.eps"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(InputError, match="is not a picture that can be read here"):
        read_upload(path, tiny_processor)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n ", "at least one class name"),
        ("sky\nSKY", "“SKY” is the same class name as “sky”"),
        ("dog, , puppy", "In “dog, , puppy” a synonym is empty"),
        ("x" * 201, "At most 200 characters"),
        ("\n".join(map(str, range(10_000))), "There are 10,000 class names, counting synonyms. At most 1,000"),
        (", ".join(map(str, range(1001))), "There are 1,001 class names, counting synonyms. At most 1,000"),
    ],
)
def test_class_names_are_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_class_names(text)


def test_as_many_class_names_as_the_limit_are_taken() -> None:
    names = [f"class {index}" for index in range(MAX_CLASS_NAMES)]
    assert parse_class_names("\n".join(names)) == names


# results


def test_the_legend_lists_number_name_share_and_probability(result: Result) -> None:
    assert legend_choices(result, 0.0) == [("1  dog · 66.7% · 0.80", 2), ("2  sky · 33.3% · 0.30", 0)]


def test_a_class_below_the_threshold_stays_in_the_legend(result: Result) -> None:
    assert legend_choices(result, 0.5)[1] == ("2  sky · 0%", 0)


def test_the_legend_has_a_colour_for_each_class(result: Result) -> None:
    assert legend_colors(result).count("rgb(") == 2


def test_a_hidden_class_stays_a_photo(result: Result) -> None:
    shown, hidden = np.asarray(result.draw(0.0)), np.asarray(result.draw(0.0, hidden={0}))
    photo = np.asarray(result.view)
    middle = shown.shape[0] // 2
    assert np.array_equal(hidden[middle, -20], photo[middle, -20])
    assert not np.array_equal(shown[middle, -20], photo[middle, -20])
    assert np.array_equal(hidden[middle, 20], shown[middle, 20])


def test_a_pixel_below_the_threshold_stays_a_photo(result: Result) -> None:
    assert np.array_equal(result.draw(0.5), result.draw(0.0, hidden={0}))


def test_a_region_is_read_with_its_probability(result: Result) -> None:
    region = result.region_at(0.1, 0.5, 0.0)
    assert (region.class_name, round(region.probability, 6)) == ("dog, puppy", 0.8)
    assert region.statistics is not None
    assert round(region.statistics.share, 6) == 0.666667


def test_a_region_below_the_threshold_has_no_class(result: Result) -> None:
    region = result.region_at(1.0, 1.0, 0.5)
    assert (region.class_name, region.statistics) == ("sky", None)


def test_results_keep_the_latest(result: Result) -> None:
    results = Results(max_results=2)
    keys = [results.add(result) for _ in range(3)]
    assert [results.get(key) is not None for key in keys] == [False, True, True]


def test_results_keep_within_their_memory(result: Result) -> None:
    results = Results(max_bytes=2 * result.num_bytes)
    keys = [results.add(result) for _ in range(3)]
    assert [results.get(key) is not None for key in keys] == [False, True, True]


# page and Space


@pytest.fixture
def page_functions(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, tmp_path: Path
) -> dict[str, Callable]:
    page = build_demo(tiny_model, tiny_processor, "tiny", example_scenes(tmp_path))
    return {function.name: function.fn for function in page.fns.values()}


def test_an_example_brings_its_class_names(page_functions: dict[str, Callable]) -> None:
    path, vocabulary, class_text = page_functions["take"](0)
    assert Path(path).name == "scene-3.png"
    assert vocabulary == OWN_CLASSES
    assert "orange star" in class_text["value"].splitlines()


def test_a_port_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--port", "70000"])
    assert "expected a port from 1 to 65535, got '70000'" in capsys.readouterr().err


def test_the_space_requires_what_the_package_requires() -> None:
    options = (ROOT / "setup.cfg").read_text().split("install_requires =\n")[1].split("\n\n")[0]
    assert (ROOT / "space" / "requirements.txt").read_text().split() == options.split()
