"""Model folders that are damaged, incomplete or hostile: one error that names the folder, and no code is run."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sed_hf
from sed_hf.cli import main
from sed_hf.configuration_sed import AUTO_MAP
from sed_hf.hub.load import EXPECTED_SETTINGS, TOY_MODEL, check_model_source, load, native_dtype

BIAS = "decoder.head.bias"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled toy model, to damage."""
    return Path(shutil.copytree(TOY_MODEL, tmp_path / "model"))


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(folder: Path, error_type: type[Exception] = ValueError) -> str:
    with pytest.raises(error_type, match=re.escape(str(folder))) as error:
        load(folder)
    return str(error.value)


class TestSources:
    @pytest.mark.parametrize("source", [None, "toy", TOY_MODEL])
    def test_the_toy_model_is_loaded_by_default_and_by_name(self, source: Any) -> None:
        model, processor = sed_hf.load(source)
        assert not model.training
        assert model.config.projection_dim == 128
        assert processor.prompt_templates == model.config.prompt_templates

    def test_a_folder_of_that_name_comes_first(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.rename(folder.with_name("toy"))
        monkeypatch.chdir(folder.parent)
        assert check_model_source("toy") == "toy"

    def test_the_dtype_is_the_one_asked_for(self) -> None:
        assert load(dtype="bfloat16")[0].dtype == torch.bfloat16
        assert load(dtype="auto")[0].dtype == native_dtype("cpu")

    @pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", "avx2"])
    def test_the_native_dtype_is_bfloat16_where_the_processor_has_it(
        self, monkeypatch: pytest.MonkeyPatch, capability: str
    ) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
        assert native_dtype("cpu") == (torch.float32 if capability == "avx2" else torch.bfloat16)
        assert native_dtype("mps") == torch.float32

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_device_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(ValueError, match="device cuda: torch finds no such device here"):
            load(device="cuda")

    @pytest.mark.parametrize("source", ["nowhere", "./sed-base", "a/b/c", ""])
    def test_what_is_neither_a_folder_nor_a_name_is_refused(self, source: str) -> None:
        with pytest.raises(FileNotFoundError, match=f"{source}: no such folder; " if source else "an empty name"):
            check_model_source(source)

    def test_a_folder_without_a_model_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"it has no config\.json; sed-hf convert makes one"):
            check_model_source(tmp_path)


class TestWeights:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({BIAS: None}, f"missing: {BIAS}"),
            ({"stranger": torch.zeros(1)}, "unexpected: stranger"),
            ({BIAS: torch.zeros(2)}, f"of another shape: {BIAS}"),
            ({BIAS: torch.tensor([torch.nan])}, f"not finite: {BIAS}"),
        ],
    )
    def test_weights_that_do_not_fill_the_model_are_refused(self, folder: Path, change: dict, message: str) -> None:
        weights = {**load_file(folder / "model.safetensors"), **change}
        present = {name: tensor for name, tensor in weights.items() if tensor is not None}
        save_file(present, folder / "model.safetensors", metadata={"format": "pt"})
        assert f"weights that are {message}" in refusal(folder)

    def test_a_file_that_is_not_the_weights_is_refused(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        assert "header" in refusal(folder)

    def test_a_pickle_in_their_place_is_not_read(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "no file named model.safetensors" in refusal(folder, OSError)


class TestSettings:
    @pytest.mark.parametrize("name", EXPECTED_SETTINGS)
    def test_missing_and_damaged_files_are_named(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        assert name in refusal(folder, OSError)
        for content in ("", "5"):
            (folder / name).write_text(content)
            assert f"{name} is not a JSON object" in refusal(folder)

    @pytest.mark.parametrize(
        ("file", "values", "message"),
        [
            ("processor_config.json", {"prompt_templates": ["a {}"]}, "config.json: prompt_templates"),
            ("tokenizer_config.json", {"model_max_length": 77}, "config.json: max_position_embeddings"),
            ("tokenizer_config.json", {"eos_token": "a"}, "config.json: eos_token_id"),
        ],
    )
    def test_a_processor_of_another_model_is_refused(self, folder: Path, file: str, values: dict, message: str) -> None:
        change_json(folder / file, **values)
        assert message in refusal(folder)


EVIL = {"auto_map": {**dict.fromkeys(AUTO_MAP, "evil.Evil"), "AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
AUDIO = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "FOLDER"}
HOSTILE: dict[str, dict[str, dict[str, Any]]] = {
    "code for every class": dict.fromkeys(["config.json", "tokenizer_config.json", "processor_config.json"], EVIL),
    "audio tokenizer": {"processor_config.json": {"audio_tokenizer": AUDIO}},
    "unknown model": {"config.json": {"model_type": "evil", **EVIL}},
    "unknown tokenizer": {"tokenizer_config.json": {"tokenizer_class": "Evil", **EVIL}},
    "unknown processor": {"processor_config.json": {"processor_class": "Evil", **EVIL}},
    "unknown image processor": {"processor_config.json": {"image_processor": {"image_processor_type": "Evil", **EVIL}}},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_folder_runs_no_code_and_asks_for_no_consent(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = folder.parent / "trace"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    for name, values in HOSTILE[kind].items():
        change_json(folder / name, **json.loads(json.dumps(values).replace("FOLDER", str(folder))))
    Image.new("RGB", (64, 64)).save(folder.parent / "image.png")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    arguments = ["segment", str(folder.parent / "image.png"), "--model", str(folder), "--classes", "sky", "sand"]
    status = main([*arguments, "--output", str(folder.parent / "out")])
    printed = capsys.readouterr()
    assert not trace.exists()
    assert "custom code" not in printed.out
    assert status == (2 if kind.startswith("unknown") else 0)
    if status:
        assert re.search("got '[eE]vil'; code that comes with a model is not run$", printed.err.strip())
