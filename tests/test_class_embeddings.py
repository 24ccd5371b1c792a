"""Class embeddings on disk: the cache that processes share, and encoded vocabularies as files."""

import os
import subprocess
import sys
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


@pytest.fixture
def cache(tmp_path: Path) -> ClassEmbeddingCache:
    return ClassEmbeddingCache(tmp_path / "cache")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the text encoder was asked for, as they come."""
    names: list[str] = []

    def note(model: Any, processor: Any, class_names: list[str]) -> torch.Tensor:
        names.extend(class_names)
        return encode_chunk(model, processor, class_names)

    from sed_hf.inference.class_embeddings import encode_chunk

    monkeypatch.setattr("sed_hf.inference.class_embeddings.encode_chunk", note)
    return names


@pytest.fixture
def encoder(tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor) -> str:
    return text_encoder_sha256(tiny_model, tiny_processor)


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
        encoded: list[str],
    ) -> None:
        first = encode_classes(tiny_model, tiny_processor, NAMES, cache)
        again = encode_classes(tiny_model, tiny_processor, ["sky", *reversed(NAMES)], cache)
        assert encoded == [*NAMES, "sky"]
        assert torch.equal(again[1:], first.flip(0))

    def test_spellings_that_the_processor_takes_for_one_share_an_entry(
        self,
        tiny_model: SEDForSemanticSegmentation,
        tiny_processor: SEDProcessor,
        cache: ClassEmbeddingCache,
        encoded: list[str],
    ) -> None:
        encode_classes(tiny_model, tiny_processor, ["Dog,  Puppy"], cache)
        encode_classes(tiny_model, tiny_processor, ["dog, puppy "], cache)
        assert encoded == ["Dog,  Puppy"]

    def test_a_bad_name_is_refused_before_anything_is_encoded(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, encoded: list[str]
    ) -> None:
        with pytest.raises(ValueError, match="same class name"):
            encode_classes(tiny_model, tiny_processor, ["cat", "Cat"])
        assert encoded == []


class TestKeys:
    """What an embedding depends on besides the name."""

    def test_weights(self, make_tiny_model: Any, tiny_processor: SEDProcessor, encoder: str) -> None:
        model = make_tiny_model()
        assert text_encoder_sha256(model, tiny_processor) == encoder
        with torch.no_grad():
            model.text_encoder.text_projection.weight[0, 0] += 1e-6
        assert text_encoder_sha256(model, tiny_processor) != encoder

    def test_image_weights_do_not_count(self, make_tiny_model: Any, tiny_processor: SEDProcessor, encoder: str) -> None:
        model = make_tiny_model()
        with torch.no_grad():
            model.decoder.head.bias += 1
        assert text_encoder_sha256(model, tiny_processor) == encoder

    def test_dtype(self, make_tiny_model: Any, tiny_processor: SEDProcessor, encoder: str) -> None:
        assert text_encoder_sha256(make_tiny_model().bfloat16(), tiny_processor) != encoder

    def test_templates(self, tiny_model: Any, tiny_processor: SEDProcessor, encoder: str) -> None:
        processor = SEDProcessor(tiny_processor.image_processor, tiny_processor.tokenizer, ["a {}."] * 80)
        assert text_encoder_sha256(tiny_model, processor) != encoder

    def test_tokenizer(self, tiny_model: Any, tiny_processor: SEDProcessor, encoder: str, tmp_path: Path) -> None:
        tiny_processor.tokenizer.save_pretrained(tmp_path)
        tokenizer = type(tiny_processor.tokenizer).from_pretrained(tmp_path)
        tokenizer.add_tokens(["platypus"])
        processor = SEDProcessor(tiny_processor.image_processor, tokenizer)
        assert text_encoder_sha256(tiny_model, processor) != encoder


class TestCache:
    embedding = torch.randn(80, 64, generator=torch.Generator().manual_seed(0))

    def test_one_name_with_a_comma_is_not_two_synonyms(self, cache: ClassEmbeddingCache) -> None:
        cache.save("encoder", "dog, puppy", self.embedding)
        for one_name in ("dog,\tpuppy", "dog&#44; puppy"):
            assert cache.load("encoder", one_name) is None

    def test_what_was_saved_comes_back(self, cache: ClassEmbeddingCache) -> None:
        assert cache.load("encoder", "cat") is None
        cache.save("encoder", "cat", self.embedding)
        loaded = cache.load("encoder", "cat")
        assert loaded is not None
        assert torch.equal(loaded, self.embedding)
        assert cache.load("another encoder", "cat") is None

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "other tensors"])
    def test_a_damaged_entry_is_missing_and_written_anew(self, cache: ClassEmbeddingCache, damage: str) -> None:
        cache.save("encoder", "cat", self.embedding)
        (path,) = cache.directory.glob("*/*.safetensors")
        content = path.read_bytes()
        if damage == "other tensors":
            save_file({"embedding": self.embedding}, path)
        else:
            flipped = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
            path.write_bytes(
                {"truncated": content[:-7], "flipped": flipped, "empty": b"", "text": b"no tensor" * 99}[damage]
            )
        assert cache.load("encoder", "cat") is None
        cache.save("encoder", "cat", self.embedding)
        assert cache.load("encoder", "cat") is not None

    def test_an_entry_that_never_ends_is_missing(self, cache: ClassEmbeddingCache) -> None:
        cache.save("encoder", "cat", self.embedding)
        (path,) = cache.directory.glob("*/*.safetensors")
        path.unlink()
        os.mkfifo(path)
        assert cache.load("encoder", "cat") is None

    def test_it_keeps_what_was_used_last(self, cache: ClassEmbeddingCache) -> None:
        for age, name in enumerate(["cat", "dog", "bird"]):
            cache.save("encoder", name, self.embedding)
            path = cache._path("encoder", name)
            os.utime(path, (time.time() - 1000 + age,) * 2)
        cache.load("encoder", "cat")
        cache.max_bytes = 2 * cache.size()[1] // 3
        cache.trim()
        assert [cache.load("encoder", name) is not None for name in ("cat", "dog", "bird")] == [True, False, True]

    def test_clearing_removes_everything_and_says_how_much(self, cache: ClassEmbeddingCache) -> None:
        cache.save("encoder", "cat", self.embedding)
        size = cache.size()
        assert size[0] == 1
        assert cache.clear() == size[1] > 0
        assert cache.size() == (0, 0)

    def test_a_disk_that_refuses_costs_the_cache_and_not_the_result(
        self, tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        embeddings = encode_classes(tiny_model, tiny_processor, NAMES, ClassEmbeddingCache(tmp_path / "file" / "cache"))
        assert embeddings.shape == (3, 80, 64)

    def test_an_interruption_keeps_all_classes_that_were_encoded_together(
        self,
        tiny_model: SEDForSemanticSegmentation,
        tiny_processor: SEDProcessor,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        cache, save, saved = ClassEmbeddingCache(tmp_path), ClassEmbeddingCache.save, []

        def interrupt_at_the_second(self: ClassEmbeddingCache, *arguments: object) -> None:
            saved.append(arguments)
            if len(saved) == 2:
                raise KeyboardInterrupt
            save(self, *arguments)

        monkeypatch.setattr(ClassEmbeddingCache, "save", interrupt_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            encode_classes(tiny_model, tiny_processor, NAMES, cache)
        assert cache.size()[0] == len(NAMES)

    def test_its_place_is_the_cache_directory_of_hugging_face(self, cache_home: Path) -> None:
        assert ClassEmbeddingCache().directory == cache_home / "sed_hf" / "class_embeddings"


PROCESS = """
import sys
import torch
import sed_hf.inference.class_embeddings as module
from sed_hf import SEDForSemanticSegmentation, SEDProcessor

torch.set_num_threads(1)
encode_chunk, count = module.encode_chunk, 0
def note(model, processor, class_names):
    global count
    count += len(class_names)
    return encode_chunk(model, processor, class_names)
module.encode_chunk = note
model = SEDForSemanticSegmentation.from_pretrained(sys.argv[1])
processor = SEDProcessor.from_pretrained(sys.argv[1])
names = [f"thing {number}" for number in range(100)]
embeddings = module.encode_classes(model, processor, names, module.ClassEmbeddingCache(sys.argv[2]), False)
print(count, embeddings.double().sum().item())
"""


def test_processes_that_start_together_share_it(tiny_hub_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tiny_hub_folder), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=240)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert 100 <= sum(int(count) for count, _ in results) <= 200
    assert results[0][1] == results[1][1]
    third = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=240).stdout.split()
    assert third == ["0", results[0][1]]
    assert not list((tmp_path / "cache").rglob("*.part"))


class TestVocabularyFiles:
    def test_names_and_embeddings_come_back(self, tmp_path: Path, encoder: str) -> None:
        embeddings = torch.randn(3, 80, 64)
        save_class_embeddings(tmp_path / "file.safetensors", NAMES, embeddings, encoder)
        names, loaded = load_class_embeddings(tmp_path / "file.safetensors", encoder)
        assert names == NAMES
        assert torch.equal(loaded, embeddings)

    def test_one_of_another_text_encoder_is_refused(self, tmp_path: Path, encoder: str) -> None:
        save_class_embeddings(tmp_path / "file.safetensors", NAMES, torch.randn(3, 80, 64), "another")
        load_class_embeddings(tmp_path / "file.safetensors")
        with pytest.raises(ValueError, match="of another model, tokenizer or list of prompt templates"):
            load_class_embeddings(tmp_path / "file.safetensors", encoder)

    @pytest.mark.parametrize("content", [b"", b"no tensors", b"\x00" * 100])
    def test_what_is_no_such_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "file.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="expected an encoded vocabulary"):
            load_class_embeddings(tmp_path / "file.safetensors")

    @pytest.mark.parametrize(
        "embeddings",
        [torch.full((3, 2, 4), torch.nan), torch.zeros(3, 2, 4, dtype=torch.int64), torch.zeros(2, 2, 4)],
        ids=["not a number", "integers", "of two names"],
    )
    def test_embeddings_that_cannot_be_right_are_refused(
        self, tmp_path: Path, encoder: str, embeddings: torch.Tensor
    ) -> None:
        save_class_embeddings(tmp_path / "file.safetensors", NAMES, embeddings, encoder)
        with pytest.raises(ValueError, match=r"file\.safetensors: expected an encoded vocabulary"):
            load_class_embeddings(tmp_path / "file.safetensors", encoder)

    @pytest.mark.parametrize("names", ["5", '["sky", ["grass"], "dog"]', "[" * 100_000, '["sky", "sky", "dog"]'])
    def test_names_that_are_none_are_refused(self, tmp_path: Path, encoder: str, names: str) -> None:
        metadata = {"class_names": names, "text_encoder_sha256": encoder}
        save_file({"class_embeddings": torch.zeros(3, 2, 4)}, tmp_path / "file.safetensors", metadata)
        with pytest.raises(ValueError, match=r"file\.safetensors: expected an encoded vocabulary"):
            load_class_embeddings(tmp_path / "file.safetensors", encoder)

    def test_safetensors_of_something_else_are_refused(self, tmp_path: Path) -> None:
        save_file({"weight": torch.zeros(3)}, tmp_path / "file.safetensors")
        with pytest.raises(ValueError, match="expected an encoded vocabulary"):
            load_class_embeddings(tmp_path / "file.safetensors")
