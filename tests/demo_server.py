"""The demo as a Space runs it, for the tests: a folder with `app.py` and the sources, no network, no model."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS_TO_START = SECONDS_TO_ANSWER = 60
MULTIPART = "multipart/form-data; boundary=X"
OWN_CLASSES = "the classes typed below"


@dataclass
class Server:
    """The running demo, and what its visitors do."""

    address: str
    process_id: int
    folder: Path  # which holds all that it writes

    def send(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """The status and the body of the answer to a request."""
        headers = {"Content-Type": "application/json"} | headers
        request = urllib.request.Request(self.address + urllib.parse.quote(path, safe="/=?&:"), body, headers)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def call(self, endpoint: str, data: list[Any], **more: Any) -> tuple[int, bytes]:
        """The status and the end of a call, or of its refusal; file names and numbers of calls are left out."""
        status, answer = self.send(endpoint, json.dumps({"data": data, **more}).encode())
        if status == 200 and b"event_id" in answer:
            if endpoint.endswith("/queue/join"):
                answer = self.send(f"/gradio_api/queue/data?session_hash={more['session_hash']}")[1]
            else:
                answer = self.send(f"{endpoint}/{json.loads(answer)['event_id']}")[1]
        return status, re.sub(rb'[0-9a-f]{32,}|"time[^,]*|"(?:average_)?duration[^,}]*', b"", answer)

    def segment(self, path: str, class_text: str = "sky", vocabulary: str = OWN_CLASSES) -> tuple[int, bytes]:
        return self.call("/gradio_api/call/segment", [image(path), vocabulary, class_text, 0, 0])

    def upload(self, content: bytes, name: str = "image.png") -> str:
        """Upload a file: its path on the server."""
        body = multipart(name) + content + b"\r\n--X--\r\n"
        status, answer = self.send("/gradio_api/upload", body, **{"Content-Type": MULTIPART})
        assert status == 200, answer
        return json.loads(answer)[0]

    def abort_upload(self) -> None:
        """Send the first megabyte of a file, and leave once the server keeps it."""
        before = self.files()
        lines = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MULTIPART}\r\n"
        with socket.create_connection(("127.0.0.1", int(self.address.rpartition(":")[2]))) as connection:
            body = multipart("part.png") + bytes(2**20)
            connection.sendall(f"{lines}Content-Length: 10000000\r\n\r\n".encode() + body)
            while self.files() == before:
                time.sleep(0.1)

    def files(self) -> set[Path]:
        """The files that the server keeps."""
        return {path for path in self.folder.rglob("served/**/*") if path.is_file()}


def multipart(name: str) -> bytes:
    """What comes before the content of a file in an upload."""
    return f'--X\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()


def image(path: Any, with_meta: bool = True) -> dict[str, Any]:
    """A file, as a request names it."""
    return {"path": path} | ({"meta": {"_type": "gradio.FileData"}} if with_meta else {})


@contextmanager
def running_space(folder: Path) -> Iterator[Server]:
    """Run what the command of docs/serve.md uploads as a Space, with all it writes in a folder."""
    space = folder / "space"
    shutil.copytree(ROOT / "space", space)
    shutil.copytree(ROOT / "src" / "sed_hf", space / "src" / "sed_hf")
    shutil.copy(ROOT / "app.py", space)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HOME": str(folder / "hf_home"), "TMPDIR": str(folder)}
    output: Any = {"stdout": (folder / "log").open("w"), "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, **output)
    server = Server(f"http://127.0.0.1:{port}", process.pid, folder)
    deadline = time.monotonic() + SECONDS_TO_START
    try:
        while True:
            try:
                urllib.request.urlopen(server.address, timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"the demo did not start:\n{(folder / 'log').read_text()}") from None
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(20)
