"""Model folders that releases have saved load, and give the tensors that they gave; see tests/saved_by/save.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sed_hf.hub.load import load

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("saved_by/*/config.json"))
NAMES = ["sky", "water", "red triangle"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@torch.no_grad()
def test_a_folder_gives_the_tensors_that_its_release_saved(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    model, processor = load(folder)
    inputs = processor(images=expected["image"], text=NAMES, return_tensors="pt")
    found = {**inputs, "image": expected["image"], "logits": model(**inputs).logits}  # and what later releases add
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
