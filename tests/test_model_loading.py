"""Model folders that are damaged, incomplete or hostile: one error that names the folder, and no code is run."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.hub.load import TOY_MODEL, check_model_source, load

PROCESSOR_FILES = ["tokenizer.json", "tokenizer_config.json", "processor_config.json"]


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
    @pytest.mark.parametrize("source", [None, "toy", str(TOY_MODEL), TOY_MODEL])
    def test_the_toy_model_is_loaded_by_default_and_by_name(self, source: Any) -> None:
        model, processor = load(source)
        assert not model.training
        assert model.config.projection_dim == 128
        assert processor.prompt_templates == model.config.prompt_templates

    def test_a_folder_of_that_name_comes_first(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.rename(folder.with_name("toy"))
        monkeypatch.chdir(folder.parent)
        assert check_model_source("toy") == "toy"

    def test_the_processor_is_the_one_that_transformers_loads(self) -> None:
        processor, expected = load()[1], SEDProcessor.from_pretrained(TOY_MODEL)
        names = ["cat", "dog, puppy"]
        assert processor.to_dict() == expected.to_dict()
        assert torch.equal(processor(text=names)["input_ids"], expected(text=names)["input_ids"])

    def test_sharded_weights_are_loaded(self, tiny_model: SEDForSemanticSegmentation, tmp_path: Path) -> None:
        tiny_model.save_pretrained(tmp_path / "model", max_shard_size="8MB")
        reloaded = SEDForSemanticSegmentation.from_pretrained(tmp_path / "model")
        assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
        assert torch.equal(reloaded.decoder.head.weight, tiny_model.decoder.head.weight)

    def test_the_dtype_is_the_one_asked_for(self) -> None:
        assert load(dtype="bfloat16")[0].dtype == torch.bfloat16

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_device_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(ValueError, match="device cuda: torch finds no such device here"):
            load(device="cuda")

    @pytest.mark.parametrize("source", ["nowhere", "./sed-base", "a/b/c"])
    def test_what_is_neither_a_folder_nor_a_name_on_the_hub_is_refused(self, source: str) -> None:
        with pytest.raises(FileNotFoundError, match=f"{source}: no such folder; expected a model folder or OWNER/NAME"):
            check_model_source(source)

    def test_a_folder_without_a_model_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"it has no config\.json; sed-hf convert makes one"):
            check_model_source(tmp_path)


class TestWeights:
    def change(self, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return refusal(folder)

    def test_missing_weights_are_not_drawn_at_random(self, folder: Path) -> None:
        message = self.change(folder, lambda weights: weights.pop("decoder.head.bias"))
        assert "weights that are missing: decoder.head.bias" in message

    def test_further_weights_are_refused(self, folder: Path) -> None:
        message = self.change(folder, lambda weights: weights.update(stranger=torch.zeros(1)))
        assert "weights that are unexpected: stranger" in message

    def test_weights_of_another_shape_are_refused(self, folder: Path) -> None:
        message = self.change(folder, lambda weights: weights.update({"decoder.head.bias": torch.zeros(2)}))
        assert "weights that are of another shape: decoder.head.bias" in message

    def test_weights_that_are_not_finite_are_refused(self, folder: Path) -> None:
        message = self.change(folder, lambda weights: weights["decoder.head.bias"].fill_(torch.nan))
        assert "weights that are not finite: decoder.head.bias" in message

    @pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"], ids=["empty", "LFS"])
    def test_a_file_that_is_not_the_weights_is_refused(self, folder: Path, content: bytes) -> None:
        (folder / "model.safetensors").write_bytes(content)
        assert "header" in refusal(folder)

    def test_a_pickle_in_their_place_is_not_read(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "no file named model.safetensors" in refusal(folder, OSError)


class TestSettings:
    @pytest.mark.parametrize(
        "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"]
    )
    @pytest.mark.parametrize("content", ["", "5", "version https://git-lfs.github.com/spec/v1\n"])
    def test_damaged_files_are_named(self, folder: Path, name: str, content: str) -> None:
        (folder / name).write_text(content)
        assert name in refusal(folder)

    @pytest.mark.parametrize("name", PROCESSOR_FILES)
    def test_missing_files_are_named(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        assert name in refusal(folder, OSError)

    def test_other_prompt_templates_than_the_models_are_refused(self, folder: Path) -> None:
        change_json(folder / "processor_config.json", prompt_templates=["a {}"])
        assert "processor_config.json and config.json have different prompt_templates" in refusal(folder)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"eos_token_id": 3}, "expected the tokenizer to end with token 3, as config.json says; got 675"),
            ({"max_position_embeddings": 16}, "weights that are of another shape"),
            ({"vocab_size": 600}, "weights that are of another shape"),
        ],
    )
    def test_another_tokenizer_than_the_models_is_refused(
        self, folder: Path, values: dict[str, int], message: str
    ) -> None:
        text_config = json.loads((folder / "config.json").read_text())["text_config"]
        change_json(folder / "config.json", text_config=text_config | values)
        assert message in refusal(folder)

    def test_longer_prompts_than_the_model_takes_are_refused(self, folder: Path) -> None:
        change_json(folder / "tokenizer_config.json", model_max_length=77)
        assert "the tokenizer needs max_position_embeddings 77, but config.json has 32" in refusal(folder)


AUTO_MAP = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoModelForSemanticSegmentation": "evil.Evil",
    "AutoImageProcessor": "evil.Evil",
    "AutoProcessor": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}
HOSTILE: dict[str, dict[str, dict[str, Any]]] = {
    "code for every class": {
        "config.json": {"auto_map": AUTO_MAP},
        "tokenizer_config.json": {"auto_map": AUTO_MAP},
        "processor_config.json": {"auto_map": AUTO_MAP},
    },
    "unknown model": {"config.json": {"model_type": "evil", "auto_map": AUTO_MAP}},
    "unknown tokenizer": {"tokenizer_config.json": {"tokenizer_class": "Evil", "auto_map": AUTO_MAP}},
    "unknown processor": {"processor_config.json": {"processor_class": "Evil", "auto_map": AUTO_MAP}},
    "unknown image processor": {
        "processor_config.json": {"image_processor": {"image_processor_type": "Evil", "auto_map": AUTO_MAP}}
    },
    "audio tokenizer": {
        "processor_config.json": {
            "audio_tokenizer": {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "FOLDER"}
        }
    },
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
    assert not trace.exists()
    assert "custom code" not in capsys.readouterr().out
    assert status == (2 if kind.startswith("unknown") else 0)


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind.startswith("unknown")])
def test_a_class_that_needs_code_is_refused_by_name(folder: Path, kind: str) -> None:
    for name, values in HOSTILE[kind].items():
        change_json(folder / name, **values)
    assert re.search("got '[eE]vil'; code that comes with a model is not run$", refusal(folder))
