"""Many visitors at once: every request of the demo is answered, and its memory does not grow."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

pytest.importorskip("gradio")

from demo_server import ROOT, make_space, running_space
from gradio_client import Client, handle_file

CLIENTS = 8
REQUESTS_OF_A_CLIENT = 25
SCENES = [ROOT / "examples" / f"scene-{number}.png" for number in (1, 2, 3)]
CLASSES = ["sky", "water", "gravel", "sand", "red triangle", "orange star"]
MAX_GROWTH = 100 * 2**20  # bytes, after the first half of the requests


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


def test_200_requests_of_8_clients_are_answered_in_steady_memory(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    with running_space(make_space(tmp_path / "space"), tmp_path) as (address, process_id):
        server = psutil.Process(process_id)
        clients = [Client(address, verbose=False, download_files=False) for _ in range(CLIENTS)]
        half = REQUESTS_OF_A_CLIENT // 2
        memory = []
        answered = 0
        with ThreadPoolExecutor(CLIENTS) as pool:
            for numbers in (range(half), range(half, REQUESTS_OF_A_CLIENT)):
                tasks = [pool.submit(send_requests, client, index, numbers) for index, client in enumerate(clients)]
                answered += sum(task.result() for task in tasks)
                memory.append(server.memory_info().rss)
    print(f"{answered} answers; resident memory after half and all of them: {[size >> 20 for size in memory]} MiB")
    assert answered == CLIENTS * REQUESTS_OF_A_CLIENT
    assert memory[1] - memory[0] < MAX_GROWTH
