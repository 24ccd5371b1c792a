"""Class names of any characters: each is tokenised as open_clip does, and encoded as if it were the only one.

On disk any names and any numbers come back as they went, each under its own name.
"""

import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from small_models import TEMPLATES, small_model, small_processor
from strategies import class_names, examples, normal, seeds, synonyms, vocabularies
from torch import Tensor

from sed_hf.inference.class_embeddings import ClassEmbeddingCache, load_class_embeddings, save_class_embeddings
from sed_hf.processing_sed import synonyms_of

END = 49407
EMBEDDINGS = 1e-5
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


@torch.no_grad()
def encode(names: list[str]) -> Tensor:
    """Class embeddings (T, P, D)."""
    return small_model().get_class_embeddings(**small_processor()(text=names))


@torch.no_grad()
def encode_one_by_one(names: list[str]) -> Tensor:
    """Class embeddings (T, P, D) by the formula: each prompt through the text encoder by itself."""
    embeddings = []
    for name in names:
        input_ids = small_processor()(text=[name])["input_ids"]
        prompts = [prompt[None, : prompt.tolist().index(END) + 1] for prompt in input_ids.flatten(0, 1)]
        ends = torch.cat([small_model().text_encoder(input_ids=prompt).text_embeds for prompt in prompts])
        directions = torch.nn.functional.normalize(ends.unflatten(0, input_ids.shape[:2]), dim=-1)
        embeddings.append(torch.nn.functional.normalize(directions.mean(0), dim=-1))
    return torch.stack(embeddings)


@given(synonyms)
@example("very " * 100 + "long")
def test_the_tokens_of_any_name_equal_open_clip(name: str) -> None:
    # Which characters are letters follows the Unicode version of each tokenizer's library.
    assume(not any(unicodedata.category(character) == "Cn" or character == "\u0345" for character in name))
    expected = open_clip.tokenize([template.replace("{}", name) for template in TEMPLATES])
    assert torch.equal(small_processor()(text=[name], padding="max_length")["input_ids"][0], expected)


@given(vocabularies, st.data())
@example(["very " * 100 + "long", "very " * 100 + "longer", "short"], None)
@examples(4)
def test_packed_prompts_equal_one_at_a_time_in_any_order(names: list[str], data: st.DataObject | None) -> None:
    embeddings = encode(names)
    torch.testing.assert_close(embeddings, encode_one_by_one(names), rtol=0, atol=EMBEDDINGS)
    if data is not None:
        order = data.draw(st.permutations(range(len(names))))
        assert torch.equal(encode([names[index] for index in order]), embeddings[order])


@given(class_names, class_names)
@example("dog, puppy", "dog,\tpuppy")
@example("dog, puppy", "dog&#44; puppy")
def test_names_share_an_entry_if_and_only_if_their_prompts_are_the_same(one: str, other: str) -> None:
    with TemporaryDirectory() as folder:
        cache = ClassEmbeddingCache(folder)
        cache.save("encoder", one, torch.ones(1, 1))
        assert (cache.load("encoder", other) is not None) == (synonyms_of(one) == synonyms_of(other))
        assert cache.load("another", one) is None


@given(vocabularies, st.integers(0, 4000), seeds, DTYPES)
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
