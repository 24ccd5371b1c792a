"""Class names of any characters: each is tokenised as open_clip does, and encoded as if it were the only one."""

import unicodedata

import open_clip
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from small_models import TEMPLATES, small_model, small_processor
from strategies import examples, synonyms, vocabularies
from torch import Tensor

END = 49407
EMBEDDINGS = 1e-5


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
