"""Model folders that releases have saved go on loading, and give what they gave; see tests/saved_by/save.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sed_hf import SEDForSemanticSegmentation, SEDProcessor

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("saved_by/*/config.json"))
NAMES = ["sky", "water", "red triangle"]

AS_REMOTE_CODE = """
import sys
sys.modules["sed_hf"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, pipeline
folder, *names = sys.argv[1:]
expected = load_file(f"{folder}/expected.safetensors")
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
inputs = AutoProcessor.from_pretrained(folder, trust_remote_code=True)(
    images=expected["image"], text=names, return_tensors="pt"
)
with torch.no_grad():
    torch.testing.assert_close(model(**inputs).logits, expected["logits"], rtol=0, atol=1e-4)
segmenter = pipeline("open-vocabulary-segmentation", model=folder, trust_remote_code=True)
assert segmenter(expected["image"], candidate_labels=names).label_map.shape == (60, 80)
"""


def test_there_is_one_of_this_release() -> None:
    assert "0.1.0" in [folder.name for folder in FOLDERS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_this_package_makes_of_it_what_its_release_did(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    model = SEDForSemanticSegmentation.from_pretrained(folder).eval()
    inputs = SEDProcessor.from_pretrained(folder)(images=expected["image"], text=NAMES, return_tensors="pt")
    for name, value in inputs.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_own_code_makes_the_same(folder: Path, tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", AS_REMOTE_CODE, str(folder), *NAMES]
    completed = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
