"""Class embeddings on disk: the cache that processes share, and encoded vocabularies as files."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

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


@pytest.fixture
def encoder(tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor) -> str:
    return text_encoder_sha256(tiny_model, tiny_processor)


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
        actual = encode_classes(tiny_model, tiny_processor, names, show_progress=False)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)

    def test_no_class_is_encoded_twice(
        self,
        tiny_model: SEDForSemanticSegmentation,
        tiny_processor: SEDProcessor,
        cache: ClassEmbeddingCache,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        first = encode_classes(tiny_model, tiny_processor, NAMES, cache)
        assert "Encoding 3 of 3 classes" in capsys.readouterr().err
        again = encode_classes(tiny_model, tiny_processor, ["sky", *reversed(NAMES)], cache)
        assert "Encoding 1 of 4 classes" in capsys.readouterr().err
        encode_classes(tiny_model, tiny_processor, ["Dog,  Puppy"], cache)  # one class for the processor
        assert capsys.readouterr().err == ""
        assert torch.equal(again[1:], first.flip(0))

    def test_what_an_embedding_depends_on_besides_the_name(
        self, make_tiny_model: Any, tiny_processor: SEDProcessor, encoder: str, tmp_path: Path
    ) -> None:
        model, tokenizer = make_tiny_model(), tiny_processor.tokenizer
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
    @pytest.mark.parametrize("length", [0, -7])
    def test_a_damaged_entry_is_missing_and_written_again(self, cache: ClassEmbeddingCache, length: int) -> None:
        path = entry_of(cache)
        path.write_bytes(path.read_bytes()[:length])
        assert cache.load("encoder", "cat") is None
        assert entry_of(cache) == path
        assert cache.load("encoder", "cat") is not None

    @pytest.mark.parametrize("planted", ["pipe", "link"])
    def test_what_is_planted_at_the_name_of_an_entry_is_not_opened(
        self, cache: ClassEmbeddingCache, tmp_path: Path, planted: str
    ) -> None:
        path = entry_of(cache)
        if planted == "pipe":
            path.unlink()
            os.mkfifo(path)  # whoever opened it would wait
        else:
            path.rename(tmp_path / "foreign")
            path.symlink_to(tmp_path / "foreign")
        assert cache.load("encoder", "cat") is None
        cache.clear()
        assert os.path.lexists(path)
        cache.save("encoder", "cat", EMBEDDING)
        assert cache.load("encoder", "cat") is not None
        assert planted == "pipe" or (tmp_path / "foreign").stat().st_size == path.stat().st_size

    def test_nothing_but_entries_is_removed(self, cache: ClassEmbeddingCache, tmp_path: Path) -> None:
        entry = entry_of(cache)
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        others = [entry.parent / "model.safetensors", foreign / "model.safetensors", foreign / entry.name]
        for path in others:
            path.write_text("mine")
        (cache.directory / "link").symlink_to(foreign)
        cache.clear()
        assert [path.exists() for path in (entry, *others)] == [False, True, True, True]
        assert cache.size() == (0, 0)

    def test_it_keeps_what_was_used_last(self, cache: ClassEmbeddingCache) -> None:
        for age, name in enumerate(["cat", "dog", "bird"]):
            cache.save("encoder", name, EMBEDDING)
            for path in cache.directory.glob("*/*"):
                if path.stat().st_mtime > time.time() - 900:
                    os.utime(path, (time.time() - 2000 + age,) * 2)
        cache.load("encoder", "cat")
        cache.max_bytes = 2 * cache.size()[1] // 3
        cache.trim()
        assert [cache.load("encoder", name) is not None for name in ("cat", "dog", "bird")] == [True, False, True]


class TestVocabularyFiles:
    def test_one_of_another_text_encoder_is_refused(self, tmp_path: Path, encoder: str) -> None:
        save_class_embeddings(tmp_path / "file.safetensors", NAMES, torch.randn(3, 80, 64), "another")
        assert load_class_embeddings(tmp_path / "file.safetensors")[0] == NAMES
        with pytest.raises(ValueError, match="of another model, tokenizer or list of prompt templates"):
            load_class_embeddings(tmp_path / "file.safetensors", encoder)

    @pytest.mark.parametrize("names", [None, "5", '["sky", ["grass"], "dog"]', '["sky", "sky", "dog"]', '["sky"]'])
    def test_names_that_do_not_fit_are_refused(self, tmp_path: Path, names: str | None) -> None:
        metadata = {"text_encoder_sha256": "encoder"} | ({} if names is None else {"class_names": names})
        save_file({"class_embeddings": torch.zeros(3, 2, 4)}, tmp_path / "file.safetensors", metadata)
        with pytest.raises(ValueError, match=r"file\.safetensors: expected an encoded vocabulary"):
            load_class_embeddings(tmp_path / "file.safetensors")
