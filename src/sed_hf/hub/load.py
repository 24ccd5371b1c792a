"""Load a model and its processor by name, from a folder or from the Hub, without running code that lies beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils import HUB_NAME, short_error, some
from .official import OFFICIAL, official_folder

if TYPE_CHECKING:  # torch and transformers take seconds to import, and a misspelt name is refused at once
    import torch

    from .. import SEDForSemanticSegmentation, SEDProcessor

TOY_MODEL = Path(__file__).parents[1] / "toy_model"
# The files of a model folder, and the classes that they must ask for: others would need code of their own.
EXPECTED_SETTINGS = {
    "config.json": {"model_type": "sed"},
    "tokenizer.json": {},  # without which transformers would make up a vocabulary
    "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"},
    "processor_config.json": {"processor_class": "SEDProcessor", "image_processor_type": "SEDImageProcessor"},
}


def check_model_source(source: str | Path | None) -> str:
    """The model folder or name that is meant, checked without a download; None and "toy" are the bundled model."""
    if source == "":  # of a shell variable that is not set
        raise FileNotFoundError("expected a model, got an empty name; toy is the bundled model")
    path = Path(source or TOY_MODEL)
    if source in ("toy", *OFFICIAL) and not path.exists():
        return str(TOY_MODEL if source == "toy" else source)
    if path.exists() and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{source}: expected a model folder, but it has no config.json; sed-hf convert makes one of a checkpoint"
        )
    if not path.exists() and not HUB_NAME.fullmatch(str(source)):
        raise FileNotFoundError(
            f"{source}: no such folder; expected a model folder, {', '.join(OFFICIAL)}, toy or OWNER/NAME on the Hub"
        )
    return str(path)


def load(
    source: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """A model in evaluation mode, and its processor.

    Unlike `from_pretrained`, this refuses weights that are missing, of another shape or not finite, a processor that
    does not fit the model, and a folder that needs code of its own.

    Args:
        source: Model folder, name of official weights (`sed-hf models` lists them), which are downloaded once, or name
            on the Hub; by default the bundled toy model.
        device: A torch device, "auto" for a GPU if there is one, or `None` for the CPU.
        dtype: Of the weights; "auto" is that of [`native_dtype`], `None` leaves them as they were saved.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import CLIPTokenizer

    from .. import SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor

    source = check_model_source(source)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, is_available in available.items() if is_available)
    device = torch.device(device or "cpu")
    if not available.get(device.type, True):
        raise ValueError(f"device {device}: torch finds no such device here")

    official = None if Path(source).exists() else OFFICIAL.get(source)
    if official:
        source = str(official_folder(official))
    settings = read_settings(source)
    try:
        model, report = SEDForSemanticSegmentation.from_pretrained(
            source,
            dtype=native_dtype(device) if dtype == "auto" else dtype or "auto",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (SafetensorError, StrictDataclassError) as error:  # neither names the folder
        raise ValueError(f"{source}: {short_error(error)}") from error
    # These classes, and not those that the folder names, whose code the Auto classes would offer to run.
    image_processor, tokenizer = SEDImageProcessor.from_pretrained(source), CLIPTokenizer.from_pretrained(source)
    processor = SEDProcessor(image_processor, tokenizer, settings.get("prompt_templates"))
    check_fit(source, model, processor, report)
    if official:
        model.config.early_rejection_topk, model.name_or_path = official.topk, official.name
    return model.to(device), processor


def native_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where a device computes with it natively, otherwise float32."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if kind == "cpu" else {}
        is_native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if is_native else torch.float32


def read_settings(source: str) -> dict[str, Any]:
    """The settings of a model's processor, after a look at all JSON files."""
    from transformers.utils import cached_file

    settings: dict[str, Any] = {}
    for file, classes in EXPECTED_SETTINGS.items():
        try:
            settings = dict(json.loads(Path(str(cached_file(source, file))).read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source}: {file} is not a JSON object: {error}") from error
        for name, expected in classes.items():
            found = {**settings, **settings.get("image_processor", {})}.get(name)
            if found != expected:
                raise ValueError(
                    f"{source}: expected {name} {expected}, got {found!r:.40}; code that comes with a model is not run"
                )
    return settings


def check_fit(source: str, model: SEDForSemanticSegmentation, processor: SEDProcessor, report: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model with finite numbers, and prompts or tokens that it was not made for."""
    config, tokenizer = model.config, processor.tokenizer
    text_config: Any = config.text_config
    fits = {
        "prompt_templates": processor.prompt_templates == config.prompt_templates,
        "eos_token_id": tokenizer.eos_token_id == text_config.eos_token_id,
        "vocab_size": max(tokenizer.get_vocab().values(), default=0) < text_config.vocab_size,
        "max_position_embeddings": tokenizer.model_max_length <= text_config.max_position_embeddings,
    }
    problems = {
        "weights that are missing": report["missing_keys"],
        "weights that are unexpected": report["unexpected_keys"],
        "weights that are of another shape": {name for name, *_ in report["mismatched_keys"]},
        "weights that are not finite": [name for name, x in model.state_dict().items() if not x.isfinite().all()],
        "settings that differ between processor and config.json": [name for name, fit in fits.items() if not fit],
    }
    for problem, names in problems.items():
        if names:
            raise ValueError(f"{source}: {problem}: {some(names)}")
