"""Save a model folder as this release does: `python tests/saved_by/save.py tests/saved_by/VERSION`, once a release.

The folder is tiny, and random but for its seed. `expected.safetensors` in it holds an image and what the release made
of it, which every later release must make of it too. Keep no code of the release.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from sed_hf.data.scenes.model import MAX_PROMPT_LENGTH, PROMPT_TEMPLATES, build_tokenizer
from sed_hf.hub.save import save_hub_folder

NAMES = ["sky", "water", "red triangle"]


def main(folder: Path) -> None:
    """Write the folder."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = SEDConfig(
        projection_dim=16,
        prompt_templates=PROMPT_TEMPLATES,
        vision_config={"model_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "ls_init_value": 0.5}},
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "max_position_embeddings": MAX_PROMPT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        decoder_hidden_sizes=[16, 16, 16, 16],
        skip_guidance_sizes=[8, 8, 8],
        cost_guidance_sizes=[4, 4, 4],
    )
    image_processor = SEDImageProcessor(do_resize=False, input_size={"height": 64, "width": 64})
    processor = SEDProcessor(image_processor, tokenizer, prompt_templates=PROMPT_TEMPLATES)
    model = SEDForSemanticSegmentation(config).eval()
    save_hub_folder(model, processor, folder)
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    with torch.no_grad():
        inputs = processor(images=image, text=NAMES, return_tensors="pt")
        logits = model(**inputs).logits
    save_file({"image": image, **inputs, "logits": logits}, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
