"""Model folders that are damaged, incomplete or hostile: one error that names the folder, and nothing is executed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.hub.load import build_model, load_model_and_processor


@pytest.fixture(scope="module")
def sharded(tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "model"
    tiny_model.save_pretrained(folder, max_shard_size="8MB")
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sharded: Path, tmp_path: Path) -> Path:
    """A copy to damage; it costs no disk until then."""
    return Path(shutil.copytree(sharded, tmp_path / "model", copy_function=os.link))


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.unlink()
    path.write_text(json.dumps(content))


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(path)
    change(weights)
    path.unlink()
    save_file(weights, path, metadata={"format": "pt"})


def first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def test_a_whole_folder_loads(folder: Path, tiny_model: SEDForSemanticSegmentation) -> None:
    model, processor = load_model_and_processor(str(folder))
    assert torch.equal(model.decoder.head.weight, tiny_model.decoder.head.weight)
    assert processor.prompt_templates == model.config.prompt_templates


def test_a_model_that_does_not_fit_into_memory_is_not_called_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("unable to mmap 723126764 bytes from file: Cannot allocate memory (12)")

    monkeypatch.setattr(SEDForSemanticSegmentation, "from_pretrained", full)
    with pytest.raises(MemoryError, match=f"{folder.name}: out of memory while the model was loaded"):
        load_model_and_processor(str(folder))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match="expected a model of sed-hf, and this is none, or damaged") as error:
        load_model_and_processor(str(folder))
    assert str(folder) in str(error.value)
    return str(error.value)


class TestWeights:
    def test_a_missing_shard_is_named(self, folder: Path) -> None:
        first_shard(folder).unlink()
        assert "model-00001-of" in refusal(folder)

    def test_missing_weights_are_not_drawn_at_random(self, folder: Path) -> None:
        change_weights(first_shard(folder), lambda weights: weights.pop(min(weights)))
        assert "the weights do not fit config.json (missing: " in refusal(folder)

    def test_further_weights_are_refused(self, folder: Path) -> None:
        change_weights(first_shard(folder), lambda weights: weights.update(stranger=torch.zeros(1)))
        assert "left over: stranger" in refusal(folder)

    def test_weights_that_are_no_numbers_are_refused(self, folder: Path) -> None:
        change_weights(first_shard(folder), lambda weights: next(iter(weights.values())).fill_(torch.nan))
        assert "weights that are not finite" in refusal(folder)

    def test_a_cut_file_is_refused(self, folder: Path) -> None:
        shard = first_shard(folder)
        content = shard.read_bytes()
        shard.unlink()
        shard.write_bytes(content[: len(content) // 2])
        refusal(folder)

    def test_an_index_cannot_name_files_elsewhere(self, folder: Path) -> None:
        shutil.move(first_shard(folder), folder.parent / "stranger.safetensors")
        change_json(
            folder / "model.safetensors.index.json",
            lambda index: index["weight_map"].update(logit_scale="../stranger.safetensors"),
        )
        assert "expected names of .safetensors files beside it, got ../stranger.safetensors" in refusal(folder)

    def test_a_pickle_in_their_place_is_not_read(self, folder: Path) -> None:
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch EXECUTED'\ntR.")
        assert "model.safetensors.index.json: expected a file; there is none" in refusal(folder)
        assert not Path("EXECUTED").exists()


class TestSettings:
    def test_a_configuration_of_another_size_takes_no_memory(self, folder: Path) -> None:
        change_json(folder / "config.json", lambda config: config["text_config"].update(intermediate_size=65536))
        assert "of another shape: text_encoder" in refusal(folder)

    @pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"model_type": "sed", "text_config": 5}'])
    def test_what_is_no_configuration_is_refused(self, folder: Path, content: str) -> None:
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(content)
        refusal(folder)

    @pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
    def test_a_damaged_processor_is_refused(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        (folder / name).write_text("5")
        refusal(folder)

    def test_other_prompt_templates_than_the_models_are_refused(self, folder: Path) -> None:
        change_json(folder / "processor_config.json", lambda config: config.update(prompt_templates=["a {}"]))
        assert "prompt templates of the processor and of config.json differ" in refusal(folder)


def test_what_cannot_be_built_is_refused_as_the_configuration(make_tiny_model: Any) -> None:
    config = make_tiny_model().config
    config.vision_config.model_args = {"depths": [1, 1, 2, 1], "stranger": 1}
    with pytest.raises(ValueError, match=r"config: no model can be built of it: .*stranger"):
        build_model(config)
