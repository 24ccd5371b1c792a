"""What the demo's server lets in: the endpoints of the page, within limits of size, and no files but uploaded ones.

Gradio checks the path of a file only if a request marks it as one, has no limits but that of a file, and keeps the
last values of each session and the temporary files of uploads that are broken off.
"""

import asyncio
import json
import os
import re
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_UPLOADS_AT_ONCE = 8
MAX_SECONDS_PER_UPLOAD = 120
MAX_FOLDER_BYTES = 2**30  # of uploads and results
MAX_FILE_SECONDS = 3600
SECONDS_BETWEEN_SWEEPS = 60
OVERHEAD_BYTES = 2**16  # of the request around an uploaded file
DISK_BYTES = 2**13  # that a file of any size takes, and the folder around it

MAX_BODY_BYTES = 1_000_000  # of a request that is not an upload
MAX_VALUES = 16  # of a call
MAX_LIST_LENGTH = 10_000
MAX_SESSION_CHARACTERS = 64

UPLOAD = "/gradio_api/upload"
CALL = re.compile(r"/gradio_api/(queue/join|call/\w+)")
READ = re.compile(
    r"/(?!gradio_api/).*"
    r"|/gradio_api/(info|startup-events|queue/data|heartbeat/\w+|call/\w+/(?P<event>\w+)|file=(?P<file>.*))"
)
FOREIGN_FILE = "This file was not uploaded here, or is no longer kept. Please drop the image again."


class UploadFolder:
    """The folder of uploads and results, which are the only files that a request may name.

    Args:
        path: Of the folder, which is made if needed.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.resolve()
        self._kept: set[str] = set()

    def __contains__(self, name: object) -> bool:
        """Whether this is the path of a file in the folder.

        The file system is asked only of paths below the folder: the time of the answer tells nothing of others.
        """
        below = f"{self.path}{os.sep}"
        with suppress(ValueError):  # of a null character, for one
            return (
                isinstance(name, str)
                and os.path.normpath(name).startswith(below)
                and os.path.realpath(name).startswith(below)
                and os.path.isfile(name)
            )
        return False

    def new_folder(self) -> Path:
        """A new folder for results."""
        self.sweep()
        folder = self.path / uuid.uuid4().hex
        folder.mkdir()
        return folder

    def keep(self) -> None:
        """Never remove the files that are there now."""
        self._kept = {str(path) for path in self.path.rglob("*")}

    def sweep(self, room: int = 0) -> None:
        """Remove what is too old, and then the oldest until `room` more bytes fit."""
        files = []
        for folder, _, names in os.walk(self.path):
            for path in {os.path.join(folder, name) for name in names} - self._kept:
                with suppress(FileNotFoundError):
                    status = os.lstat(path)
                    files.append((status.st_mtime, status.st_size + DISK_BYTES, path))
        total = room + sum(size for _, size, _ in files)
        for modified, size, path in sorted(files):
            if total <= MAX_FOLDER_BYTES and modified > time.time() - MAX_FILE_SECONDS:
                break
            with suppress(OSError):  # another sweep was faster, or the folder holds more
                os.remove(path)
                os.rmdir(os.path.dirname(path))
            total -= size

    def sweep_forever(self) -> None:
        """Sweep once a minute."""
        while True:
            self.sweep()
            time.sleep(SECONDS_BETWEEN_SWEEPS)


class Guard:
    """ASGI middleware through which all requests pass: what the page does not need is refused.

    Args:
        app: Gradio's application.
        files: Those that requests may name.
        listeners: Kept up to date: for each session over how many connections it waits for an answer.
    """

    def __init__(self, app: ASGIApp, files: UploadFolder, listeners: Counter[str]) -> None:
        self.app = app
        self.files = files
        self.listeners = listeners
        self.num_uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, method = scope["path"].removeprefix(scope.get("root_path", "")), scope["method"]
        try:
            if method == "POST" and path == UPLOAD:
                await self._upload(scope, receive, send)
            elif method == "POST" and CALL.fullmatch(path):
                await self.app(scope, await self._checked_call(path, Request(scope, receive)), send)
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
        """Pass an upload on while it is neither too large nor too slow."""
        if self.num_uploads == MAX_UPLOADS_AT_ONCE:
            raise HTTPException(503, "There are too many uploads at once. Please try again.")
        deadline = time.monotonic() + MAX_SECONDS_PER_UPLOAD
        received = 0

        async def limited() -> Message:
            nonlocal received
            # Upon this exception, and no other, Gradio removes what it has received.
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise MultiPartException("The upload takes too long.") from None
            received += len(message.get("body", b""))
            if received > MAX_UPLOAD_BYTES + OVERHEAD_BYTES or message["type"] == "http.disconnect":
                raise MultiPartException(f"The maximum allowed size is {MAX_UPLOAD_BYTES >> 20} MB.")
            return message

        self.num_uploads += 1
        try:
            room = self.num_uploads * (MAX_UPLOAD_BYTES + OVERHEAD_BYTES)
            await asyncio.to_thread(self.files.sweep, room)
            # Without the number for its progress, which Gradio would never forget as nobody asks for it.
            await self.app({**scope, "query_string": b""}, limited, send)
        finally:
            self.num_uploads -= 1

    async def _checked_call(self, path: str, request: Request) -> Receive:
        """The messages of a call, with what Gradio needs of it and nothing else."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise HTTPException(413, f"At most {MAX_BODY_BYTES:,} characters are taken here. Please send less.")
        try:
            call = json.loads(body)
            checked: dict[str, Any] = {"data": [self._checked_value(value) for value in call["data"][:MAX_VALUES]]}
            if path.endswith("/queue/join"):  # a call of another kind is a session of its own
                if len(call["session_hash"]) > MAX_SESSION_CHARACTERS:
                    raise ValueError
                checked.update({name: call.get(name) for name in ("session_hash", "fn_index", "trigger_id")})
                if isinstance(event := call.get("event_data"), dict):  # the page needs to know where a click was
                    checked["event_data"] = {"index": self._checked_value(event.get("index")), "value": None}
            content = json.dumps(checked, allow_nan=False).encode()
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            raise HTTPException(400, "This request cannot be understood.") from None
        messages = [{"type": "http.request", "body": content, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await request.receive()

        return replay

    def _checked_value(self, value: Any) -> Any:
        """A value without nested values; a file is one of ours.

        Raises:
            HTTPException: It is another file.
            ValueError: It is nested, or too long.
        """
        if isinstance(value, dict):
            if value.get("path") not in self.files:
                raise HTTPException(403, FOREIGN_FILE)
            return {"path": value["path"], "meta": {"_type": "gradio.FileData"}}
        if isinstance(value, list) and (
            len(value) > MAX_LIST_LENGTH or any(isinstance(entry, list | dict) for entry in value)
        ):
            raise ValueError
        return value
