"""Models built from configurations and loaded from folders that may be damaged, or not what they seem."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from .. import SEDConfig, SEDForSemanticSegmentation, SEDProcessor
from ..chunking_sed import is_out_of_memory
from ..utils import require_file, short_error

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
NAMES_SHOWN = 5


def build_model(config: SEDConfig) -> SEDForSemanticSegmentation:
    """A model with fresh weights.

    Raises:
        ValueError: No model can be built of this configuration.
    """
    try:
        return SEDForSemanticSegmentation(config)
    except Exception as error:  # timm, transformers and torch raise whatever happens to them
        raise ValueError(f"config: no model can be built of it: {short_error(error)}") from error


def load_model_and_processor(
    source: str, dtype: torch.dtype | Literal["auto"] = "auto"
) -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """Load a model and its processor; no code that lies beside them is run.

    Unlike `from_pretrained`, this refuses weights that are missing, which transformers would draw at random.

    Args:
        source: Model folder, or name on the Hub.
        dtype: Of the weights; "auto" leaves them as they were saved.

    Raises:
        MemoryError: It does not fit into memory.
        OSError: There is no such model on the Hub.
        ValueError: Something is damaged, missing, left over or not finite, or processor and model do not fit.
    """
    is_folder = Path(source).is_dir()
    try:
        if is_folder:
            check_weights_fit(Path(source))
        model, report = SEDForSemanticSegmentation.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        processor = SEDProcessor.from_pretrained(source)
        for problem in ("missing_keys", "unexpected_keys"):
            if report[problem]:
                raise ValueError(f"weights: {problem.replace('_', ' ')}: {some(report[problem])}")
        check_finite(model.state_dict())
        check_processor_fits(processor, model.config)
    except Exception as error:  # transformers, tokenizers and safetensors raise whatever happens to them
        if isinstance(error, OSError) and not is_folder:
            raise  # the Hub's own messages name the model, and what to do
        if is_out_of_memory(error):
            raise MemoryError(f"{source}: out of memory while the model was loaded: {short_error(error)}") from error
        raise ValueError(
            f"{source}: expected a model of sed-hf, and this is none, or damaged: {short_error(error)}"
        ) from error
    return model, processor


def check_weights_fit(folder: Path) -> None:
    """Refuse a folder by its configuration and the headers of its weights, before memory is taken for them.

    Raises:
        ValueError: The weights have other names or shapes than the configuration asks for, or lie elsewhere.
        Exception: A file is damaged.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_model(read_config(folder)).state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for shard in weight_files(folder):
        with safe_open(shard, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    problems = {
        "missing": expected.keys() - found.keys(),
        "left over": found.keys() - expected.keys(),
        "of another shape": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    if any(problems.values()):
        lists = "; ".join(f"{kind}: {some(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"the weights do not fit config.json ({lists})")


def read_config(folder: Path) -> SEDConfig:
    """The configuration of a model folder."""
    values = json.loads(require_file(folder / "config.json").read_bytes())
    if not isinstance(values, dict) or values.get("model_type") != SEDConfig.model_type:
        raise ValueError(f"config.json: expected an object with model_type {SEDConfig.model_type!r}")
    return SEDConfig.from_dict(values)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, each directly in it.

    Raises:
        OSError, ValueError: There are none, or the index names others.
    """
    if (folder / WEIGHTS_FILE).exists():
        return [require_file(folder / WEIGHTS_FILE)]
    index = json.loads(require_file(folder / INDEX_FILE).read_bytes())
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{INDEX_FILE}: expected the file of each weight as 'weight_map'")
    names = sorted(set(weight_map.values()))
    if strangers := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ValueError(f"{INDEX_FILE}: expected names of .safetensors files beside it, got {some(strangers)}")
    return [require_file(folder / name) for name in names]


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are not numbers, or infinite.

    Raises:
        ValueError: Some are; the message names them.
    """
    names = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if names:
        raise ValueError(f"weights that are not finite: {some(names)}")


def check_processor_fits(processor: SEDProcessor, config: SEDConfig) -> None:
    """Refuse a processor that makes tokens which the model does not know.

    Raises:
        ValueError: It does.
    """
    tokenizer, text_config = processor.tokenizer, config.text_config
    pairs: dict[str, tuple[Any, Any]] = {
        "prompt templates": (processor.prompt_templates, config.prompt_templates),
        "end-of-text token": (tokenizer.eos_token_id, text_config.eos_token_id),  # type: ignore[union-attr]
    }
    for what, (ours, models) in pairs.items():
        if ours != models:
            raise ValueError(f"{what} of the processor and of config.json differ: {ours!r:.80} and {models!r:.80}")
    largest = max(tokenizer.get_vocab().values(), default=0)
    limits = {
        "tokens": (largest, text_config.vocab_size - 1),  # type: ignore[union-attr]
        "model_max_length": (tokenizer.model_max_length, text_config.max_position_embeddings),  # type: ignore[union-attr]
    }
    for what, (ours, models) in limits.items():
        if ours > models:
            raise ValueError(f"{what} of the tokenizer: {ours}, more than the {models} of config.json")


def some(names: Iterable[str]) -> str:
    """The first names, and how many there are besides."""
    listed = sorted(names)
    more = f" and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return f"{', '.join(f'{name:.200}' for name in listed[:NAMES_SHOWN])}{more}"
