"""Hub folders: self-contained, loaded by every Auto class where neither sed_hf nor open_clip can be imported."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from planted import PLANTS, listing
from safetensors.torch import load_file, save_file

import sed_hf
from sed_hf import SEDForSemanticSegmentation as Model
from sed_hf import SEDProcessor
from sed_hf.cli import main
from sed_hf.hub.save import save_hub_folder

CARRIED = {path.name for path in Path(sed_hf.__file__).parent.glob("*_sed.py")}

REMOTE_CODE = """
import sys
sys.modules["sed_hf"] = sys.modules["open_clip"] = None  # importing either fails
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, pipeline
)
folder, inputs, outputs = sys.argv[1:]
load = lambda auto_class: auto_class.from_pretrained(folder, trust_remote_code=True)
image, labels = load_file(inputs)["image"], ["cat", "dog, puppy"]
processor = load(AutoProcessor)
features = processor(images=image, text=labels, return_tensors="pt")
with torch.no_grad():
    results = {
        "logits": load(AutoModel)(**features).logits,
        "semantic_segmentation_logits": load(AutoModelForSemanticSegmentation)(**features).logits,
        "pixel_values": load(AutoImageProcessor)(image, return_tensors="pt")["pixel_values"],
    }
assert type(load(AutoConfig)).__name__ == "SEDConfig"
segmenter = pipeline("open-vocabulary-segmentation", model=folder, trust_remote_code=True)
single = segmenter(image, candidate_labels=labels)
assert {result["label"] for result in single} <= set(labels)
for segments in segmenter((image for _ in range(6)), candidate_labels=labels, batch_size=4, sliding_window=None):
    assert (segments.label_map == single.label_map).all()
segmenter(image, candidate_labels=labels, sliding_window=48)
load(AutoModel).save_pretrained("again")
processor.save_pretrained("again")
pipeline("open-vocabulary-segmentation", model="again", trust_remote_code=True)
assert not any(name.startswith(("sed_hf.", "open_clip.")) for name in sys.modules)
save_file(results, outputs)
"""


@pytest.mark.slow
def test_every_auto_class_loads_it_as_remote_code(
    tiny_hub_folder: Path, tiny_model: Model, tiny_processor: SEDProcessor, tmp_path: Path
) -> None:
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"image": image}, tmp_path / "inputs.safetensors")
    command = [sys.executable, "-c", REMOTE_CODE, str(tiny_hub_folder), "inputs.safetensors", "outputs.safetensors"]
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)

    remote = load_file(tmp_path / "outputs.safetensors")
    inputs = tiny_processor(images=image, text=["cat", "dog, puppy"], return_tensors="pt")
    with torch.no_grad():
        logits = tiny_model(**inputs).logits
    assert torch.equal(remote["pixel_values"], inputs["pixel_values"])
    assert torch.equal(remote["logits"], logits)
    assert torch.equal(remote["semantic_segmentation_logits"], logits)


def test_the_folder_is_complete_and_its_weights_can_be_read_by_whoever_can_read_its_card(tiny_hub_folder: Path) -> None:
    others = {"README.md", "config.json", "model.safetensors", "processor_config.json"}
    others |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tiny_hub_folder.iterdir()} == CARRIED | others
    assert len({(tiny_hub_folder / name).stat().st_mode for name in ("README.md", "model.safetensors")}) == 1


def test_the_model_card_has_the_hubs_metadata(tiny_model: Model, tiny_processor: SEDProcessor, tmp_path: Path) -> None:
    card_of = {"description": "Trained in a test.", "class_names": ["wall", "café"], "datasets": ["coco-stuff"]}
    save_hub_folder(tiny_model, tiny_processor, tmp_path / "model", **card_of)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-segmentation", "transformers")
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["coco-stuff"])
    assert "Trained in a test." in card.text
    assert 'candidate_labels=["wall", "café"])' in card.text


def test_adapters_without_a_model_are_refused(tiny_model: Model, tiny_processor: SEDProcessor, tmp_path: Path) -> None:
    adapted = get_peft_model(copy.deepcopy(tiny_model), LoraConfig(target_modules=r"decoder\..*fc1"))
    with pytest.raises(ValueError, match="merge_and_unload"):
        save_hub_folder(adapted, tiny_processor, tmp_path / "model")
    assert not (tmp_path / "model").exists()


class TestWhereSomethingLies:
    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        """What a command is to write, in a folder by itself."""
        (tmp_path / "work").mkdir()
        return tmp_path / "work" / "out"

    @pytest.mark.parametrize(
        ("command", "kind"),
        [
            *(("init scenes", kind) for kind in PLANTS if kind != "link to nothing"),
            ("convert absent.pth", "folder"),
            ("export", "folder"),
        ],
    )
    def test_what_is_not_a_model_is_refused(self, command: str, kind: str, precious: Path, out: Path) -> None:
        PLANTS[kind](out, precious)
        before = listing(out.parent) | listing(precious)
        for options in [[]] if command == "export" else [[], ["--overwrite"]]:
            assert main([*command.split(), str(out), *options]) == 2
        assert listing(out.parent) | listing(precious) == before

    def test_a_model_folder_is_replaced_on_request(self, precious: Path, out: Path) -> None:
        out.mkdir()
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").symlink_to(precious / "thesis.txt")
        (out / "images").symlink_to(precious)
        assert main(["init", "scenes", str(out)]) == 2
        assert main(["init", "scenes", str(out), "--overwrite"]) == 0
        assert json.loads((out / "config.json").read_text())["model_type"] == "sed"
        assert not (out / "model.safetensors").is_symlink()
        assert listing(precious) == {"thesis.txt": b"mine"}
        assert list(out.parent.iterdir()) == [out]
