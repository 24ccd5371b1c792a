"""The demo under load: every request is answered, and neither memory nor disk grow."""

import json
import os
import socket
import time
import urllib.error
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("gradio")

from demo_server import MULTIPART, ROOT, Server, make_space, multipart, running_space
from gradio_client import Client, handle_file

pytestmark = pytest.mark.slow

CLIENTS = 8
REQUESTS_OF_A_CLIENT = 25
SCENES = [ROOT / "examples" / f"scene-{number}.png" for number in (1, 2, 3)]
CLASSES = ["sky", "water", "gravel", "sand", "red triangle", "orange star"]
MAX_GROWTH = 100 * 2**20  # bytes, after the first half of the requests

UPLOADS = int(os.environ.get("SED_HF_TEST_UPLOADS", "60"))  # of 19 MB
MAX_DISK_BYTES = 2**30
MAX_FLOOD_GROWTH = 300 * 2**20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "space").mkdir()
    with running_space(make_space(tmp_path / "space"), tmp_path) as (address, process_id):
        yield Server(address, process_id, tmp_path)


def send_requests(client: Client, number: int, numbers: Sequence[int]) -> int:
    """Ask for segmentations one after the other, and count the answers that are complete."""
    answered = 0
    for request in numbers:
        *_, summary, _ = client.predict(
            handle_file(SCENES[request % len(SCENES)]),
            "the classes typed below",
            "\n".join(CLASSES[: 1 + (number + request) % len(CLASSES)]),
            request % 3,
            0.0,
            api_name="/segment",
        )
        answered += Path(summary["value"]["path"]).suffix == ".json"
    return answered


def test_200_requests_of_8_clients_are_answered_in_steady_memory(server: Server) -> None:
    clients = [Client(server.address, verbose=False, download_files=False) for _ in range(CLIENTS)]
    half = REQUESTS_OF_A_CLIENT // 2
    memory = []
    answered = 0
    with ThreadPoolExecutor(CLIENTS) as pool:
        for numbers in (range(half), range(half, REQUESTS_OF_A_CLIENT)):
            tasks = [pool.submit(send_requests, client, index, numbers) for index, client in enumerate(clients)]
            answered += sum(task.result() for task in tasks)
            memory.append(psutil.Process(server.process_id).memory_info().rss)
    print(f"{answered} answers; resident memory after half and all of them: {[size >> 20 for size in memory]} MiB")
    assert answered == CLIENTS * REQUESTS_OF_A_CLIENT
    assert memory[1] - memory[0] < MAX_GROWTH


def test_a_flood_of_sessions_and_uploads_stays_within_memory_and_disk(server: Server) -> None:
    process = psutil.Process(server.process_id)
    start = process.memory_info().rss
    for number in range(200):
        for text in ("x" * 30_000_000, "x" * 900_000):
            call = {"fn_index": 0, "session_hash": f"invented{number}", "data": [None, "x", text, 0, 0]}
            with suppress(urllib.error.URLError):  # the server has answered, and does not listen any longer
                server.send("/gradio_api/queue/join", json.dumps(call).encode())
    head, _ = multipart("part.png")
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as connection:
            lines = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MULTIPART}\r\n"
            connection.sendall(f"{lines}Content-Length: 10000000\r\n\r\n".encode() + head + bytes(2**20))
    head, tail = multipart("small.png")
    while (
        server.send("/gradio_api/upload", head + tail, Content_Type=MULTIPART)[0] == 503
    ):  # there are too many at once
        time.sleep(0.1)
    most = 0
    for number in range(UPLOADS):
        server.upload(number.to_bytes(4) + bytes(19_000_000))
        most = max(most, sum(path.stat().st_size for path in server.files()))
    growth = process.memory_info().rss - start
    print(f"memory grew by {growth >> 20} MiB; at most {most >> 20} MiB were on disk")
    assert growth < MAX_FLOOD_GROWTH
    assert most <= MAX_DISK_BYTES
