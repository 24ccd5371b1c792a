"""The authors' weights by name, from a local server in place of Google Drive, with a small seeded checkpoint."""

import io
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from conftest import make_tiny_config, official_weights
from huggingface_hub import ModelCard
from PIL import Image
from planted import RunsCode
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation as Model
from sed_hf import load
from sed_hf.cli import main
from sed_hf.hub.official import OFFICIAL, official_folder

CONFIG = make_tiny_config()
FILE_ID = "1qx6zGZgSPkF6TObregRz4uzQqSRHrgUw"


def saved(content: Any) -> bytes:
    torch.save(content, buffer := io.BytesIO())
    return buffer.getvalue()


class Drive(ThreadingHTTPServer):
    """Serves one file, in parts if asked to, and breaks off after `limit` bytes."""

    content: bytes
    requests: list[str | None]
    limit: int | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are none."""


class Handler(BaseHTTPRequestHandler):
    server: Drive

    def do_GET(self) -> None:
        content, wanted = self.server.content, self.headers.get("Range")
        self.server.requests.append(wanted)
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"sed"')
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start : self.server.limit])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def drive(tiny_weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[Drive]:
    with Drive(("127.0.0.1", 0), Handler) as server:
        server.content, server.requests = saved({"model": tiny_weights}), []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("SED_B", "SED_L"):
            monkeypatch.setenv(f"SED_HF_URL_{name}", f"http://127.0.0.1:{server.server_port}/sed.pth")
        yield server
        server.shutdown()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the converted model lies, once it is there. The tiny model passes for SED-B."""
    monkeypatch.setattr("sed_hf.conversion.config_from_open_clip", lambda variant: CONFIG)
    return OFFICIAL["sed-b"].folder


def make() -> Path:
    return official_folder(OFFICIAL["sed-b"])


def refusal() -> str:
    """The error in the place of a model."""
    with pytest.raises((OSError, ValueError)) as error:
        make()
    assert not OFFICIAL["sed-b"].folder.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def segment(model: str, folder: Path) -> int:
    """Run `sed-hf segment` on an image in a folder."""
    Image.new("RGB", (64, 64)).save(folder / "image.png")
    arguments = ["--model", model, "--classes", "sky", "sea", "--output", str(folder)]
    return main(["segment", str(folder / "image.png"), *arguments])


def test_the_first_call_downloads_and_converts_and_no_other(drive: Drive, folder: Path, tiny_model: Model) -> None:
    card = ModelCard.load(official_folder(OFFICIAL["sed-b-fast"]) / "README.md")  # the same weights as of sed-b
    assert card.data.license == "apache-2.0"
    assert "11.2 on" in card.text
    assert all(part in card.text for part in ("Megvii", f"drive.google.com/file/d/{FILE_ID}", "{xie2024sed"))
    for name, topk in [("sed-b", None), ("sed-b-fast", 8)]:
        loaded, _ = load(name)
        assert torch.equal(loaded.decoder.head.weight, tiny_model.decoder.head.weight)
        assert loaded.config.early_rejection_topk == topk
    assert len(drive.requests) == 1
    assert {path.name for path in folder.parent.iterdir()} == {"sed-b", "sed-b.lock"}


def test_commands_take_the_name(drive: Drive, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment("sed-b", tmp_path) == 0
    assert '"model": "sed-b"' in (tmp_path / "image.json").read_text()
    assert main(["models"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(line for line in lines if "sed-b" in line)[:6] == ["sed-b", "11.2", "18.6", "31.8", "57.7", "94.4"]
    assert ["sed-l", "13.7", "22.1", "35.3", "60.9", "96.1", "no"] in lines


def test_a_download_that_breaks_off_is_resumed(drive: Drive, folder: Path) -> None:
    drive.limit = len(drive.content) // 2
    assert "MB, which are kept" in refusal()
    (part,) = folder.parent.glob("*.part")
    start, drive.limit = part.stat().st_size, None
    drive.requests.clear()
    load(make())
    assert f"bytes={start}-" in drive.requests
    assert start > 0


def test_without_network_a_file_put_there_by_hand_is_taken_and_stays(
    folder: Path, tiny_weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    by_hand = folder.with_suffix(".pth")
    assert refusal() == (
        "sed-b: no download (OfflineModeIsEnabled): try again, or open"
        f" https://drive.google.com/file/d/{FILE_ID}/view in a browser, save the file as"
        f" {by_hand}, and then run: sed-hf models sed-b"
    )
    by_hand.write_bytes(b"<html>Sign in</html>")
    assert refusal().startswith(f"{by_hand} does not serve; replace it: ")
    by_hand.write_bytes(saved(tiny_weights))
    load(make())
    assert by_hand.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"<html>Too many downloads</html>", "expected a checkpoint; this is another kind of file"),
        (lambda whole: whole[: len(whole) // 2], "expected a checkpoint; this is another kind of file, or damaged"),
        (lambda whole: saved({"model": {"weight": torch.zeros(3)}}), "does not fit the configuration; missing"),
        (lambda whole: saved({"model": {"weight": RunsCode()}}), "was refused, since reading it would run"),
    ],
    ids=["HTML", "truncated", "another model", "code"],
)
def test_another_file_is_refused_and_removed(
    drive: Drive, folder: Path, content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drive.content = content(drive.content)
    refused = refusal()
    assert "did not serve and was removed" in refused
    assert message in refused
    assert [path.name for path in folder.parent.iterdir()] == ["sed-b.lock"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_at_once_download_once(drive: Drive, folder: Path) -> None:
    CONFIG.to_json_file(config := folder.parents[2] / "config.json")
    code = (
        "import sed_hf; from sed_hf import conversion;"
        f"conversion.config_from_open_clip = lambda variant: sed_hf.SEDConfig.from_json_file({str(config)!r});"
        "sed_hf.load('sed-b')"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(drive.requests) == 1
    load(folder)


def test_a_configured_repository_comes_first_and_without_it_the_authors_file_is_taken(
    drive: Drive, folder: Path, sed_hf_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = Mock(side_effect=["snapshot", FileNotFoundError("no such repository")])
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("SED_HF_REPO_SED_B", "me/sed-b")
    assert make() == Path("snapshot")
    assert not drive.requests
    assert make() == folder
    assert "me/sed-b: no such repository; taking the authors' file" in sed_hf_log.text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), [("sed-b", "convnext_base"), ("sed-l", "convnext_large")])
def test_weights_of_official_size_fit_their_name(name: str, variant: str, drive: Drive, tmp_path: Path) -> None:
    drive.content = saved({"model": official_weights(variant, seed=0)})
    assert [segment(f"{name}-fast", tmp_path) for _ in range(2)] == [0, 0]
    assert len(drive.requests) == 1
