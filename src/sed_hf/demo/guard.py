"""What the demo's server lets in: the endpoints of the page, within limits of size, and no files but uploaded ones."""

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_UPLOADS_AT_ONCE = 8
MAX_UPLOAD_SECONDS = 120
MAX_REQUEST_BYTES = MAX_UPLOAD_BYTES + 2**16  # with what surrounds the file
MAX_FOLDER_BYTES = 2**30 - MAX_UPLOADS_AT_ONCE * MAX_REQUEST_BYTES  # of uploads and results, before the next uploads
MAX_FILE_SECONDS = 3600
DISK_BYTES = 2**13  # that a file of any size takes, and the folder around it
MAX_CALL_BYTES = 1_000_000
MAX_SESSION_CHARACTERS = 64

UPLOAD = "/gradio_api/upload"
CALL = re.compile(r"/gradio_api/(queue/join|run/\w+|call/\w+)")
READ = re.compile(
    r"/(?!gradio_api/).*"
    r"|/gradio_api/(info|startup-events|queue/data|heartbeat/\w+|call/\w+/(?P<event>\w+)|file=(?P<file>.*))"
)
FOREIGN_FILE = "This file was not uploaded here, or is no longer kept. Please drop the image again."


class UploadFolder:
    """The folder of uploads and results, which are the only files that a request may name."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path.resolve()
        self.kept: set[str] = set()  # files that are never removed

    def __contains__(self, name: Any) -> bool:
        """Whether this is the path of a file here. The file system is asked only of paths below the folder."""
        below = f"{self.path}{os.sep}"
        with suppress(TypeError, ValueError):
            is_below = os.path.normpath(name).startswith(below) and os.path.realpath(name).startswith(below)
            return is_below and os.path.isfile(name)
        return False

    def sweep(self) -> None:
        """Make room for uploads."""
        sweep(self.path, MAX_FOLDER_BYTES, self.kept)


def sweep(folder: Path, max_bytes: int, kept: Set[str] = frozenset()) -> None:
    """Remove the files of a folder that are older than an hour, and then the oldest while it is larger than allowed."""
    files = []
    for parent, _, names in os.walk(folder):
        for path in {os.path.join(parent, name) for name in names} - kept:
            with suppress(FileNotFoundError):
                status = os.lstat(path)
                files.append((status.st_mtime, status.st_size + DISK_BYTES, Path(path)))
    excess = sum(size for _, size, _ in files) - max_bytes
    for modified, size, file in sorted(files):
        if excess <= 0 and modified > time.time() - MAX_FILE_SECONDS:
            break
        excess -= size
        with suppress(OSError):  # another sweep was faster, or the folder holds more
            file.unlink()
            if file.parent != folder:
                file.parent.rmdir()


class Guard:
    """ASGI middleware that refuses what the page does not need; `listeners` counts the connections of each session."""

    def __init__(self, app: ASGIApp, files: UploadFolder, listeners: Counter[str]) -> None:
        self.app = app
        self.files = files
        self.listeners = listeners
        self.upload_slots = asyncio.Semaphore(MAX_UPLOADS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, method = scope["path"].removeprefix(scope.get("root_path", "")), scope["method"]
        try:
            if method == "POST" and path == UPLOAD:
                check_length(scope, MAX_REQUEST_BYTES)
                await self._upload(scope, receive, send)
            elif method == "POST" and CALL.fullmatch(path):
                check_length(scope, MAX_CALL_BYTES)
                body = self._checked_call(await Request(scope, receive).body())
                messages = iter([{"type": "http.request", "body": body}])

                async def replay() -> Message:
                    return next(messages, None) or await receive()

                await self.app(scope, replay, send)
            elif method in ("GET", "HEAD") and (read := READ.fullmatch(path)):
                if read["file"] is not None and read["file"] not in self.files:
                    raise HTTPException(403, FOREIGN_FILE)
                session = read["event"] or QueryParams(scope["query_string"]).get("session_hash", "")
                self.listeners[session] += 1
                try:
                    await self.app(scope, receive, send)
                finally:
                    self.listeners -= Counter([session])
            else:
                raise HTTPException(404, "Not found.")
        except HTTPException as error:
            await JSONResponse({"detail": error.detail}, error.status_code)(scope, receive, send)
        except ClientDisconnect:
            pass

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an upload on, once there is room for it."""

        async def limited() -> Message:
            with suppress(TimeoutError):
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
                if message["type"] == "http.request":
                    return message
            # Upon this exception, and no other, Gradio removes what it has received.
            raise MultiPartException("The upload took too long.")

        async with self.upload_slots:
            deadline = time.monotonic() + MAX_UPLOAD_SECONDS
            await asyncio.to_thread(self.files.sweep)
            # Without the number for its progress, which Gradio would never forget as nobody asks for it.
            await self.app({**scope, "query_string": b""}, limited, send)

    def _checked_call(self, body: bytes) -> bytes:
        """The body of a call with what Gradio needs of it: texts, numbers and our own files."""
        try:
            call = json.loads(body)
            checked = {name: call.get(name) for name in ("session_hash", "fn_index", "trigger_id")}
            if len(str(checked["session_hash"])) > MAX_SESSION_CHARACTERS:
                raise ValueError
            checked["data"] = [self._checked_value(value) for value in call["data"]]
            return json.dumps(checked, allow_nan=False).encode()
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            raise HTTPException(400, "This request cannot be understood.") from None

    def _checked_value(self, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError
        if not isinstance(value, dict):
            return value
        if value.get("path") not in self.files:
            raise HTTPException(403, FOREIGN_FILE)
        return {"path": value["path"], "meta": {"_type": "gradio.FileData"}}


def check_length(scope: Scope, max_bytes: int) -> None:
    """Refuse a body that is too long, or does not say how long it is."""
    headers = Headers(scope=scope)
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers or not length.isdecimal() or int(length) > max_bytes:
        raise HTTPException(413, f"A request has at most {max_bytes:,} bytes, and says how many. Please send less.")
