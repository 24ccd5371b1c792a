"""Class embeddings on disk: any names and any numbers come back as they went, each under its own name."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from small_models import small_model, small_processor
from strategies import class_names, examples, normal, orders, seeds, vocabularies
from torch import Tensor

from sed_hf.inference.class_embeddings import (
    ClassEmbeddingCache,
    encode_classes,
    load_class_embeddings,
    save_class_embeddings,
)
from sed_hf.processing_sed import synonyms_of

dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


def encode(names: list[str], cache: ClassEmbeddingCache | None = None) -> Tensor:
    return encode_classes(small_model(), small_processor(), names, cache, show_progress=False)


@given(class_names, class_names)
@example("dog, puppy", "dog,\tpuppy")
@example("dog, puppy", "dog&#44; puppy")
def test_names_share_an_entry_if_and_only_if_their_prompts_are_the_same(one: str, other: str) -> None:
    with TemporaryDirectory() as folder:
        cache = ClassEmbeddingCache(folder)
        cache.save("encoder", one, torch.ones(1, 1))
        assert (cache.load("encoder", other) is not None) == (synonyms_of(one) == synonyms_of(other))
        assert cache.load("another", one) is None


@given(vocabularies(4), st.integers(0, 4), st.data())
@examples(10)
def test_any_names_found_and_encoded_equal_all_encoded(names: list[str], num_known: int, data: st.DataObject) -> None:
    expected = encode(names)
    with TemporaryDirectory() as folder:
        cache = ClassEmbeddingCache(folder)
        if names[:num_known]:
            encode(names[:num_known], cache)
        first = encode(names, cache)
        torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)
        order = data.draw(orders(len(names)))
        assert torch.equal(encode([names[index] for index in order], cache), first[order])
        assert cache.size()[0] == len({synonyms_of(name) for name in names})


@given(vocabularies(), st.integers(0, 4000), seeds, dtypes)
def test_any_vocabulary_comes_back_whole_or_is_refused(
    names: list[str], length: int, seed: int, dtype: torch.dtype
) -> None:
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
