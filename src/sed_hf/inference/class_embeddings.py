"""Class embeddings on disk: a cache that all processes of a user share, and encoded vocabularies as files."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers.utils import logging

from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor, synonyms_of, validate_class_names
from ..terminal import progress_bar
from ..utils import short_error, write_file

logger = logging.get_logger(__name__)

CLASSES_PER_CHUNK = 16  # encoded between two steps of the progress bar
ENCODING_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"


def encode_classes(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    class_names: Sequence[str],
    cache: "ClassEmbeddingCache | None" = None,
    show_progress: bool = True,
    encoder: str | None = None,
) -> Tensor:
    """Return the embeddings (T, P, D) of T class names, for P prompt templates, in the model's dtype, on its device.

    Args:
        cache: Where to look first, and to keep what is new. `None` encodes everything.
        show_progress: Show a bar while there is something to encode.
        encoder: The [`text_encoder_sha256`] of model and processor, if it is known already.
    """
    class_names = validate_class_names(class_names)
    shape = (len(model.config.prompt_templates), model.config.projection_dim)
    embeddings = torch.empty(len(class_names), *shape, dtype=model.dtype)
    encoder = encoder or (text_encoder_sha256(model, processor) if cache else "")
    missing = []
    for index, name in enumerate(class_names):
        known = cache.load(encoder, name) if cache else None
        if known is None or known.shape != shape:
            missing.append(index)
        else:
            embeddings[index] = known
    chunks = [missing[start : start + CLASSES_PER_CHUNK] for start in range(0, len(missing), CLASSES_PER_CHUNK)]
    description, is_silent = f"Encoding {len(missing)} of {len(class_names)} classes", not (show_progress and missing)
    for chunk in progress_bar(chunks, desc=description, bar_format=ENCODING_BAR, disable=is_silent):
        inputs = processor(text=[class_names[index] for index in chunk], return_tensors="pt").to(model.device)
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            embeddings[chunk] = model.get_class_embeddings(**inputs).cpu()
        if cache:
            for index in chunk:
                cache.save(encoder, class_names[index], embeddings[index])
    return embeddings.to(model.device)


def text_encoder_sha256(model: SEDForSemanticSegmentation, processor: SEDProcessor) -> str:
    """Hash of all that a class embedding depends on beside the name: weights, templates and tokenizer."""
    text_config = model.text_encoder.config
    settings = {
        "weights": weights_sha256(model.text_encoder),
        "config": [text_config.num_attention_heads, text_config.hidden_act, text_config.layer_norm_eps],
        "end_of_text": text_config.eos_token_id,
        "max_length": processor.tokenizer.model_max_length,
        "prompt_templates": processor.prompt_templates,
        "tokenizer": hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    }
    layers = [module for module in model.text_encoder.modules() if hasattr(module, "merged_adapters")]  # of peft
    if layers:
        applied = ("active_adapters", "disable_adapters", "scaling")
        settings["adapters"] = [str([getattr(layer, name, None) for name in applied]) for layer in layers]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """Hash of a model's parameters and buffers."""
    digest = hashlib.sha256()
    state_dict = model.state_dict()
    if any(tensor.is_meta for tensor in state_dict.values()):
        state_dict = get_state_dict_offloaded_model(model)
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class ClassEmbeddingCache:
    """Class embeddings on disk, an encoded vocabulary of one name for each class, for all processes of a user.

    It only grows, as the Hub's own cache does. A disk that refuses costs the cache, not the result: that is a warning.

    Args:
        directory: Defaults to `sed_hf/class_embeddings` in the cache directory of Hugging Face (`HF_HOME`).
    """

    def __init__(self, directory: str | os.PathLike | None = None) -> None:
        self.directory = Path(constants.HF_HOME, "sed_hf", "class_embeddings") if directory is None else Path(directory)

    def load(self, encoder: str, class_name: str) -> Tensor | None:
        """The embedding (P, D) of a class by the encoder of this hash, or `None` if it is not there, or damaged."""
        path = self._path(encoder, class_name)
        if path.is_symlink() or not path.is_file():  # whoever opened a pipe would wait
            return None
        with suppress(OSError, ValueError):
            return load_class_embeddings(path, encoder)[1][0]
        return None

    def save(self, encoder: str, class_name: str, embedding: Tensor) -> None:
        """Keep the embedding (P, D) of a class."""
        path = self._path(encoder, class_name)
        try:
            save_class_embeddings(path, [class_name], embedding[None], encoder)
        except OSError as error:
            logger.warning_once(f"class embeddings are not cached in {self.directory}: {error.strerror}")

    def _path(self, encoder: str, class_name: str) -> Path:
        synonyms = "\n".join(synonyms_of(class_name))  # what no synonym holds, unlike a comma and a space
        return self.directory / encoder[:32] / f"{hashlib.sha256(synonyms.encode()).hexdigest()[:32]}.safetensors"


def save_class_embeddings(
    path: str | os.PathLike, class_names: Sequence[str], class_embeddings: Tensor, encoder: str
) -> None:
    """Save T names and embeddings (T, P, D), by the encoder of this [`text_encoder_sha256`], as a safetensors file."""
    metadata = {"class_names": json.dumps(list(class_names)), "text_encoder_sha256": encoder}
    write_file(path, save({"class_embeddings": class_embeddings.cpu().contiguous()}, metadata))


def load_class_embeddings(path: str | os.PathLike, encoder: str | None = None) -> tuple[list[str], Tensor]:
    """Load the T names and embeddings (T, P, D) of an encoded vocabulary; by any encoder, or by that of this hash."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            class_names = validate_class_names(json.loads(metadata["class_names"]))
            found = metadata["text_encoder_sha256"]
            class_embeddings = file.get_tensor("class_embeddings")
        if class_embeddings.ndim != 3 or len(class_names) != len(class_embeddings):
            raise ValueError(f"{len(class_names)} names for embeddings of {tuple(class_embeddings.shape)}")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected an encoded vocabulary of sed-hf: {short_error(error)}") from error
    if encoder not in (None, found):
        dtype = str(class_embeddings.dtype).removeprefix("torch.")
        raise ValueError(
            f"{path}: these class embeddings, in {dtype}, are of another model, dtype, tokenizer or list of prompt"
            " templates; encode the vocabulary again with this model and --dtype"
        )
    return class_names, class_embeddings
