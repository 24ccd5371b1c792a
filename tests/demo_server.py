"""The demo as a Space runs it, for the tests: a folder with `app.py` and the sources, no network, no model."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS_TO_START = 60
SECONDS_TO_END = 20


def make_space(folder: Path) -> Path:
    """Put into a folder what the command of docs/serve.md uploads."""
    shutil.copytree(ROOT / "space", folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "src" / "sed_hf", folder / "src" / "sed_hf")
    shutil.copy(ROOT / "app.py", folder)
    return folder


@contextmanager
def running_space(space: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Run the Space, with all it writes in another folder: its address, and the number of its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "GRADIO_SERVER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf_home"),
        "TMPDIR": str(folder),
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_served(f"http://127.0.0.1:{port}", server, folder / "log")
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.terminate()
        server.wait(SECONDS_TO_END)


def _wait_until_served(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the demo did not start:\n{log.read_text()}")
