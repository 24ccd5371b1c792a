"""A model and its processor, from a folder or by a name on the Hub; no code that lies beside them is run.

torch and transformers take seconds to import, which is left to [`load`], so that a command refuses a misspelt name at
once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils import short_error

if TYPE_CHECKING:
    import torch

    from .. import SEDConfig, SEDForSemanticSegmentation, SEDProcessor

TOY_MODEL = Path(__file__).parents[1] / "toy_model"
NAMES_SHOWN = 5


def check_model_source(source: str | Path | None) -> str:
    """The folder or the name on the Hub that is meant; for None and "toy" the folder of the bundled toy model.

    Raises:
        FileNotFoundError: It is neither a model folder nor can it be a name on the Hub. Nothing is downloaded to know.
    """
    if source is None or (source == "toy" and not Path(source).exists()):
        return str(TOY_MODEL)
    path = Path(source)
    if path.exists() and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{source}: expected a model folder, but it has no config.json; sed-hf convert makes one of a checkpoint"
        )
    if not path.exists() and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise FileNotFoundError(f"{source}: no such folder; expected a model folder or OWNER/NAME on the Hub")
    return str(source)


def load(
    source: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """A model in evaluation mode, and its processor.

    Unlike `from_pretrained`, this refuses weights that are missing or of another shape, which transformers would draw
    at random, weights that are not finite, and a processor that does not fit the model.

    Args:
        source: Model folder, or name on the Hub; by default the bundled toy model.
        device: A torch device, "auto" for a GPU if there is one, or `None` for the CPU.
        dtype: Of the weights; "auto" leaves them as they were saved.

    Raises:
        OSError: There is no such model, or a file is missing.
        ValueError: There is no such device, or the model is damaged, or needs code of its own.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import CLIPTokenizer

    from .. import SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor

    source = check_model_source(source)
    torch_device = find_device(device)
    templates = read_prompt_templates(source)
    try:
        model, report = SEDForSemanticSegmentation.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (SafetensorError, StrictDataclassError) as error:  # neither names the folder
        raise ValueError(f"{source}: {short_error(error)}") from error
    # These classes, and not those that the folder names, whose code the Auto classes would offer to run.
    image_processor, tokenizer = SEDImageProcessor.from_pretrained(source), CLIPTokenizer.from_pretrained(source)
    processor = SEDProcessor(image_processor, tokenizer, templates)
    check_weights(source, model, report)
    check_processor(source, processor, model.config)
    return model.to(torch_device), processor


def find_device(device: str | torch.device | None) -> torch.device:
    """The device that is meant.

    Raises:
        ValueError: torch does not find it here.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, is_available in available.items() if is_available)
    found = torch.device(device or "cpu")
    if not available.get(found.type, True):
        raise ValueError(f"device {device}: torch finds no such device here")
    return found


def read_prompt_templates(source: str) -> list[str] | None:
    """The prompt templates of a model's processor.

    Raises:
        OSError: A file is missing.
        ValueError: A file is damaged, or the model wants other classes than these, whose code is not run.
    """
    processor = read_json(source, "processor_config.json")
    read_json(source, "tokenizer.json")  # without which transformers would make up a vocabulary
    wanted = {
        "model_type": (read_json(source, "config.json").get("model_type"), "sed"),
        "tokenizer_class": (read_json(source, "tokenizer_config.json").get("tokenizer_class"), "CLIPTokenizer"),
        "processor_class": (processor.get("processor_class"), "SEDProcessor"),
        "image_processor_type": (processor.get("image_processor", {}).get("image_processor_type"), "SEDImageProcessor"),
    }
    for name, (found, expected) in wanted.items():
        if found != expected:
            raise ValueError(
                f"{source}: expected {name} {expected}, got {found!r:.40}; code that comes with a model is not run"
            )
    return processor.get("prompt_templates")


def read_json(source: str, name: str) -> dict[str, Any]:
    """The object in a JSON file of a model folder or Hub repository."""
    from transformers.utils import cached_file

    content = Path(str(cached_file(source, name))).read_bytes()
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{source}: {name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected an object in {name}, got {type(values).__name__}")
    return values


def check_weights(source: str, model: SEDForSemanticSegmentation, report: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model exactly, with finite numbers.

    Raises:
        ValueError: They do not; the message names them.
    """
    problems = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "of another shape": {name for name, *_ in report["mismatched_keys"]},
        "not finite": [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()],
    }
    for problem, names in problems.items():
        if names:
            raise ValueError(f"{source}: weights that are {problem}: {some(names)}")


def check_processor(source: str, processor: SEDProcessor, config: SEDConfig) -> None:
    """Refuse a processor whose prompts or tokens are others than the model was made for.

    Raises:
        ValueError: They are.
    """
    text_config: Any = config.text_config
    tokenizer = processor.tokenizer
    if processor.prompt_templates != config.prompt_templates:
        raise ValueError(f"{source}: processor_config.json and config.json have different prompt_templates")
    if tokenizer.eos_token_id != text_config.eos_token_id:
        raise ValueError(
            f"{source}: expected the tokenizer to end with token {text_config.eos_token_id}, as config.json says;"
            f" got {tokenizer.eos_token_id}"
        )
    limits = {
        "vocab_size": (max(tokenizer.get_vocab().values(), default=0) + 1, text_config.vocab_size),
        "max_position_embeddings": (tokenizer.model_max_length, text_config.max_position_embeddings),
    }
    for name, (needed, available) in limits.items():
        if needed > available:
            raise ValueError(f"{source}: the tokenizer needs {name} {needed}, but config.json has {available}")


def some(names: Iterable[str]) -> str:
    """The first names, and how many there are besides."""
    listed = sorted(names)
    more = f" and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return f"{', '.join(f'{name:.200}' for name in listed[:NAMES_SHOWN])}{more}"
