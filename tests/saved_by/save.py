"""Save a model folder as this release does: `python tests/saved_by/save.py PREVIOUS NEW`, once a release.

Both are folders in tests/saved_by, named by releases, tiny, and random but for their seed. `expected.safetensors` holds
an image and what the release made of it, which every later release must make of it too. Keep no code of the release.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDProcessor
from sed_hf.hub.save import save_hub_folder

NAMES = ["sky", "water", "red triangle"]


def main(previous: str, folder: str) -> None:
    """Write the folder of this release, of the configuration of the one before."""
    torch.manual_seed(0)
    model = SEDForSemanticSegmentation(SEDConfig.from_pretrained(previous)).eval()
    processor = SEDProcessor.from_pretrained(previous)
    save_hub_folder(model, processor, folder)
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    with torch.no_grad():
        inputs = processor(images=image, text=NAMES, return_tensors="pt")
        logits = model(**inputs).logits
    save_file({"image": image, **inputs, "logits": logits}, Path(folder) / "expected.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
