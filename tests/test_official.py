"""The authors' weights by name, from a local server in place of Google Drive, with a small seeded checkpoint."""

import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_config, official_weights
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation, load
from sed_hf.cli import main
from sed_hf.hub.official import OFFICIAL, OfficialModel, official_folder

CONFIG = make_tiny_config()


def saved(content: Any) -> bytes:
    torch.save(content, buffer := io.BytesIO())
    return buffer.getvalue()


class Drive(ThreadingHTTPServer):
    """Serves one file, in parts if asked to, and breaks off after `limit` bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.limit: int | None = None
        self.requests: list[str | None] = []
        self.address = f"http://127.0.0.1:{self.server_port}/sed.pth"

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
    with Drive() as server:
        server.content = saved({"model": tiny_weights})
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("SED_HF_URL_SED_B", server.address)
        yield server
        server.shutdown()


@pytest.fixture
def model() -> OfficialModel:
    return OFFICIAL["sed-b"]


def refusal(model: OfficialModel) -> str:
    """The error without a download, after which no model is there."""
    with pytest.raises((OSError, ValueError)) as error:
        official_folder(model, CONFIG)
    assert not model.folder.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_first_call_downloads_and_converts_and_the_second_needs_no_network(
    drive: Drive, model: OfficialModel, tiny_model: SEDForSemanticSegmentation
) -> None:
    for _ in range(2):
        loaded, _ = load(official_folder(model, CONFIG))
        assert torch.equal(loaded.decoder.head.weight, tiny_model.decoder.head.weight)
    assert len(drive.requests) == 1
    assert {path.name for path in model.folder.parent.iterdir()} == {"sed-b", "sed-b.lock"}


def test_the_name_loads_the_model_and_the_fast_name_rejects_early(drive: Drive, model: OfficialModel) -> None:
    official_folder(model, CONFIG)
    assert load("sed-b")[0].config.early_rejection_topk is None
    assert load("sed-b-fast")[0].config.early_rejection_topk == 8
    assert len(drive.requests) == 1


def test_the_command_takes_the_name(
    drive: Drive, model: OfficialModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official_folder(model, CONFIG)
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    arguments = ["--model", "sed-b", "--classes", "sky", "sea", "--output", str(tmp_path)]
    assert main(["segment", str(tmp_path / "image.png"), *arguments]) == 0
    assert '"model": "sed-b"' in (tmp_path / "image.json").read_text()
    assert main(["models"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(line for line in lines if "sed-b" in line)[:6] == ["sed-b", "11.2", "18.6", "31.8", "57.7", "94.4"]
    assert ["sed-l", "13.7", "22.1", "35.3", "60.9", "96.1", "no"] in lines


def test_the_card_names_licence_source_and_citation(drive: Drive, model: OfficialModel) -> None:
    card = ModelCard.load(official_folder(model, CONFIG) / "README.md")
    assert card.data.license == "apache-2.0"
    for part in ("Megvii", f"https://drive.google.com/file/d/{model.file_id}/view", "@inproceedings{xie2024sed"):
        assert part in card.text


def test_a_download_that_breaks_off_is_resumed(drive: Drive, model: OfficialModel) -> None:
    drive.limit = len(drive.content) // 2
    message = refusal(model)
    assert "MB, which are kept" in message
    (part,) = model.folder.parent.glob("*.part")
    start, drive.limit = part.stat().st_size, None
    drive.requests.clear()
    load(official_folder(model, CONFIG))
    assert f"bytes={start}-" in drive.requests
    assert start > 0


def test_no_network_names_the_address_the_file_and_the_command(model: OfficialModel, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal(model) == (
        "sed-b: no download (OfflineModeIsEnabled): try again, or open"
        f" https://drive.google.com/file/d/1qx6zGZgSPkF6TObregRz4uzQqSRHrgUw/view in a browser, save the file as"
        f" {model.folder}.pth, and then run: sed-hf models sed-b"
    )


def test_a_server_that_does_not_answer_is_no_network_either(model: OfficialModel, monkeypatch: Any) -> None:
    with Drive() as closed:
        monkeypatch.setenv("SED_HF_URL_SED_B", closed.address)
    assert "sed-b: no download (" in refusal(model)


def test_a_file_put_there_by_hand_is_taken_and_stays(
    model: OfficialModel, tiny_weights: dict[str, Tensor], monkeypatch: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    by_hand = model.folder.with_suffix(".pth")
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(b"<html>Sign in</html>")
    assert refusal(model).startswith(f"{by_hand} does not serve; replace it: ")
    by_hand.write_bytes(saved(tiny_weights))
    load(official_folder(model, CONFIG))
    assert by_hand.exists()


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trace",)


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
    drive: Drive, model: OfficialModel, content: Any, message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    drive.content = content(drive.content)
    refused = refusal(model)
    assert "did not serve and was removed" in refused
    assert message in refused
    assert [path.name for path in model.folder.parent.iterdir()] == ["sed-b.lock"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_at_once_download_once(drive: Drive, model: OfficialModel) -> None:
    CONFIG.to_json_file(config := model.folder.parents[2] / "config.json")
    code = (
        "from sed_hf import SEDConfig; from sed_hf.hub.official import *;"
        f"official_folder(OFFICIAL['sed-b'], SEDConfig.from_json_file({str(config)!r}))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(drive.requests) == 1
    load(model.folder)


class TestAConfiguredRepository:
    @pytest.fixture(autouse=True)
    def _repository(self, tiny_hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def snapshot_download(repository: str, **_: Any) -> str:
            if repository != "me/sed-b":
                raise FileNotFoundError("no such repository")
            return str(tiny_hub_folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)

    def test_it_comes_first(
        self, drive: Drive, model: OfficialModel, tiny_hub_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SED_HF_REPO_SED_B", "me/sed-b")
        assert official_folder(model) == tiny_hub_folder
        assert not drive.requests

    def test_without_it_the_authors_file_is_taken(
        self, drive: Drive, model: OfficialModel, sed_hf_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SED_HF_REPO_SED_B", "me/nothing")
        assert official_folder(model, CONFIG) == model.folder
        assert "me/nothing: no such repository; taking the authors' file" in sed_hf_log.text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), [("sed-b", "convnext_base"), ("sed-l", "convnext_large")])
def test_weights_of_official_size_fit_their_name(
    name: str, variant: str, drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive.content = saved({"model": official_weights(variant, seed=0)})
    monkeypatch.setenv(f"SED_HF_URL_{name.upper().replace('-', '_')}", drive.address)
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    arguments = ["--model", f"{name}-fast", "--classes", "sky", "sea", "--output", str(tmp_path)]
    for _ in range(2):
        assert main(["segment", str(tmp_path / "image.png"), *arguments]) == 0
    assert len(drive.requests) == 1
