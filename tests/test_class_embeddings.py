"""Class embeddings on disk: the cache that processes share, and encoded vocabularies as files."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_models import small_model, small_processor

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.inference.class_embeddings import (
    CLASSES_PER_CHUNK,
    ClassEmbeddingCache,
    encode_classes,
    load_class_embeddings,
    save_class_embeddings,
    text_encoder_sha256,
)

NAMES = ["cat", "dog, puppy", "grass"]
EMBEDDING = torch.randn(80, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cache(tmp_path: Path) -> ClassEmbeddingCache:
    return ClassEmbeddingCache(tmp_path / "cache")


def entry_of(cache: ClassEmbeddingCache) -> Path:
    """The file of a class that is saved."""
    cache.save("encoder", "cat", EMBEDDING)
    (path,) = cache.directory.glob("*/*.safetensors")
    return path


class TestEncoding:
    def test_it_equals_the_model(self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor) -> None:
        names = [f"thing {number}" for number in range(CLASSES_PER_CHUNK + 1)]
        with torch.no_grad():
            expected = tiny_model.get_class_embeddings(**tiny_processor(text=names, return_tensors="pt"))
        with torch.autocast("cpu", torch.bfloat16):  # does not pass into what is cached
            actual = encode_classes(tiny_model, tiny_processor, names, show_progress=False)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)

    def test_no_class_is_encoded_twice(self, cache: ClassEmbeddingCache, capsys: pytest.CaptureFixture[str]) -> None:
        model, processor = small_model(), small_processor()
        for names, message in [
            (NAMES, "Encoding 3 of 3 classes"),
            (["sky", *reversed(NAMES)], "Encoding 1 of 4 classes"),
            (["Dog,  Puppy"], ""),  # one class for the processor
        ]:
            found = encode_classes(model, processor, names, cache)
            assert capsys.readouterr().err.strip().partition(":")[0] == message
            torch.testing.assert_close(found, encode_classes(model, processor, names, None, False), rtol=0, atol=1e-6)

    def test_what_an_embedding_depends_on_besides_the_name(
        self, make_tiny_model: Any, tiny_processor: SEDProcessor, tmp_path: Path
    ) -> None:
        model, tokenizer = make_tiny_model(), tiny_processor.tokenizer
        encoder = text_encoder_sha256(model, tiny_processor)
        with torch.no_grad():
            model.decoder.head.bias += 1  # which the text encoder does not have
            assert text_encoder_sha256(model, tiny_processor) == encoder
            model.text_encoder.text_projection.weight[0, 0] += 1e-6
        other_templates = SEDProcessor(tiny_processor.image_processor, tokenizer, ["a {}."] * 80)
        tokenizer.save_pretrained(tmp_path)
        other_tokenizer = type(tokenizer).from_pretrained(tmp_path)
        other_tokenizer.add_tokens(["platypus"])
        hashes = {
            encoder,
            text_encoder_sha256(model, tiny_processor),
            text_encoder_sha256(make_tiny_model().bfloat16(), tiny_processor),
            text_encoder_sha256(make_tiny_model(), other_templates),
            text_encoder_sha256(make_tiny_model(), SEDProcessor(tiny_processor.image_processor, other_tokenizer)),
        }
        assert len(hashes) == 5


class TestCache:
    def test_a_damaged_entry_is_missing_and_written_again(self, cache: ClassEmbeddingCache) -> None:
        path = entry_of(cache)
        path.write_bytes(path.read_bytes()[:-7])
        assert cache.load("encoder", "cat") is None
        assert entry_of(cache) == path
        assert cache.load("encoder", "cat") is not None

    @pytest.mark.parametrize("planted", ["pipe", "link"])
    def test_what_is_planted_at_the_name_of_an_entry_is_not_opened(
        self, cache: ClassEmbeddingCache, tmp_path: Path, planted: str
    ) -> None:
        path, foreign = entry_of(cache), tmp_path / "foreign"
        path.rename(foreign)
        os.mkfifo(path) if planted == "pipe" else path.symlink_to(foreign)
        before = foreign.stat()
        assert cache.load("encoder", "cat") is None
        cache.save("encoder", "cat", EMBEDDING)
        assert cache.load("encoder", "cat") is not None
        assert foreign.stat() == before


class TestVocabularyFiles:
    def test_one_of_another_text_encoder_is_refused(self, tmp_path: Path) -> None:
        save_class_embeddings(tmp_path / "file.safetensors", NAMES, torch.randn(3, 80, 64), "another")
        assert load_class_embeddings(tmp_path / "file.safetensors")[0] == NAMES
        with pytest.raises(ValueError, match="in float32, are of another model, dtype, tokenizer"):
            load_class_embeddings(tmp_path / "file.safetensors", "encoder")

    @pytest.mark.parametrize("names", [None, "5", '["sky", "sky", "dog"]', '["sky"]'])
    def test_names_that_do_not_fit_are_refused(self, tmp_path: Path, names: str | None) -> None:
        metadata = {"text_encoder_sha256": "encoder"} | ({} if names is None else {"class_names": names})
        save_file({"class_embeddings": torch.zeros(3, 2, 4)}, tmp_path / "file.safetensors", metadata)
        with pytest.raises(ValueError, match=r"file\.safetensors: expected an encoded vocabulary"):
            load_class_embeddings(tmp_path / "file.safetensors")
