"""The demo without a browser: what its controls do, what it refuses in which words, and what its guard lets in."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.demo.guard import MAX_FOLDER_BYTES, Guard, UploadFolder
from sed_hf.demo.page import OWN_CLASSES, Demo, build_page
from sed_hf.demo.server import trusted_hosts
from sed_hf.image_processing_sed import NonFiniteLogitsError

ROOT = Path(__file__).parents[1]
CALL = b'{"data": [%b], "session_hash": "%b", "fn_index": 0}'


@pytest.fixture
def files(tmp_path: Path) -> UploadFolder:
    return UploadFolder(tmp_path / "served")


@pytest.fixture
def demo(tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, files: UploadFolder) -> Demo:
    return Demo(tiny_model, tiny_processor, files, Counter({"abc": 1}))


@pytest.fixture
def photo(files: UploadFolder) -> str:
    path = files.path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return str(path)


def segment(demo: Demo, path: str, text: str = "sky", threshold: float = 0.0, vocabulary: str = OWN_CLASSES) -> tuple:
    return demo.segment(path, vocabulary, text, 0, threshold, SimpleNamespace(session_hash="abc"))


def test_segment_shows_each_class_found_with_its_share_and_probability(demo: Demo, photo: str) -> None:
    (_, names, image, labels, probability), overlay, (before, after), *_ = segment(demo, photo, "sky\n\ndog, puppy\n")
    assert names == ["sky", "dog, puppy"]
    assert before.size == after.size
    shown, masks = overlay["value"]
    assert np.array_equal(shown, image)
    assert {label for _, label in masks} == set(overlay["color_map"])
    for mask, label in masks:
        has_class = labels == ["sky", "dog"].index(label.split(" · ")[0])
        assert label.split(" · ")[1:] == [f"{has_class.mean():.1%}", f"{probability[has_class].mean():.2f}"]
        assert np.allclose(mask, np.where(has_class, 0.3 + 0.4 * probability, 0))


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_downloads_are_the_files_of_the_command(
    demo: Demo, photo: str, tiny_hub_folder: Path, tmp_path: Path, threshold: float | None
) -> None:
    *_, labels, overlay, summary = segment(demo, photo, "sky\ndog, puppy", threshold=threshold or 0.0)
    options = [] if threshold is None else ["--threshold", str(threshold)]
    arguments = ["--model", str(tiny_hub_folder), "--classes", "sky", "dog, puppy", *options, "--topk", "0"]
    assert main(["segment", photo, *arguments, "--output", str(tmp_path)]) == 0

    for download, name in [(labels, "photo_labels.png"), (overlay, "photo_overlay.jpg")]:
        assert Path(download["value"]).name == name
        assert Path(download["value"]).read_bytes() == (tmp_path / name).read_bytes()
    expected = json.loads((tmp_path / "photo.json").read_text())
    expected |= {"file": "photo.png", "model": demo.model.name_or_path}
    assert json.loads(Path(summary["value"]).read_text()) == expected


def test_early_rejection_is_at_first_that_of_the_model(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.model.config, "early_rejection_topk", 5)
    sliders = [block for block in build_page(demo, []).blocks.values() if isinstance(block, gradio.Slider)]
    assert [slider.value for slider in sliders if "Early rejection" in str(slider.label)] == [5]


def test_a_large_image_is_segmented_at_the_size_that_is_shown(demo: Demo, files: UploadFolder) -> None:
    Image.new("RGB", (4000, 1000)).save(files.path / "wide.png")
    (_, _, image, labels, _), *_ = segment(demo, str(files.path / "wide.png"))
    assert (image.size, labels.shape) == ((1024, 256), (256, 1024))


def test_what_visitors_type_is_kept_for_an_hour_and_not_in_the_cache_of_the_owner(
    demo: Demo, photo: str, tmp_path: Path, cache_home: Path
) -> None:
    segment(demo, photo, "a secret")
    assert not list(cache_home.iterdir())
    [typed] = tmp_path.rglob("*.safetensors")
    os.utime(typed, (0, 0))
    segment(demo, photo, "another")
    assert not typed.exists()
    segment(demo, photo, vocabulary="pascal_voc_20")
    assert list(cache_home.iterdir())


def test_work_that_takes_too_long_ends_with_a_sentence(demo: Demo, photo: str) -> None:
    demo.max_seconds = 0
    with pytest.raises(gradio.Error, match="This takes more than 0 seconds"):
        segment(demo, photo)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("2 GiB"), "Out of memory: try early rejection"),
        (NonFiniteLogitsError(0, "x"), "logits are not finite"),
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
        segment(demo, photo)
    assert not any(detail in str(refusal.value) for detail in ("2 GiB", "a bug"))


@pytest.mark.parametrize(
    ("mode", "size", "format", "message"),
    [
        ("1", (6000, 5000), "PNG", r"^'sent\.png: .*6000 × 5000 pixels are more than the 25,000,000 that are"),
        ("RGB", (4, 4), "EPS", r"^'sent\.png: not an image file"),  # which another program would run
    ],
)
def test_a_bad_image_is_refused_in_a_sentence(
    demo: Demo, tmp_path: Path, mode: str, size: tuple[int, int], format: str, message: str
) -> None:
    Image.new(mode, size).save(tmp_path / "sent.png", format)
    with pytest.raises(gradio.Error, match=message):
        segment(demo, str(tmp_path / "sent.png"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky\nSKY", "SKY.* is the same class name as .*'sky'"),
        ("<img>\n<img>", "&lt;img&gt;"),  # no markup of visitors in the page
        ("x" * 201, "There are 1 names, .* At most 1,000 names of 200 characters"),
        ("\n".join(map(str, range(10_000))), "There are 10,000 names, synonyms included"),
        (", ".join(map(str, range(1001))), "There are 1,001 names, synonyms included"),
    ],
)
def test_class_names_are_refused_in_a_sentence(demo: Demo, photo: str, text: str, message: str) -> None:
    with pytest.raises(gradio.Error, match=message):
        segment(demo, photo, text)


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


def test_a_call_keeps_what_gradio_needs(client: TestClient, photo: str) -> None:
    image = {"path": photo, "url": "data:image/png;base64,AAAA", "orig_name": "x", "is_stream": True}
    data = [image, "sky", 0, 0.5, None]
    call = {"fn_index": 0, "session_hash": "abc", "data": data, "event_data": {"path": "x"}, "oauth_token": "x"}
    assert client.post("/gradio_api/queue/join", json=call).json() == {
        "fn_index": 0,
        "session_hash": "abc",
        "trigger_id": None,
        "data": [{"path": photo, "meta": {"_type": "gradio.FileData"}}, "sky", 0, 0.5, None],
    }


@pytest.mark.parametrize(
    ("endpoint", "content", "status"),
    [
        pytest.param("queue/join", CALL % (b'"' + b"x" * 900_000 + b'"', b"x"), 200, id="900 kB"),
        pytest.param("queue/join", b"x" * 1_000_001, 413, id="1 MB"),
        pytest.param("queue/join", iter([b"{}"]), 413, id="a length that is not said"),
        pytest.param("queue/join", b"not JSON", 400, id="not JSON"),
        pytest.param("queue/join", b"[]", 400, id="a list"),
        pytest.param("queue/join", b"[" * 100_000, 400, id="nested"),
        pytest.param("queue/join", CALL % (b"", b"x" * 65), 400, id="a long session"),
        pytest.param("queue/join", CALL % (b"1e999", b"x"), 400, id="infinity"),
        pytest.param("queue/join", CALL % (b"[1]", b"x"), 400, id="a list of lists"),
        pytest.param("upload", bytes(30 * 2**20), 413, id="30 MiB"),
        pytest.param("upload", iter([b"{}"]), 413, id="an upload of a length that is not said"),
    ],
)
def test_what_is_not_a_call_of_the_page_or_too_long_is_refused(
    client: TestClient, endpoint: str, content: Any, status: int
) -> None:
    assert client.post(f"/gradio_api/{endpoint}", content=content).status_code == status


def test_files_in_the_folder_are_removed_by_age_and_then_the_oldest_until_there_is_room(files: UploadFolder) -> None:
    ages = {"old": 4000, "first": 300, "second": 200, "third": 100, "fourth": 5}
    paths = {name: files.path / name / name for name in ages}
    for name, path in paths.items():
        path.parent.mkdir()
        path.touch()
        os.truncate(path, MAX_FOLDER_BYTES // 3)
        time = path.stat().st_mtime - ages[name]
        os.utime(path, (time, time))
    files.kept = {str(paths["first"])}
    files.sweep()
    assert [path.name for path in paths.values() if path.exists()] == ["first", "third", "fourth"]
    assert not paths["old"].parent.exists()


@pytest.mark.parametrize(
    ("host", "share", "trusted"),
    [
        ("127.0.0.2", False, {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
        ("localhost", True, {"localhost", "127.0.0.1", "[::1]", "*.gradio.live"}),
        ("0.0.0.0", False, {"*"}),
    ],
)
def test_a_server_at_a_loopback_address_is_called_by_its_own_names(host: str, share: bool, trusted: set[str]) -> None:
    assert set(trusted_hosts(host, share)) == trusted


def test_the_space_requires_what_the_package_requires() -> None:
    options = (ROOT / "setup.cfg").read_text().split("install_requires =\n")[1].split("\n\n")[0]
    assert (ROOT / "space" / "requirements.txt").read_text().split() == options.split()
