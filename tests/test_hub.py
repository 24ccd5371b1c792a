"""Hub folders: self-contained, loaded by every Auto class where neither sed_hf nor open_clip can be imported."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from planted import BESIDE, PLANTS, listing
from safetensors.torch import load_file, save_file

import sed_hf
from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.hub.load import load
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
single = segmenter(image, candidate_labels=labels)
assert {result["label"] for result in single} <= set(labels)
for segments in segmenter((image for _ in range(6)), candidate_labels=labels, batch_size=4, sliding_window=None):
    assert (segments.label_map == single.label_map).all()
segmenter(image, candidate_labels=labels, sliding_window=48)
load(AutoModel).save_pretrained(outputs + ".again")
processor.save_pretrained(outputs + ".again")
pipeline("open-vocabulary-segmentation", model=outputs + ".again", trust_remote_code=True)
assert not any(name.startswith(("sed_hf.", "open_clip.")) for name in sys.modules)
save_file(results, outputs)
"""


@pytest.mark.slow
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
    others = {"README.md", "config.json", "model.safetensors", "processor_config.json"}
    others |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tiny_hub_folder.iterdir()} == CARRIED | others


def test_save_pretrained_carries_the_code_too(tiny_model: SEDForSemanticSegmentation, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} >= {"modeling_sed.py", "pipeline_sed.py"}


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


class TestWhereSomethingLies:
    @pytest.fixture
    def precious(self, tmp_path: Path) -> Path:
        """A folder of the user's, with a model in it."""
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "thesis.txt").write_text("mine")
        return tmp_path / "precious"

    @pytest.fixture
    def run(self, tiny_weights: dict[str, torch.Tensor], tiny_model: SEDForSemanticSegmentation, tmp_path: Path) -> Any:
        """Runs a command that writes the folder work/out."""
        (tmp_path / "work").mkdir()

        def run(command: str, *options: str) -> int:
            arguments = [command, str(tmp_path / "work" / "out"), *options]
            if command == "init":
                arguments.insert(1, "scenes")
            elif command == "convert":
                save_file(tiny_weights, tmp_path / "official.safetensors")
                tiny_model.config.to_json_file(tmp_path / "config.json")
                arguments[1:1] = [str(tmp_path / "official.safetensors"), "--config", str(tmp_path / "config.json")]
            return main(arguments)

        return run

    @pytest.mark.parametrize("command", ["init", "convert", pytest.param("export", marks=pytest.mark.slow)])
    def test_nothing_beside_it_is_touched(self, run: Any, command: str, precious: Path, tmp_path: Path) -> None:
        for template in BESIDE:
            for index, plant in enumerate(PLANTS.values()):
                plant(tmp_path / "work" / template.format("out" if index == 0 else f"out{index}"), precious)
        (tmp_path / "work" / "out").symlink_to(precious / "nothing")
        before = listing(tmp_path / "work") | listing(precious)
        assert run(command) == 0
        after = listing(precious) | {
            name: content for name, content in listing(tmp_path / "work").items() if not name.startswith("out/")
        }
        assert after == before | {"out": "folder"}

    @pytest.mark.parametrize("kind", [kind for kind in PLANTS if kind != "link to nothing"])
    @pytest.mark.parametrize("command", ["init", "convert", "export"])
    def test_what_is_not_a_model_is_refused(
        self, run: Any, command: str, kind: str, precious: Path, tmp_path: Path
    ) -> None:
        PLANTS[kind](tmp_path / "work" / "out", precious)
        before = listing(tmp_path / "work") | listing(precious)
        assert run(command) == 2
        if command != "export":
            assert run(command, "--overwrite") == 2
        assert listing(tmp_path / "work") | listing(precious) == before

    def test_a_model_folder_is_replaced_on_request(self, run: Any, precious: Path, tmp_path: Path) -> None:
        out = tmp_path / "work" / "out"
        out.mkdir()
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").symlink_to(precious / "thesis.txt")
        (out / "images").symlink_to(precious)
        assert run("init") == 2
        assert run("init", "--overwrite") == 0
        assert json.loads((out / "config.json").read_text())["model_type"] == "sed"
        assert not (out / "model.safetensors").is_symlink()
        assert listing(precious) == {"thesis.txt": b"mine"}
        assert [path.name for path in (tmp_path / "work").iterdir()] == ["out"]

    def test_a_link_to_a_model_folder_is_replaced_itself(self, run: Any, precious: Path, tmp_path: Path) -> None:
        (precious / "config.json").write_text("{}")
        (tmp_path / "work" / "out").symlink_to(precious)
        assert run("init", "--overwrite") == 0
        assert not (tmp_path / "work" / "out").is_symlink()
        assert listing(precious) == {"thesis.txt": b"mine", "config.json": b"{}"}

    def test_a_failed_save_leaves_the_old_model(
        self, run: Any, precious: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        precious.rename(tmp_path / "work" / "out")
        (tmp_path / "work" / "out" / "config.json").write_text("{}")
        monkeypatch.setattr(SEDProcessor, "save_pretrained", fail)
        assert run("init", "--overwrite") == 2
        assert listing(tmp_path / "work") == {"out": "folder", "out/thesis.txt": b"mine", "out/config.json": b"{}"}


@pytest.mark.slow
@pytest.mark.parametrize("milliseconds", [0, 10, 30, 100])
def test_a_killed_command_leaves_no_half_model(tmp_path: Path, milliseconds: int) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    code = "from sed_hf.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "init", "scenes", str(tmp_path / "out"), "--overwrite"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob(".*.part/out")):
        time.sleep(0.001)
    time.sleep(milliseconds / 1000)
    process.kill()
    process.wait()
    if list((tmp_path / "out").glob("*")) not in ([], [tmp_path / "out" / "config.json"]):
        load(tmp_path / "out")
    assert main(command[3:]) == 0
    load(tmp_path / "out")


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
