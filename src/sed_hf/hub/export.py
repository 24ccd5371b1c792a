"""Programs that run without this package, and without Python: of `torch.export`, or ONNX.

A model becomes two: one segments images with class embeddings as an input (dense decoding; the numbers of images and
classes and the size stay open), the other encodes prompts. What else their users need to know (sizes, normalisation,
prompt templates) is written as JSON, the tokenizer as `tokenizer.json`; see docs/export.md.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from transformers.image_utils import PILImageResampling, SizeDict

from ..image_processing_sed import SEDImageProcessor
from ..inference.class_embeddings import encode_classes
from ..modeling_sed import ENCODER_STRIDE, SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from ..utils import atomic_path
from .save import check_new_folder

OPSET = 20  # the first with a GELU of its own


class DenseSegmentation(nn.Module):
    """Images and class embeddings to logits, with every class decoded.

    torch treats a length of 1 as a special case when it traces: its programs want at least 2 classes and 64×64 pixels,
    or 128×128 if class attention pools 2×2. ONNX takes any.
    """

    output_name = "logits"

    def __init__(self, model: SEDForSemanticSegmentation) -> None:
        super().__init__()
        self.model = model
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
        """Logits (B, T, H / 4, W / 4) of images (B, 3, H, W) and class embeddings (T, P, D)."""
        return self.model(pixel_values, class_embeddings=class_embeddings, early_rejection_topk=0).logits


class PromptEncoder(nn.Module):
    """Prompts to embeddings, one by one: with nothing shared, which would depend on the tokens."""

    output_name = "prompt_embeddings"

    def __init__(self, model: SEDForSemanticSegmentation) -> None:
        super().__init__()
        self.text_encoder = model.text_encoder
        self.end_of_text = model.text_encoder.config.eos_token_id
        max_tokens = model.text_encoder.config.max_position_embeddings
        self.example = {"input_ids": torch.full((3, min(5, max_tokens)), self.end_of_text)}
        self.open_sizes = {"input_ids": {0: Dim("prompts"), 1: Dim("tokens", max=max_tokens)}}

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings (N, D), of length 1, of tokens (N, L); what follows the end-of-text token is padding."""
        hidden_states = self.text_encoder(input_ids=input_ids).last_hidden_state
        ends = (input_ids == self.end_of_text).int().argmax(1)
        index = ends[:, None, None].expand(-1, -1, hidden_states.shape[-1])
        last = hidden_states.gather(1, index).squeeze(1)
        return F.normalize(self.text_encoder.text_projection(last), dim=-1)


Program = DenseSegmentation | PromptEncoder


# Programs ------------------------------------------------------------------------------------------------------------


class PoolingAsConvolution(TorchFunctionMode):
    """Traces average pooling as a convolution.

    avg_pool2d of torch 2.11 ties a program to images as odd or even as the example.
    """

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call a function of torch, or the convolution in its place."""
        function = average_by_convolution if function is F.avg_pool2d else function
        return function(*args, **(kwargs or {}))


def average_by_convolution(features: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """The mean of each window of features (N, C, H, W), as `avg_pool2d` gives it."""
    channels, kernel_size = features.shape[1], (int(kernel_size[0]), int(kernel_size[1]))
    weight = features.new_full((channels, 1, *kernel_size), 1 / math.prod(kernel_size))
    return F.conv2d(features, weight, stride=kernel_size, groups=channels)


@torch.no_grad()
def export_program(module: Program) -> ExportedProgram:
    """A program of `torch.export`, for `torch.export.save`, or to be called as `program.module()`."""
    with PoolingAsConvolution():
        return torch.export.export(module.eval(), tuple(module.example.values()), dynamic_shapes=module.open_sizes)


@torch.no_grad()
def save_onnx(module: Program, path: Path) -> None:
    """Save an ONNX file with its weights."""
    with quiet("onnxscript", "onnx_ir", "torch.onnx"):
        program = torch.onnx.export(
            export_program(module),
            dynamic_shapes=module.open_sizes,  # for the names of the axes
            dynamo=True,
            opset_version=OPSET,
            input_names=list(module.example),
            output_names=[module.output_name],
            verbose=False,
        )
    assert program is not None
    program.save(path)


def quantize_weights(path: Path) -> None:
    """Turn the weights of all matrix products in an ONNX file into 8-bit integers, with a scale for each channel.

    Convolutions stay as they are: their integer kernels in onnxruntime are slower than those for float32.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with atomic_path(path) as quantized, quiet("root"):
        quantize_dynamic(
            path,
            quantized,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,  # a bit less, since processors without VNNI add two products in 16 bits
            weight_type=QuantType.QInt8,
        )


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keep loggers from reporting anything less than errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# Folders -------------------------------------------------------------------------------------------------------------


def export_model(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    directory: Path,
    program_format: Literal["onnx", "torch"] = "onnx",
    class_names: Sequence[str] = (),
    int8: bool = False,
) -> None:
    """Write both programs, and what is needed to use them, to a folder, which appears when it is complete.

    Args:
        model: The model, on the CPU.
        processor: Its processor.
        directory: Folder to make; it may exist if it is empty.
        program_format: "onnx" writes `segmentation.onnx` and `text_encoder.onnx`; "torch" `.pt2` files.
        class_names: Classes to encode now, to `classes.npz`: `names` (T,) and `embeddings` (T, P, D).
        int8: Hold the weights of matrix products in 8 bits; ONNX only.

    Raises:
        FileExistsError: `directory` exists and is not an empty folder.
        ValueError: `int8` for another format than ONNX.
    """
    check_new_folder(directory)
    if int8 and program_format != "onnx":
        raise ValueError(f"int8: expected with the format onnx, got {program_format!r}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(directory) as folder:
        folder.mkdir()
        settings = json.dumps(export_settings(model, processor), indent=2, ensure_ascii=False)
        (folder / "settings.json").write_text(settings + "\n", encoding="utf-8")
        processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        if class_names:
            embeddings = encode_classes(model, processor, class_names).float().numpy()
            np.savez(folder / "classes.npz", names=np.array(list(class_names)), embeddings=embeddings)
        programs: dict[str, Program] = {"segmentation": DenseSegmentation(model), "text_encoder": PromptEncoder(model)}
        for name, module in programs.items():
            if program_format == "torch":
                torch.export.save(export_program(module), folder / f"{name}.pt2")
                continue
            save_onnx(module, folder / f"{name}.onnx")
            if int8:
                quantize_weights(folder / f"{name}.onnx")


def export_settings(model: SEDForSemanticSegmentation, processor: SEDProcessor) -> dict[str, Any]:
    """What a program in another language needs to know: how to prepare images and prompts."""
    image_processor: SEDImageProcessor = processor.image_processor
    normalizes = image_processor.do_normalize
    return {
        "image": {
            "size": sizes(image_processor.size) if image_processor.do_resize else None,
            "input_size": sizes(image_processor.input_size) if image_processor.do_input_resize else None,
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


def sizes(size: SizeDict | Mapping[str, int]) -> dict[str, int]:
    """The edges that a size of an image processor states."""
    return {name: length for name, length in dict(size).items() if length is not None}
