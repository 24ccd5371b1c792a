"""The demo's server as strangers use it: what they cannot read, block or fill."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from itertools import product

import psutil
import pytest
from demo_server import OWN_CLASSES, ROOT, Server, image, running_space
from gradio_client import Client, handle_file
from PIL import Image

pytestmark = pytest.mark.slow

MANY_CLASSES = "\n".join(f"class {index}" for index in range(1000))
FUNCTIONS = range(5)  # at least as many as the page has
CONTROL = "\x1b]0;title\x07"
UPLOADS = int(os.environ.get("SED_HF_TEST_UPLOADS", "60"))  # of 19 MB, in a flood


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_space(tmp_path_factory.mktemp("server")) as server:
        yield server


# These two come first: they measure how the memory of a server grows that has done nothing else.


def test_a_flood_of_sessions_and_uploads_stays_within_memory_and_disk(server: Server) -> None:
    process = psutil.Process(server.process_id)
    start = process.memory_info().rss
    for number in range(200):
        for text, status in [("x" * 30_000_000, 413), ("x" * 900_000, 200)]:
            call = {"fn_index": 0, "session_hash": f"invented{number}", "data": [None, OWN_CLASSES, text, 0, 0]}
            with suppress(urllib.error.URLError):  # the server has answered, and does not listen any longer
                assert server.send("/gradio_api/queue/join", json.dumps(call).encode())[0] in (status, 503)
    for _ in range(50):
        server.abort_upload()
    most = 0
    for number in range(UPLOADS):
        server.upload(number.to_bytes(4) + bytes(19_000_000))
        most = max(most, sum(path.stat().st_size for path in server.files()))
    assert process.memory_info().rss - start < 300 * 2**20
    assert most <= 2**30


def test_200_requests_of_8_clients_are_answered_in_steady_memory(server: Server) -> None:
    clients = [Client(server.address, verbose=False, download_files=False) for _ in range(8)]
    scenes = [ROOT / "examples" / f"scene-{number}.png" for number in (1, 2, 3)]
    classes = ["sky", "water", "gravel", "sand", "red triangle", "orange star"]

    def ask(number: int) -> bool:
        text = "\n".join(classes[: 1 + number % len(classes)])
        data = [handle_file(scenes[number % 3]), OWN_CLASSES, text, number % 3, 0.0]
        return clients[number % 8].predict(*data, api_name="/segment")[-1]["value"]["path"].endswith(".json")

    memory = []
    for numbers in (range(100), range(100, 200)):
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, numbers))
        memory.append(psutil.Process(server.process_id).memory_info().rss)
    assert memory[1] - memory[0] < 100 * 2**20


def png(width: int, height: int) -> bytes:
    Image.new("RGB", (width, height), "blue").save(file := BytesIO(), "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photo(server: Server) -> str:
    """The path of an uploaded image."""
    return server.upload(png(40, 30))


@pytest.fixture(scope="module")
def large(server: Server) -> str:
    """The path of an uploaded image of 25 megapixels."""
    return server.upload(png(5000, 5000))


@pytest.fixture(scope="module")
def paths(server: Server, photo: str) -> list[str]:
    """Files that are there, and files that are not."""
    (server.folder / "secret.png").write_bytes(png(8, 8))
    [served] = server.folder.glob("*/served")
    (link := served / "link.png").symlink_to(server.folder / "secret.png")
    there = ["/etc/passwd", f"{server.folder}/secret.png", str(link), f"{served}/../../secret.png", "app.py"]
    urls = [f"{server.address}/static/img/logo.svg", "data:image/png;base64,AAAA", "https://example.invalid/"]
    return [*there, *urls, f"{served}/absent.png", "/no/such/folder/x.png", "absent.py"]


@pytest.mark.parametrize(
    "endpoint",
    [
        *("call/segment", "call/v2/segment", "run/segment", "run/predict", "api/segment", "queue/join"),
        *("component_server", "file=", "file/", "proxy="),
    ],
)
def test_no_request_reads_a_file_of_the_server_or_tells_whether_there_is_one(
    server: Server, paths: list[str], endpoint: str
) -> None:
    answers = set()
    functions = FUNCTIONS if endpoint in ("queue/join", "run/predict") else [0]
    for path, function, with_meta in product(paths, functions, (False, True)):
        more = {"fn_index": function, "session_hash": "abc", "component_id": 1, "fn_name": "x"}
        data = [image(path, with_meta), OWN_CLASSES, "sky", 0, 0]
        if endpoint.endswith(("=", "/")):
            answers.add(server.send(f"/gradio_api/{endpoint}{path}"))
        else:
            answers.add(server.call(f"/gradio_api/{endpoint}", data, **more if endpoint != "call/segment" else {}))
    assert len(answers) == 1
    assert answers.pop()[0] in (403, 404)


def test_no_vocabulary_is_read_from_a_file_of_the_server(server: Server, photo: str, paths: list[str]) -> None:
    answers = {server.segment(photo, vocabulary=path)[1].replace(path.encode(), b"") for path in paths}
    assert len(answers) == 1
    assert b"event: error" in answers.pop()


def test_uploaded_images_are_segmented_by_the_queue_only_and_served(server: Server, photo: str) -> None:
    status, answer = server.segment(photo)
    assert status == 200
    assert b"event: complete" in answer
    assert server.send(f"/gradio_api/file={photo}")[0] == 200
    assert server.call("/gradio_api/run/segment", [image(photo), OWN_CLASSES, "sky", 0, 0])[0] == 404


@pytest.mark.parametrize(("host", "status"), [("attacker.example", 400), ("127.0.0.1", 200), ("localhost:7860", 200)])
def test_another_host_name_is_refused(server: Server, host: str, status: int) -> None:
    assert server.send("/config", Host=host)[0] == status


def test_control_characters_do_not_reach_the_terminal(server: Server, photo: str) -> None:
    server.segment(server.upload(b"no image", f"{CONTROL}.png"))
    server.segment(f"/{CONTROL}")
    server.segment(photo, CONTROL)
    server.segment(photo, vocabulary=CONTROL)
    server.call(f"/gradio_api/call/{CONTROL}", [])
    server.send(f"/gradio_api/custom_component/{CONTROL}/client/x/y")
    assert not {"\x1b", "\x07"} & set((server.folder / "log").read_text())


def test_what_an_aborted_upload_has_sent_is_removed(server: Server) -> None:
    before = server.files()
    server.abort_upload()
    time.sleep(2)
    assert server.files() == before


@pytest.mark.parametrize("waits", [False, True])
def test_work_ends_when_the_visitor_has_gone(server: Server, large: str, waits: bool) -> None:
    call = json.dumps({"data": [image(large), OWN_CLASSES, MANY_CLASSES, 0, 0]}).encode()
    _, answer = server.send("/gradio_api/call/segment", call)
    if waits:
        path = f"{server.address}/gradio_api/call/segment/{json.loads(answer)['event_id']}"
        with pytest.raises(TimeoutError), urllib.request.urlopen(path, timeout=3) as stream:
            stream.read()
    time.sleep(5)
    assert psutil.Process(server.process_id).cpu_percent(0.5) < 20


def test_others_are_served_during_25_megapixels_and_1000_names(server: Server, photo: str, large: str) -> None:
    with ThreadPoolExecutor() as pool:
        heavy = pool.submit(server.segment, large, MANY_CLASSES)
        time.sleep(1)
        assert b"event: complete" in server.segment(photo)[1]
        assert not heavy.done()
        assert b"event: complete" in heavy.result()[1]
