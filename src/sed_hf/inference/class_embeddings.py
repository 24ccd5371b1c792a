"""Class embeddings that outlive the process: a cache on disk, and vocabularies as files.

Text is encoded once: [`encode_classes`] looks each class up in a cache that processes share, and encodes the others.
An encoded vocabulary can also be saved to a file, names included, and be loaded where the text encoder is not wanted.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor, synonyms_of, validate_class_names
from ..utils import atomic_path, require_file, short_error
from .weights import tensor_bytes, weights_sha256

logger = logging.get_logger(__name__)

CLASSES_PER_CHUNK = 16  # classes encoded between two steps of the progress bar, and saved together
ENCODING_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
DEFAULT_MAX_BYTES = 5 * 2**30
SUFFIX = ".safetensors"
EMBEDDING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def encode_classes(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    class_names: Sequence[str],
    cache: "ClassEmbeddingCache | None" = None,
    show_progress: bool = True,
) -> Tensor:
    """Encode class names, each once in a cache's life.

    Args:
        model: On the device where it is to run.
        processor: Its processor.
        class_names: One string for each of T classes; synonyms are separated by ", ".
        cache: Where to look first, and to keep what is new. `None` encodes everything.
        show_progress: Show a bar while there is something to encode.

    Returns:
        (T, P, D) of length 1, in the model's dtype and on its device.

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
    for chunk in tqdm(chunks, desc=description, bar_format=ENCODING_BAR, disable=not (show_progress and chunks)):
        embeddings[chunk] = encode_chunk(model, processor, [class_names[index] for index in chunk])
        if cache is not None:
            keep_together(cache, encoder, [(class_names[index], embeddings[index]) for index in chunk])
    if cache is not None and missing:
        cache.trim()
    return embeddings.to(model.device)


def keep_together(cache: "ClassEmbeddingCache", encoder: str, encoded: Sequence[tuple[str, Tensor]]) -> None:
    """Keep names and embeddings (P, D) that were encoded together: all of them, even if Ctrl-C comes meanwhile.

    Encoded without the others, the rest would differ in its last bits, and the next run from an undisturbed one.
    """
    try:
        for class_name, embedding in encoded:
            cache.save(encoder, class_name, embedding)
    except KeyboardInterrupt:
        for class_name, embedding in encoded:
            cache.save(encoder, class_name, embedding)
        raise


@torch.no_grad()
def encode_chunk(model: SEDForSemanticSegmentation, processor: SEDProcessor, class_names: list[str]) -> Tensor:
    """Embeddings (t, P, D) of a few classes, on the CPU."""
    return model.get_class_embeddings(**processor(text=class_names, return_tensors="pt").to(model.device)).cpu()


def text_encoder_sha256(model: SEDForSemanticSegmentation, processor: SEDProcessor) -> str:
    """A hash of all that a class embedding depends on beside the name: weights, templates and tokenizer."""
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


class ClassEmbeddingCache:
    """Class embeddings on disk, one file for each class, for all processes of a user.

    A file is written under a temporary name and then renamed, so that no process reads half of one; two that encode the
    same class write the same. A file holds a hash of what is in it: one that is damaged counts as missing and is
    written anew. Problems of the disk cost the cache, not the result: they are a warning.

    Args:
        directory: Defaults to `sed_hf/class_embeddings` in the cache directory of Hugging Face (`HF_HOME`).
        max_bytes: What [`trim`] leaves; the classes that were used longest ago go first.
    """

    def __init__(self, directory: str | os.PathLike | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.directory = Path(constants.HF_HOME, "sed_hf", "class_embeddings") if directory is None else Path(directory)
        self.max_bytes = max_bytes
        self.has_warned = False

    def load(self, encoder: str, class_name: str) -> Tensor | None:
        """The embedding (P, D) of a class by a text encoder, known by its hash; `None` if it is not there."""
        path = self._path(encoder, class_name)
        try:
            with safe_open(require_file(path), framework="pt") as file:
                embedding, metadata = file.get_tensor("class_embedding"), file.metadata() or {}
            digest = hashlib.sha256(tensor_bytes(embedding)).hexdigest()
            if metadata.get("sha256") != digest or not embedding.is_floating_point():
                return None
        except (OSError, SafetensorError):
            return None
        with suppress(OSError):  # a cache that cannot be written can be read
            os.utime(path)  # the time of the last use
        return embedding

    def save(self, encoder: str, class_name: str, embedding: Tensor) -> None:
        """Keep the embedding (P, D) of a class."""
        path = self._path(encoder, class_name)
        metadata = {"class_name": class_name, "sha256": hashlib.sha256(tensor_bytes(embedding)).hexdigest()}
        content = save({"class_embedding": embedding.contiguous()}, metadata)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            self._warn(f"class embeddings are not cached in {self.directory}: {error}")

    def trim(self) -> None:
        """Remove what was used longest ago, until at most `max_bytes` are left."""
        files = sorted(self._files(), key=lambda entry: entry[1])
        total = sum(size for _, _, size in files)
        for path, _, size in files:
            if total <= self.max_bytes:
                return
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._warn(f"class embeddings are not removed from {self.directory}: {error}")
                return
            total -= size

    def clear(self) -> int:
        """Remove everything, and return how many bytes that was."""
        total = 0
        for path, _, size in list(self._files()):
            path.unlink(missing_ok=True)
            total += size
        return total

    def size(self) -> tuple[int, int]:
        """The number of classes, and of bytes."""
        sizes = [size for _, _, size in self._files()]
        return len(sizes), sum(sizes)

    def _warn(self, text: str) -> None:
        """Warn once of a disk that refuses."""
        if not self.has_warned:
            logger.warning(text)
            self.has_warned = True

    def _path(self, encoder: str, class_name: str) -> Path:
        synonyms = "\n".join(synonyms_of(class_name))  # what no synonym holds, unlike a comma and a blank
        return self.directory / encoder[:32] / f"{hashlib.sha256(synonyms.encode()).hexdigest()[:32]}{SUFFIX}"

    def _files(self) -> Iterator[tuple[Path, float, int]]:
        """Each file with the time of its last use and its size in bytes."""
        for path in self.directory.glob(f"*/*{SUFFIX}"):
            try:
                status = path.stat()
            except OSError:  # another process has removed it
                continue
            yield path, status.st_mtime, status.st_size


def save_class_embeddings(
    path: str | os.PathLike, class_names: Sequence[str], class_embeddings: Tensor, encoder: str
) -> None:
    """Save an encoded vocabulary as a safetensors file.

    Args:
        path: File to write; `.safetensors`.
        class_names: T names.
        class_embeddings: (T, P, D).
        encoder: Of [`text_encoder_sha256`].
    """
    metadata = {"class_names": json.dumps(list(class_names)), "text_encoder_sha256": encoder}
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(save({"class_embeddings": class_embeddings.cpu().contiguous()}, metadata))


def load_class_embeddings(path: str | os.PathLike, encoder: str | None = None) -> tuple[list[str], Tensor]:
    """Load an encoded vocabulary: T names, and embeddings (T, P, D).

    Args:
        path: A file of [`save_class_embeddings`].
        encoder: Hash of the text encoder that it must be of; `None` takes any.

    Raises:
        OSError: There is no such file.
        ValueError: The file is no encoded vocabulary, is damaged, or is of another text encoder.
    """
    try:
        with safe_open(require_file(path), framework="pt") as file:
            metadata = file.metadata() or {}
            class_names = validate_class_names(json.loads(metadata["class_names"]))
            found = metadata["text_encoder_sha256"]
            class_embeddings = file.get_tensor("class_embeddings")
        if class_embeddings.ndim != 3 or len(class_names) != len(class_embeddings):
            raise ValueError(f"{len(class_names)} names for embeddings of {tuple(class_embeddings.shape)}")
        if class_embeddings.dtype not in EMBEDDING_DTYPES or not class_embeddings.isfinite().all():
            raise ValueError(f"expected finite numbers as embeddings, got {class_embeddings.dtype}")
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected an encoded vocabulary of sed-hf, which it is not: {short_error(error)}"
        ) from error
    if encoder is not None and found != encoder:
        raise ValueError(
            f"{path}: these class embeddings are of another model, tokenizer or list of prompt templates; encode the"
            " vocabulary again with this one"
        )
    return class_names, class_embeddings
