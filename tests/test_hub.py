"""Hub folders: self-contained, loaded by every Auto class where neither sed_hf nor open_clip can be imported."""

import ast
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.hub.save import save_hub_folder

REMOTE_MODULES = [
    "class_embeddings",
    "configuration_sed",
    "decoder_sed",
    "files",
    "image_files",
    "image_processing_sed",
    "modeling_sed",
    "out_of_memory",
    "pipeline_sed",
    "processing_sed",
    "prompt_packing",
    "sliding_window",
    "weights",
]

REMOTE_CODE = """
import sys
sys.modules["sed_hf"] = sys.modules["open_clip"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, pipeline
)
folder, inputs, outputs = sys.argv[1:]
load = lambda auto_class: auto_class.from_pretrained(folder, trust_remote_code=True)
image = load_file(inputs)["image"]
processor = load(AutoProcessor)
features = processor(images=image, text=["cat", "dog, puppy"], return_tensors="pt")
with torch.no_grad():
    results = {
        "logits": load(AutoModel)(**features).logits,
        "semantic_segmentation_logits": load(AutoModelForSemanticSegmentation)(**features).logits,
        "pixel_values": load(AutoImageProcessor)(image, return_tensors="pt")["pixel_values"],
    }
assert type(load(AutoConfig)).__name__ == "SEDConfig"
segmenter = pipeline("open-vocabulary-segmentation", model=folder, trust_remote_code=True)
labels = ["cat", "dog, puppy"]
alone = segmenter(image, candidate_labels=labels)
assert {result["label"] for result in alone} <= set(labels)
for segments in segmenter((image for _ in range(6)), candidate_labels=labels, batch_size=4, sliding_window=None):
    assert (segments.label_map == alone.label_map).all()
segmenter(image, candidate_labels=labels, sliding_window=48)
load(AutoModel).save_pretrained(outputs + ".again")
processor.save_pretrained(outputs + ".again")
pipeline("open-vocabulary-segmentation", model=outputs + ".again", trust_remote_code=True)
assert not any(name.startswith(("sed_hf.", "open_clip.")) for name in sys.modules)
save_file(results, outputs)
"""


def test_every_auto_class_loads_it_as_remote_code(
    tiny_hub_folder: Path, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, tmp_path: Path
) -> None:
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"image": image}, tmp_path / "inputs.safetensors")
    command = [sys.executable, "-c", REMOTE_CODE, str(tiny_hub_folder)]
    command += [str(tmp_path / "inputs.safetensors"), str(tmp_path / "outputs.safetensors")]
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    completed = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr

    remote = load_file(tmp_path / "outputs.safetensors")
    inputs = tiny_processor(images=image, text=["cat", "dog, puppy"], return_tensors="pt")
    with torch.no_grad():
        logits = tiny_model(**inputs).logits
    assert torch.equal(remote["pixel_values"], inputs["pixel_values"])
    assert torch.equal(remote["logits"], logits)
    assert torch.equal(remote["semantic_segmentation_logits"], logits)


def test_the_folder_is_complete(tiny_hub_folder: Path) -> None:
    expected = {f"{module}.py" for module in REMOTE_MODULES}
    expected |= {"README.md", "config.json", "model.safetensors", "processor_config.json"}
    expected |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tiny_hub_folder.iterdir()} == expected


@pytest.mark.parametrize("module", REMOTE_MODULES)
def test_remote_code_imports_only_what_its_users_have(module: str) -> None:
    tree = ast.parse(files("sed_hf").joinpath(f"{module}.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(str(node.module).partition(".")[0])
    # The last four come with transformers and torchvision.
    allowed = {"torch", "torchvision", "transformers", "timm", "numpy", "huggingface_hub", "safetensors", "tqdm", "PIL"}
    assert imported <= allowed | set(sys.stdlib_module_names)


def test_a_folder_that_holds_something_is_refused(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, tmp_path: Path
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="directory: expected a new or empty folder"):
        save_hub_folder(tiny_model, tiny_processor, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_an_interrupted_save_leaves_nothing(
    tiny_model: SEDForSemanticSegmentation,
    tiny_processor: SEDProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tiny_processor, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_hub_folder(tiny_model, tiny_processor, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_model_card_has_the_metadata_that_the_hub_reads(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, tmp_path: Path
) -> None:
    save_hub_folder(tiny_model, tiny_processor, tmp_path / "model", "Trained in a test.", datasets=["coco-stuff"])
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.library_name == "transformers"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["coco-stuff"]
    assert card.data.metrics == ["mean_iou"]
    assert card.data.widget[0]["parameters"]["candidate_labels"]
    assert "Trained in a test." in card.text


def test_whoever_can_read_the_card_can_read_the_weights(tiny_hub_folder: Path) -> None:
    modes = {path.stat().st_mode for path in tiny_hub_folder.iterdir() if path.suffix in (".md", ".safetensors")}
    assert len(modes) == 1


class TestPush:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What is asked of the Hub."""
        calls: dict[str, Any] = {}

        def upload_folder(self: HfApi, **options: Any) -> str:
            calls["upload_folder"] = options
            return f"https://huggingface.co/{options['repo_id']}"

        def create_repo(self: HfApi, repo_id: str, **options: Any) -> None:
            calls["create_repo"] = {"repo_id": repo_id, **options}

        monkeypatch.setattr(HfApi, "create_repo", create_repo)
        monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
        return calls

    def test_the_whole_folder_is_uploaded(
        self, calls: dict[str, Any], tiny_hub_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["push", str(tiny_hub_folder), "me/sed", "--private"]) == 0
        assert calls["create_repo"] == {"repo_id": "me/sed", "private": True, "exist_ok": True}
        assert calls["upload_folder"]["folder_path"] == str(tiny_hub_folder)
        assert "https://huggingface.co/me/sed" in capsys.readouterr().out

    def test_a_folder_that_holds_no_model_is_refused(
        self, calls: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["push", str(tmp_path), "me/sed"]) == 2
        assert "expected a model folder" in capsys.readouterr().err
        assert not calls

    @pytest.mark.parametrize("repo_id", ["sed", "/sed", "me/", "a/b/c"])
    def test_a_repository_without_owner_or_name_is_refused(
        self, calls: dict[str, Any], repo_id: str, tiny_hub_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["push", str(tiny_hub_folder), repo_id]) == 2
        assert "expected a repository as OWNER/NAME" in capsys.readouterr().err
        assert not calls


def test_plain_save_pretrained_carries_the_code_too(tiny_model: SEDForSemanticSegmentation, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"modeling_sed.py", "decoder_sed.py", "configuration_sed.py", "pipeline_sed.py"} <= written
