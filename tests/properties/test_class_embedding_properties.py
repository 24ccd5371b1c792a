"""Class embeddings on disk: any names and any numbers come back as they went, each under its own name."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import class_names, normal, seeds, vocabularies

from sed_hf.inference.class_embeddings import ClassEmbeddingCache, load_class_embeddings, save_class_embeddings
from sed_hf.processing_sed import synonyms_of

dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


@given(class_names, class_names)
@example("dog, puppy", "dog,\tpuppy")
@example("dog, puppy", "dog&#44; puppy")
def test_names_share_an_entry_if_and_only_if_their_prompts_are_the_same(one: str, other: str) -> None:
    with TemporaryDirectory() as folder:
        cache = ClassEmbeddingCache(folder)
        cache.save("encoder", one, torch.ones(1, 1))
        assert (cache.load("encoder", other) is not None) == (synonyms_of(one) == synonyms_of(other))
        assert cache.load("another", one) is None


@given(vocabularies, st.integers(0, 4000), seeds, dtypes)
def test_any_vocabulary_comes_back_or_is_refused(names: list[str], length: int, seed: int, dtype: torch.dtype) -> None:
    class_embeddings = normal(len(names), 2, 3, seed=seed, dtype=dtype)
    with TemporaryDirectory() as folder:
        path = Path(folder, "names.safetensors")
        save_class_embeddings(path, names, class_embeddings, "encoder")
        loaded_names, loaded = load_class_embeddings(path, "encoder")
        assert loaded_names == [name.strip() for name in names]
        assert loaded.dtype == class_embeddings.dtype
        assert torch.equal(loaded, class_embeddings)
        content = path.read_bytes()
        path.write_bytes(content[: min(length, len(content) - 1)])
        with pytest.raises(ValueError, match=r"names\.safetensors: expected an encoded vocabulary"):
            load_class_embeddings(path)
