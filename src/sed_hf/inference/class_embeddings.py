"""Class embeddings on disk: a cache that all processes of a user share, and vocabularies as files.

Each class name is encoded once: [`encode_classes`] looks it up in the cache before it encodes it. An encoded vocabulary
can also be saved to a file, names included, for machines and programs without the text encoder.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
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
from ..utils import atomic_path, short_error

logger = logging.get_logger(__name__)

CLASSES_PER_CHUNK = 16  # classes encoded between two steps of the progress bar
ENCODING_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
DEFAULT_MAX_BYTES = 5 * 2**30


def encode_classes(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    class_names: Sequence[str],
    cache: "ClassEmbeddingCache | None" = None,
    show_progress: bool = True,
) -> Tensor:
    """Return the embeddings of class names, from the cache where they are in it.

    Args:
        model: On the device where it is to run.
        processor: Its processor.
        class_names: One string for each of T classes; synonyms are separated by ", ".
        cache: Where to look first, and to keep what is new. `None` encodes everything.
        show_progress: Show a bar while there is something to encode.

    Returns:
        (T, P, D) of length 1, for P prompt templates, in the model's dtype and on its device.

    Raises:
        TypeError, ValueError: As [`SEDProcessor`] for `text`.
    """
    class_names = validate_class_names(class_names)
    shape = (len(model.config.prompt_templates), model.config.projection_dim)
    embeddings = torch.empty(len(class_names), *shape, dtype=model.dtype)
    encoder = text_encoder_sha256(model, processor) if cache is not None else ""
    missing = []
    for index, name in enumerate(class_names):
        known = None if cache is None else cache.load(encoder, name)
        if known is None or known.shape != shape:
            missing.append(index)
        else:
            embeddings[index] = known
    chunks = [missing[start : start + CLASSES_PER_CHUNK] for start in range(0, len(missing), CLASSES_PER_CHUNK)]
    description = f"Encoding {len(missing)} classes"
    is_silent = not (show_progress and missing)
    for chunk in progress_bar(chunks, desc=description, bar_format=ENCODING_BAR, disable=is_silent):
        inputs = processor(text=[class_names[index] for index in chunk], return_tensors="pt").to(model.device)
        with torch.no_grad():
            embeddings[chunk] = model.get_class_embeddings(**inputs).cpu()
        if cache is not None:
            for index in chunk:
                cache.save(encoder, class_names[index], embeddings[index])
    if cache is not None and missing:
        cache.trim()
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
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """Hash of a model's parameters and buffers."""
    digest = hashlib.sha256()
    state_dict = model.state_dict()
    if any(tensor.is_meta for tensor in state_dict.values()):
        state_dict = get_state_dict_offloaded_model(model)
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


class ClassEmbeddingCache:
    """Class embeddings on disk, one file for each class, for all processes of a user.

    Two processes that encode the same class write the same file. It holds a hash of its content: one that is damaged
    counts as missing and is written again. A disk that refuses costs the cache, not the result: that is a warning.

    Args:
        directory: Defaults to `sed_hf/class_embeddings` in the cache directory of Hugging Face (`HF_HOME`).
        max_bytes: What [`trim`] leaves; the classes that were used longest ago go first.
    """

    def __init__(self, directory: str | os.PathLike | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.directory = Path(constants.HF_HOME, "sed_hf", "class_embeddings") if directory is None else Path(directory)
        self.max_bytes = max_bytes

    def load(self, encoder: str, class_name: str) -> Tensor | None:
        """Return the embedding (P, D) of a class, or `None` if it is not there.

        Args:
            encoder: Hash of [`text_encoder_sha256`].
            class_name: With its synonyms.
        """
        path = self._path(encoder, class_name)
        if _regular_file(path) is None:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                embedding, metadata = file.get_tensor("class_embedding"), file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        if metadata.get("sha256") != hashlib.sha256(_bytes_of(embedding)).hexdigest():
            return None
        with suppress(OSError):  # a cache that cannot be written can be read
            os.utime(path)  # the time of the last use
        return embedding

    def save(self, encoder: str, class_name: str, embedding: Tensor) -> None:
        """Keep the embedding (P, D) of a class."""
        path = self._path(encoder, class_name)
        metadata = {"class_name": class_name, "sha256": hashlib.sha256(_bytes_of(embedding)).hexdigest()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(save({"class_embedding": embedding.contiguous()}, metadata))
        except OSError as error:
            logger.warning_once(f"class embeddings are not cached in {self.directory}: {error.strerror}")

    def trim(self) -> None:
        """Remove what was used longest ago, until at most `max_bytes` are left."""
        files = sorted(self._files(), key=lambda entry: entry[1].st_mtime)
        total = sum(status.st_size for _, status in files)
        for path, status in files:
            if total <= self.max_bytes:
                return
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning_once(f"class embeddings are not removed from {self.directory}: {error.strerror}")
                return
            total -= status.st_size

    def clear(self) -> None:
        """Remove everything."""
        for path, _ in list(self._files()):
            path.unlink(missing_ok=True)

    def size(self) -> tuple[int, int]:
        """Return the number of classes, and of bytes."""
        sizes = [status.st_size for _, status in self._files()]
        return len(sizes), sum(sizes)

    def _path(self, encoder: str, class_name: str) -> Path:
        synonyms = "\n".join(synonyms_of(class_name))  # what no synonym holds, unlike a comma and a space
        return self.directory / encoder[:32] / f"{hashlib.sha256(synonyms.encode()).hexdigest()[:32]}.safetensors"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Each file of the cache with its status; what links bring from elsewhere, and other files, are not its own."""
        for folder in self.directory.glob("*/"):
            for path in () if folder.is_symlink() else folder.iterdir():
                if re.fullmatch(r"[0-9a-f]{32}\.safetensors", path.name) and (status := _regular_file(path)):
                    yield path, status


def save_class_embeddings(
    path: str | os.PathLike, class_names: Sequence[str], class_embeddings: Tensor, encoder: str
) -> None:
    """Save an encoded vocabulary as a safetensors file.

    Args:
        path: File to write; `.safetensors`.
        class_names: T names.
        class_embeddings: (T, P, D).
        encoder: Hash of [`text_encoder_sha256`].
    """
    metadata = {"class_names": json.dumps(list(class_names)), "text_encoder_sha256": encoder}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({"class_embeddings": class_embeddings.cpu().contiguous()}, metadata))


def load_class_embeddings(path: str | os.PathLike, encoder: str | None = None) -> tuple[list[str], Tensor]:
    """Load an encoded vocabulary: T names, and embeddings (T, P, D).

    Args:
        path: A file of [`save_class_embeddings`].
        encoder: Hash of the text encoder that it must be of; `None` takes any.

    Raises:
        OSError: There is no such file.
        ValueError: The file is not an encoded vocabulary, is damaged, or is of another text encoder.
    """
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
    if encoder is not None and found != encoder:
        raise ValueError(
            f"{path}: these class embeddings are of another model, tokenizer or list of prompt templates; encode the"
            " vocabulary again with this one"
        )
    return class_names, class_embeddings


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's elements; of one on the CPU, no copy."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _regular_file(path: Path) -> os.stat_result | None:
    """The status of a file; `None` if there is none, or a link, a folder or a pipe."""
    with suppress(OSError):
        status = path.lstat()
        return status if stat.S_ISREG(status.st_mode) else None
    return None
