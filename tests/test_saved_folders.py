"""Model folders that releases have saved load, and give the tensors that they gave.

`python tests/test_saved_folders.py PREVIOUS NEW`, once a release, adds the folder of this release. Both are folders in
tests/saved_by, named by releases, tiny, and random but for their seed; they hold no code of the release.
"""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDProcessor
from sed_hf.hub.load import load
from sed_hf.hub.save import save_hub_folder

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("saved_by/*/config.json"))
NAMES = ["sky", "water", "red triangle"]


@torch.no_grad()
def save(previous: str, folder: str) -> None:
    """Write the folder of this release, of the configuration of the one before, with what it makes of an image."""
    torch.manual_seed(0)
    model = SEDForSemanticSegmentation(SEDConfig.from_pretrained(previous)).eval()
    processor = SEDProcessor.from_pretrained(previous)
    save_hub_folder(model, processor, folder)
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    inputs = processor(images=image, text=NAMES, return_tensors="pt")
    tensors = {"image": image, **inputs, "logits": model(**inputs).logits}
    save_file(tensors, Path(folder) / "expected.safetensors")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@torch.no_grad()
def test_a_folder_gives_the_tensors_that_its_release_saved(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    model, processor = load(folder)
    inputs = processor(images=expected["image"], text=NAMES, return_tensors="pt")
    found = {**inputs, "image": expected["image"], "logits": model(**inputs).logits}  # and what later releases add
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


if __name__ == "__main__":
    save(*sys.argv[1:])
