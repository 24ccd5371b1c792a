"""The demo without a browser: what its controls do, what it refuses in which words, and what its guard lets in."""

import copy
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.data.vocabularies import load_vocabulary

gradio = pytest.importorskip("gradio")

from starlette.applications import Starlette  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from sed_hf.demo.guard import MAX_FOLDER_BYTES, Guard, UploadFolder  # noqa: E402
from sed_hf.demo.inputs import (  # noqa: E402
    MAX_CLASS_NAMES,
    OWN_CLASSES,
    InputError,
    max_upload_pixels,
    parse_class_names,
)
from sed_hf.demo.page import Demo, build_page  # noqa: E402
from sed_hf.demo.results import Result  # noqa: E402
from sed_hf.demo.server import example_scenes, trusted_hosts  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture
def files(tmp_path: Path) -> UploadFolder:
    return UploadFolder(tmp_path / "served")


@pytest.fixture
def demo(tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, files: UploadFolder) -> Demo:
    return Demo(tiny_model, tiny_processor, "tiny", files, Counter())


@pytest.fixture
def photo(files: UploadFolder) -> str:
    path = files.path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def result() -> Result:
    """400 × 600 pixels: class 2 on the left with 0.8, class 0 on the right with 0.3."""
    labels = np.full((400, 600), 2)
    labels[:, 400:] = 0
    probability = np.where(labels == 2, 0.8, 0.3).astype(np.float32)
    image = Image.new("RGB", (600, 400), (10, 200, 10))
    return Result("photo.jpg", "tiny", ["sky", "sea", "dog, puppy"], image, labels, probability)


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is and ends there."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\1IDAT"


# segmenting


def test_segment_shows_an_overlay_and_lists_the_classes_found(demo: Demo, photo: str) -> None:
    result, overlay, _, legend, *_ = demo.segment(photo, OWN_CLASSES, "sky\n\ndog, puppy\n", 0, 0.0)
    assert Image.open(overlay).format == "JPEG"
    assert {label.split(" · ")[0].split()[-1] for label, _ in legend["choices"]} <= {"sky", "dog"}
    assert legend["value"] == result.listed


@pytest.mark.parametrize("topk", [0, 1])
def test_segment_takes_a_built_in_vocabulary(demo: Demo, photo: str, topk: int) -> None:
    result, *_ = demo.segment(photo, "pascal_voc_20", "is not read", topk, 0.0)
    assert list(result.class_names) == load_vocabulary("pascal_voc_20")


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_downloads_are_the_files_of_the_command(
    demo: Demo, photo: str, tiny_hub_folder: Path, tmp_path: Path, threshold: float | None
) -> None:
    *_, labels, summary, _ = demo.segment(photo, OWN_CLASSES, "sky\ndog, puppy", 0, threshold or 0.0)
    options = [] if threshold is None else ["--threshold", str(threshold)]
    arguments = ["--model", str(tiny_hub_folder), "--classes", "sky", "dog, puppy", *options, "--topk", "0"]
    assert main(["segment", photo, *arguments, "--output", str(tmp_path)]) == 0

    assert Path(labels["value"]).name == "photo_labels.png"
    assert np.array_equal(Image.open(labels["value"]), Image.open(tmp_path / "photo_labels.png"))
    expected = json.loads((tmp_path / "photo.json").read_text())
    assert json.loads(Path(summary["value"]).read_text()) == expected | {"file": "photo.png", "model": "tiny"}


def test_a_large_image_is_segmented_at_the_size_that_is_shown(demo: Demo, files: UploadFolder) -> None:
    Image.new("RGB", (4000, 1000)).save(files.path / "wide.png")
    result, *_ = demo.segment(str(files.path / "wide.png"), OWN_CLASSES, "sky", 0, 0.0)
    assert result.segmentation.shape == (256, 1024)


def test_what_visitors_type_is_not_kept_in_the_cache_of_the_owner(
    demo: Demo, photo: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    demo.segment(photo, OWN_CLASSES, "a secret", 0, 0.0)
    assert not (tmp_path / "home").exists()
    demo.segment(photo, "pascal_voc_20", "", 0, 0.0)
    assert (tmp_path / "home").exists()


def test_a_threshold_before_the_first_image_changes_nothing(demo: Demo) -> None:
    assert demo.change_threshold(None, 0.5) == tuple(gradio.skip() for _ in range(5))


def test_a_result_that_is_not_kept_is_a_sentence(demo: Demo) -> None:
    with pytest.raises(gradio.Error, match=r"no longer kept. Please press Segment\."):
        demo.show_classes(None, [])


# limits of time


class Visitor:
    """What Gradio tells of the sender of a request."""

    session_hash = "abc"


def test_work_that_takes_too_long_ends_with_a_sentence(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, files: UploadFolder, photo: str
) -> None:
    demo = Demo(tiny_model, tiny_processor, "tiny", files, Counter(), max_seconds=0)
    with pytest.raises(gradio.Error, match="takes longer than the 0 seconds"):
        demo.segment(photo, OWN_CLASSES, "sky", 0, 0.0)


def test_work_ends_when_nobody_waits_for_it(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, files: UploadFolder, photo: str
) -> None:
    listeners: Counter[str] = Counter()
    demo = Demo(tiny_model, tiny_processor, "tiny", files, listeners, seconds_to_listen=0)
    with pytest.raises(gradio.Error, match="The visitor has gone"):
        demo.segment(photo, OWN_CLASSES, "sky", 0, 0.0, Visitor())
    listeners["abc"] += 1
    demo.segment(photo, OWN_CLASSES, "sky", 0, 0.0, Visitor())


# refusals


def test_segment_asks_for_an_image(demo: Demo) -> None:
    with pytest.raises(gradio.Error, match="Please drop an image first"):
        demo.segment(None, OWN_CLASSES, "sky", 0, 0.0)


def test_a_refusal_cannot_put_markup_into_the_page(demo: Demo, photo: str) -> None:
    with pytest.raises(gradio.Error, match="“&lt;img&gt;” is the same class name"):
        demo.segment(photo, OWN_CLASSES, "<img>\n<img>", 0, 0.0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("2 GiB"), "There is not enough memory for this image"),
        (RuntimeError("a bug"), "Something went wrong on the server"),
    ],
)
def test_a_failure_is_a_sentence_without_details(
    demo: Demo, photo: str, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(demo.model, "forward", fail)
    with pytest.raises(gradio.Error, match=message) as refusal:
        demo.segment(photo, OWN_CLASSES, "sky", 0, 0.0)
    assert str(error) not in str(refusal.value)


def test_logits_that_are_not_finite_are_a_sentence(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, files: UploadFolder, photo: str
) -> None:
    model = copy.deepcopy(tiny_model)
    for parameter in model.parameters():
        parameter.data.mul_(torch.nan)
    with pytest.raises(gradio.Error, match="values that are not finite for this image"):
        Demo(model, tiny_processor, "tiny", files, Counter()).segment(photo, OWN_CLASSES, "sky", 0, 0.0)


def test_25_megapixels_are_taken_unless_the_limit_of_all_images_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max_upload_pixels() == 5000 * 5000
    monkeypatch.setenv("SED_HF_MAX_IMAGE_PIXELS", "100000000")
    assert max_upload_pixels() == 100_000_000


def eps_file() -> bytes:
    """An image of a format that Pillow hands to another program."""
    Image.new("RGB", (4, 4)).save(file := BytesIO(), "EPS")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_header(6000, 5000), "more than the 25 megapixels that are taken here"),
        (png_header(60_000, 50_000), "more than the 25 megapixels that are taken here"),
        (png_header(60, 50), r"sent\.png cannot be read completely"),
        (b"no image", r"sent\.png is not an image that can be read here"),
        (eps_file(), r"sent\.png is not an image that can be read here"),
    ],
)
def test_a_bad_image_is_refused_when_it_arrives(demo: Demo, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "sent.png"
    path.write_bytes(content)
    with pytest.raises(gradio.Error, match=message):
        demo.check_image(str(path))


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
    assert result.legend() == [("1  dog · 66.7% · 0.80", 2), ("2  sky · 33.3% · 0.30", 0)]
    result.threshold = 0.5
    assert result.legend() == [("1  dog · 66.7% · 0.80", 2), ("2  sky · 0%", 0)]


@pytest.mark.parametrize("change", [{"hidden": [0]}, {"threshold": 0.5}])
def test_hidden_classes_and_pixels_below_the_threshold_stay_a_photo(
    result: Result, tmp_path: Path, change: dict[str, Any]
) -> None:
    shown = np.asarray(Image.open(result.write_overlay(tmp_path)))
    for name, value in change.items():
        setattr(result, name, value)
    hidden = np.asarray(Image.open(result.write_overlay(tmp_path)))
    is_photo = [
        np.allclose(np.median(overlay[:, 410:], axis=(0, 1)), [10, 200, 10], atol=2) for overlay in (shown, hidden)
    ]
    assert is_photo == [False, True]
    assert np.array_equal(hidden[:, :390], shown[:, :390])


def test_a_click_reads_a_region(result: Result) -> None:
    assert result.describe([10, 20]) == (
        "<b>dog, puppy</b>: probability 0.80 here and 0.80 on average, 66.7% of the image."
    )
    result.threshold = 0.5
    assert result.describe([600, 400]) == ("No class here: the best one, <b>sky</b>, has a probability of only 0.30.")


# the guard


@pytest.fixture
def client(files: UploadFolder) -> Iterator[TestClient]:
    """A server that answers every request that its guard lets in by the request's body."""

    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    guard = Middleware(Guard, files=files, listeners=Counter())
    everything = Route("/{path:path}", echo, methods=["GET", "POST", "PUT"])
    with TestClient(Starlette(routes=[everything], middleware=[guard])) as client:
        yield client


def join(client: TestClient, *data: Any, **more: Any) -> Any:
    """The answer to a call of a function of the page."""
    call = {"fn_index": 0, "session_hash": "abc", "data": data} | more
    return client.post("/gradio_api/queue/join", content=json.dumps(call))


def test_a_call_keeps_what_gradio_needs(client: TestClient, photo: str) -> None:
    image = {"path": photo, "url": "data:image/png;base64,AAAA", "orig_name": "x", "is_stream": True}
    event = {"index": [1, 2], "value": {"path": "/etc/passwd"}}
    answer = join(client, image, "sky", 0, [1, 2], None, event_data=event, batched=True, oauth_token="x")
    assert answer.json() == {
        "fn_index": 0,
        "session_hash": "abc",
        "trigger_id": None,
        "data": [{"path": photo, "meta": {"_type": "gradio.FileData"}}, "sky", 0, [1, 2], None],
        "event_data": {"index": [1, 2], "value": None},
    }


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/no/such/file",
        "secret.png",
        "{served}",
        "{served}/../secret.png",
        "{served}/link.png",
        "{served}/gone.png",
        "file:///etc/passwd",
        "http://127.0.0.1/x.png",
        "data:image/png;base64,AAAA",
        "\0",
        "",
        None,
        ["/etc/passwd"],
    ],
)
def test_every_other_file_is_refused_in_the_same_words(
    client: TestClient, files: UploadFolder, tmp_path: Path, path: Any, meta: dict[str, Any]
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (files.path / "link.png").symlink_to(tmp_path / "secret.png")
    path = path.format(served=files.path) if isinstance(path, str) else path
    answers = [join(client, {"path": path, **meta}), join(client, {"url": path, **meta})]
    answers.append(client.post("/gradio_api/call/segment", json={"data": [{"path": path, **meta}]}))
    if isinstance(path, str) and path.startswith("/"):
        answers.append(client.get(f"/gradio_api/file={path}"))
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (403, '{"detail":"This file was not uploaded here, or is no longer kept. Please drop the image again."}')
    }


def test_uploaded_files_are_served(client: TestClient, photo: str) -> None:
    assert client.get(f"/gradio_api/file={photo}").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/run/segment"),
        ("POST", "/gradio_api/api/segment"),
        ("POST", "/gradio_api/call/v2/segment"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/stream/x"),
        ("POST", "/login"),
        ("PUT", "/gradio_api/upload"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
        ("GET", "/gradio_api/custom_component/%1b/x/y/z"),
        ("GET", "/sed/gradio_api/proxy=http://127.0.0.1/"),
    ],
)
def test_endpoints_that_the_page_does_not_need_are_closed(client: TestClient, method: str, path: str) -> None:
    if path.startswith("/sed"):
        client = TestClient(client.app, root_path="/sed")
    assert client.request(method, path).status_code == 404


@pytest.mark.parametrize(
    "call",
    [
        b"not JSON",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"data": [], "fn_index": 0, "session_hash": "' + b"x" * 65 + b'"}',
        b'{"data": [NaN], "fn_index": 0, "session_hash": "x"}',
        b'{"data": [1e999], "fn_index": 0, "session_hash": "x"}',
        b'{"data": [[NaN]], "fn_index": 0, "session_hash": "x"}',
        b'{"data": [[[1]]], "fn_index": 0, "session_hash": "x"}',
        b'{"data": [[' + b"1," * 10_000 + b'1]], "fn_index": 0, "session_hash": "x"}',
    ],
)
def test_what_is_not_a_call_of_the_page_is_refused(client: TestClient, call: bytes) -> None:
    assert client.post("/gradio_api/queue/join", content=call).status_code == 400


def test_a_body_has_at_most_a_megabyte(client: TestClient) -> None:
    assert join(client, "x" * 900_000).status_code == 200
    assert join(client, "x" * 1_000_000).status_code == 413


def test_files_in_the_folder_are_removed_by_age_and_then_the_oldest_until_there_is_room(files: UploadFolder) -> None:
    files.new_folder().joinpath("example").touch()
    files.keep()
    ages = {"old": 4000, "first": 300, "second": 200, "third": 100, "partial": 5}
    paths = {name: files.new_folder() / name for name in ages}
    for name, path in paths.items():
        path.touch()
        os.truncate(path, MAX_FOLDER_BYTES // 4)
        time = path.stat().st_mtime - ages[name]
        os.utime(path, (time, time))
    files.sweep()
    assert [name for name, path in paths.items() if path.exists()] == ["second", "third", "partial"]
    assert not paths["old"].parent.exists()
    files.sweep(room=MAX_FOLDER_BYTES // 2)
    assert [name for name, path in paths.items() if path.exists()] == ["partial"]
    assert len(list(files.path.rglob("example"))) == 1


@pytest.mark.parametrize(
    ("host", "share", "trusted"),
    [
        (None, False, {"localhost", "127.0.0.1", "[::1]"}),
        ("127.0.0.2", False, {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
        ("localhost", True, {"localhost", "127.0.0.1", "[::1]", "*.gradio.live"}),
        ("0.0.0.0", False, {"*"}),
        ("example.org", False, {"*"}),
    ],
)
def test_a_server_at_a_loopback_address_is_called_by_its_own_names(host: str, share: bool, trusted: set[str]) -> None:
    assert set(trusted_hosts(host, share)) == trusted


# page and Space


def test_an_example_brings_its_class_names(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(demo.files.path))
    page = build_page(demo, example_scenes(tmp_path))
    take = next(function.fn for function in page.fns.values() if function.name == "take")
    path, vocabulary, class_text = take(0)
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
