"""The demo's server as strangers use it: what they cannot read, block or fill."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip("gradio")

from demo_server import MULTIPART, Server, image, make_space, multipart, running_space

pytestmark = pytest.mark.slow

SECONDS_TO_ANSWER = 30
MANY_CLASSES = "\n".join(f"class {index}" for index in range(1000))
FUNCTIONS = range(9)  # at least as many as the page has
CONTROL = "\x1b]0;title\x07"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    space, folder = tmp_path_factory.mktemp("space"), tmp_path_factory.mktemp("server")
    with running_space(make_space(space), folder) as (address, process_id):
        yield Server(address, process_id, folder)


@pytest.fixture(scope="module")
def photo(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of an uploaded image."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.new("RGB", (40, 30), "blue").save(path)
    return server.upload(path.read_bytes())


@pytest.fixture(scope="module")
def large(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of an uploaded image of 25 megapixels."""
    path = tmp_path_factory.mktemp("large") / "large.png"
    Image.new("RGB", (5000, 5000), "blue").save(path)
    return server.upload(path.read_bytes())


@pytest.mark.parametrize(
    "endpoint",
    ["call/segment", "call/v2/segment", "run/segment", "run/predict", "api/segment", "queue/join", "component_server"],
)
@pytest.mark.parametrize("with_meta", [False, True])
def test_no_endpoint_reads_a_file_of_the_server_or_tells_whether_there_is_one(
    server: Server, endpoint: str, with_meta: bool
) -> None:
    (server.folder / "secret.png").unlink(missing_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(server.folder / "secret.png")
    link = server.folder / "link.png"
    link.unlink(missing_ok=True)
    link.symlink_to(server.folder / "secret.png")
    there = [str(server.folder / "secret.png"), str(link), "app.py", f"{server.address}/static/img/logo.svg"]
    absent = [str(server.folder / "absent.png"), "/no/such/folder/x.png", "absent.py", "data:image/png;base64,AAAA"]
    answers = set()
    for path in there + absent:
        for function in FUNCTIONS if endpoint in ("queue/join", "run/predict") else [0]:
            more = {"fn_index": function, "session_hash": "abc", "component_id": 1, "fn_name": "x"}
            data = [image(path, with_meta), "the classes typed below", "sky", 0, 0]
            answers.add(server.call(f"/gradio_api/{endpoint}", data, **more if endpoint != "call/segment" else {}))
    assert len(answers) == 1
    assert answers.pop()[0] in (403, 404)


@pytest.mark.parametrize("prefix", ["file=", "file/", "proxy="])
def test_no_address_reads_a_file_of_the_server_or_tells_whether_there_is_one(server: Server, prefix: str) -> None:
    paths = [
        "/etc/passwd",
        "/etc/absent",
        "app.py",
        "absent.py",
        f"{server.address}/config",
        "https://example.invalid/",
    ]
    answers = {server.send(f"/gradio_api/{prefix}{path}") for path in paths}
    assert len(answers) == 1
    assert answers.pop()[0] in (403, 404)


def test_uploaded_images_are_segmented_and_served(server: Server, photo: str) -> None:
    status, answer = server.segment(photo)
    assert status == 200
    assert b"event: complete" in answer
    assert server.send(f"/gradio_api/file={photo}")[0] == 200


@pytest.mark.parametrize(("host", "status"), [("attacker.example", 400), ("127.0.0.1", 200), ("localhost:7860", 200)])
def test_another_host_name_is_refused(server: Server, host: str, status: int) -> None:
    assert server.send("/config", Host=host)[0] == status


@pytest.mark.parametrize(("topk", "threshold"), [("NaN", "0"), ("0", "NaN")])
def test_a_slider_is_a_number(server: Server, photo: str, topk: str, threshold: str) -> None:
    data = json.dumps([image(photo), "the classes typed below", "sky"])[:-1] + f", {topk}, {threshold}]"
    assert server.send("/gradio_api/call/segment", f'{{"data": {data}}}'.encode())[0] == 400


def test_control_characters_do_not_reach_the_terminal(server: Server, photo: str) -> None:
    server.upload(b"no image", f"{CONTROL}.png")
    server.segment(f"/{CONTROL}")
    server.call("/gradio_api/call/segment", [image(photo), CONTROL, CONTROL, 0, 0])
    server.call(f"/gradio_api/call/{CONTROL}", [])
    server.send(f"/gradio_api/custom_component/{CONTROL}/client/x/y")
    assert not {"\x1b", "\x07"} & set((server.folder / "log").read_text())


def test_long_texts_are_refused_and_not_kept(server: Server) -> None:
    before = psutil.Process(server.process_id).memory_info().rss
    text = "x" * 30_000_000
    for session in range(20):
        call = {"fn_index": 0, "session_hash": f"s{session}", "data": [None, "", text, 0, 0]}
        with suppress(urllib.error.URLError):  # the server has answered, and does not listen any longer
            assert server.send("/gradio_api/queue/join", json.dumps(call).encode())[0] == 413
    assert psutil.Process(server.process_id).memory_info().rss - before < 100 * 2**20


def test_what_an_aborted_upload_has_sent_is_removed(server: Server) -> None:
    before = server.files()
    head, _ = multipart("part.png")
    with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as connection:
        lines = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MULTIPART}\r\n"
        connection.sendall(f"{lines}Content-Length: 10000000\r\n\r\n".encode() + head + bytes(2**20))
        while server.files() == before:
            time.sleep(0.1)
    assert server.wait_for_files(before)


def test_an_upload_of_many_files_is_refused(server: Server) -> None:
    head, tail = multipart("many.png")
    before = server.files()
    content = (head + bytes(10 * 2**20) + b"\r\n") * 3 + tail
    with suppress(urllib.error.URLError):  # the server has answered, and does not listen any longer
        assert server.send("/gradio_api/upload", content, Content_Type=MULTIPART)[0] == 413
    assert server.wait_for_files(before)


@pytest.mark.parametrize("waits", [False, True])
def test_work_ends_when_the_visitor_has_gone(server: Server, large: str, waits: bool) -> None:
    call = json.dumps({"data": [image(large), "the classes typed below", MANY_CLASSES, 0, 0]}).encode()
    _, answer = server.send("/gradio_api/call/segment", call)
    if waits:
        path = f"{server.address}/gradio_api/call/segment/{json.loads(answer)['event_id']}"
        with pytest.raises(TimeoutError), urllib.request.urlopen(path, timeout=3) as stream:
            stream.read()
    time.sleep(5)
    assert psutil.Process(server.process_id).cpu_percent(0.5) < 20


def test_an_image_of_25_megapixels_and_1000_names_are_segmented_while_others_are_served(
    server: Server, photo: str, large: str
) -> None:
    answers = {}

    def segment(path: str, class_text: str) -> None:
        start = time.monotonic()
        answers[path] = b"event: complete" in server.segment(path, class_text)[1], time.monotonic() - start

    heavy = threading.Thread(target=segment, args=(large, MANY_CLASSES))
    heavy.start()
    time.sleep(1)
    segment(photo, "sky")
    assert heavy.is_alive()
    heavy.join()
    print(answers)
    assert [answer for answer, _ in answers.values()] == [True, True]
