"""Export to ONNX and `torch.export`: images and class embeddings to logits, and prompts to embeddings.

Dense decoding is exported, with open numbers of images and classes and an open size. See docs/export.md.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from transformers.image_utils import PILImageResampling

from ..inference.class_embeddings import encode_classes
from ..modeling_sed import ENCODER_STRIDE, SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from ..utils import atomic_path
from .save import check_new_folder

OPSET = 20  # the first with a GELU of its own


class DenseSegmentation(nn.Module):
    """Logits (B, T, H / 4, W / 4) of images (B, 3, H, W) and class embeddings (T, P, D)."""

    output_name = "logits"

    def __init__(self, model: SEDForSemanticSegmentation) -> None:
        super().__init__()
        self.model = model
        # torch treats a length of 1 as a special case when it traces, also of what class attention pools.
        least = 2 * model.config.inference_pooling_size
        templates, channels = len(model.config.prompt_templates), model.config.projection_dim
        self.example = {
            "pixel_values": torch.zeros(2, 3, (least + 1) * ENCODER_STRIDE, (least + 2) * ENCODER_STRIDE),
            "class_embeddings": torch.full((5, templates, channels), channels**-0.5),
        }
        rows, columns = (ENCODER_STRIDE * Dim(name, min=least) for name in ("rows", "columns"))
        self.open_sizes = {
            "pixel_values": {0: Dim("batch"), 2: rows, 3: columns},
            "class_embeddings": {0: Dim("classes", min=2)},
        }

    def forward(self, pixel_values: Tensor, class_embeddings: Tensor) -> Tensor:
        """Decode every class."""
        return self.model(pixel_values, class_embeddings=class_embeddings, early_rejection_topk=0).logits


class PromptEncoder(nn.Module):
    """Embeddings (N, D), of length 1, of prompts (N, L); what follows the end-of-text token is padding.

    The model itself encodes what prompts share only once, which would tie the program to the tokens of the example.
    """

    output_name = "prompt_embeddings"

    def __init__(self, model: SEDForSemanticSegmentation) -> None:
        super().__init__()
        self.text_encoder = model.text_encoder
        config = model.text_encoder.config
        max_tokens = config.max_position_embeddings
        self.example = {"input_ids": torch.full((3, min(5, max_tokens)), config.eos_token_id)}
        self.open_sizes = {"input_ids": {0: Dim("prompts"), 1: Dim("tokens", max=max_tokens)}}

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode each prompt separately."""
        return F.normalize(self.text_encoder(input_ids=input_ids).text_embeds, dim=-1)


@torch.no_grad()
def write_program(module: DenseSegmentation | PromptEncoder, path: Path) -> None:
    """Write a `.pt2` or an `.onnx` file, with weights."""
    program = torch.export.export(module.eval(), tuple(module.example.values()), dynamic_shapes=module.open_sizes)
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        return
    torch.onnx.export(
        program,
        f=path,
        dynamic_shapes=module.open_sizes,  # for the names of the axes
        dynamo=True,
        external_data=False,
        opset_version=OPSET,
        input_names=list(module.example),
        output_names=[module.output_name],
        verbose=False,
    )


def export_model(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    directory: Path,
    program_format: Literal["onnx", "torch"] = "onnx",
    class_names: Sequence[str] = (),
) -> None:
    """Write both programs, and what is needed to use them, to a folder, which appears when it is complete.

    Args:
        model: On the CPU.
        directory: Folder to make; it may exist if it is empty.
        program_format: "onnx" writes `segmentation.onnx` and `text_encoder.onnx`; "torch" `.pt2` files.
        class_names: Classes to encode now, to `classes.npz`: `names` (T,) and `embeddings` (T, P, D).
    """
    check_new_folder(directory)
    with atomic_path(directory) as folder:
        folder.mkdir()
        settings = json.dumps(export_settings(model, processor), indent=2, ensure_ascii=False)
        (folder / "settings.json").write_text(settings + "\n", encoding="utf-8")
        processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        if class_names:
            embeddings = encode_classes(model, processor, class_names).float().numpy()
            np.savez(folder / "classes.npz", names=np.array(list(class_names)), embeddings=embeddings)
        suffix = {"onnx": "onnx", "torch": "pt2"}[program_format]
        logging.disable(logging.WARNING)  # of which the exporters have many
        try:
            write_program(DenseSegmentation(model), folder / f"segmentation.{suffix}")
            write_program(PromptEncoder(model), folder / f"text_encoder.{suffix}")
        finally:
            logging.disable(logging.NOTSET)


def export_settings(model: SEDForSemanticSegmentation, processor: SEDProcessor) -> dict[str, Any]:
    """What a program in another language needs to know: how to prepare images and prompts."""
    image_processor = processor.image_processor
    normalizes = image_processor.do_normalize
    return {
        "image": {
            "size": dict(image_processor.size) if image_processor.do_resize else None,
            "input_size": dict(image_processor.input_size) if image_processor.do_input_resize else None,
            "resample": PILImageResampling(image_processor.resample).name.lower(),
            "rescale_factor": image_processor.rescale_factor if image_processor.do_rescale else 1.0,
            "mean": list(image_processor.image_mean) if normalizes else [0.0, 0.0, 0.0],
            "std": list(image_processor.image_std) if normalizes else [1.0, 1.0, 1.0],
        },
        "text": {
            "prompt_templates": processor.prompt_templates,
            "max_tokens": processor.tokenizer.model_max_length,
            "end_of_text": model.text_encoder.config.eos_token_id,
        },
    }
