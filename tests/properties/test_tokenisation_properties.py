"""Class names of any characters: each is tokenised and encoded as if it were alone, or refused by its place."""

import re
import unicodedata
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from small_models import TEMPLATES, small_model, small_processor
from strategies import examples, orders, synonyms, vocabularies
from torch import Tensor

from sed_hf.processing_sed import clean_text
from sed_hf.prompt_packing_sed import PackedPrompts, pack_prompts

START, END, MAX_LENGTH = 49406, 49407, 77
EMBEDDINGS = 1e-5


def tokenise(names: Any, **kwargs: Any) -> dict[str, Tensor]:
    return small_processor()(text=names, **kwargs)


def without_padding(prompt: list[int]) -> list[int]:
    return prompt[: prompt.index(END) + 1]


def prompts_of(names: list[str]) -> list[list[list[int]]]:
    """The tokens of each synonym in each template, without padding."""
    return [[without_padding(prompt) for prompt in synonym] for synonym in tokenise(names)["input_ids"].tolist()]


@torch.no_grad()
def encode(names: list[str], **kwargs: Any) -> Tensor:
    """Class embeddings (T, P, D)."""
    return small_model().get_class_embeddings(**tokenise(names, **kwargs))


@torch.no_grad()
def encode_one_by_one(names: list[str]) -> Tensor:
    """Class embeddings (T, P, D) by the formula: each prompt through the text encoder alone."""
    embeddings = []
    for name in names:
        ends = [
            [small_model().text_encoder(input_ids=torch.tensor([prompt])).text_embeds[0] for prompt in synonym]
            for synonym in prompts_of([name])
        ]
        directions = torch.stack([torch.stack(synonym) for synonym in ends])
        directions = directions / directions.norm(dim=-1, keepdim=True)
        mean = directions.mean(0)
        embeddings.append(mean / mean.norm(dim=-1, keepdim=True))
    return torch.stack(embeddings)


class TestTokens:
    @given(vocabularies())
    @example(["very " * 100 + "long"])
    @example(["<|endoftext|>", "<|startoftext|> cat"])
    def test_every_prompt_starts_ends_once_and_fits(self, names: list[str]) -> None:
        tokens = tokenise(names)
        num_synonyms = sum(name.count(", ") + 1 for name in names)
        assert tokens["input_ids"].shape[:2] == (num_synonyms, len(TEMPLATES))
        assert tokens["input_ids"].shape[2] <= MAX_LENGTH
        for prompt in tokens["input_ids"].flatten(0, 1).tolist():
            content = without_padding(prompt)
            assert content[0] == START
            assert START not in content[1:]
            assert set(prompt[len(content) :]) <= {0}

    @given(vocabularies())
    def test_each_synonym_belongs_to_its_class(self, names: list[str]) -> None:
        expected = [index for index, name in enumerate(names) for _ in name.split(", ")]
        assert tokenise(names)["class_ids"].tolist() == expected

    @given(vocabularies())
    def test_padding_to_the_most_adds_nothing_but_padding(self, names: list[str]) -> None:
        shorter, longer = (tokenise(names, padding=padding)["input_ids"] for padding in ("longest", "max_length"))
        assert longer.shape[2] == MAX_LENGTH
        assert torch.equal(longer[..., : shorter.shape[2]], shorter)
        assert (longer[..., shorter.shape[2] :] == 0).all()

    @given(vocabularies(), st.sampled_from(["", " ", "\n\t"]), st.sampled_from(["", " ", "\u00a0"]))
    def test_spaces_around_a_name_do_not_count(self, names: list[str], before: str, after: str) -> None:
        assert prompts_of([f"{before}{name}{after}" for name in names]) == prompts_of(names)

    @given(synonyms)
    def test_any_name_equals_open_clip(self, name: str) -> None:
        # Which characters are letters follows the Unicode version of each tokenizer's library.
        assume(not any(unicodedata.category(character) == "Cn" or character == "\u0345" for character in name))
        expected = open_clip.tokenize([template.replace("{}", name) for template in TEMPLATES])
        assert torch.equal(tokenise([name], padding="max_length")["input_ids"][0], expected)


class TestRefusedNames:
    @given(
        vocabularies(),
        st.sampled_from(["", " ", "\t\n", "\u3000", ", ", "cat, , dog", "&nbsp;", "cat, &#32;"]),
        st.data(),
    )
    def test_an_empty_name_among_any_is_named_by_its_place(
        self, names: list[str], empty: str, data: st.DataObject
    ) -> None:
        index = data.draw(st.integers(0, len(names)))
        with pytest.raises(ValueError, match=rf"text\[{index}\]: expected a class name"):
            tokenise([*names[:index], empty, *names[index:]])

    @given(vocabularies(), st.sampled_from([str, str.upper, lambda name: f" {name}"]), st.data())
    def test_a_name_given_twice_is_named_by_both_places(
        self, names: list[str], change: Any, data: st.DataObject
    ) -> None:
        index = data.draw(st.integers(0, len(names) - 1))
        again = change(names[index])
        assume(clean_text(again) == clean_text(names[index]))  # not so "ß" and "SS"
        with pytest.raises(ValueError, match=rf"text\[{len(names)}\]: .* is the same class name as text\[{index}\]"):
            tokenise([*names, again])


class TestClassEmbeddings:
    @given(vocabularies())
    @example(["very " * 100 + "long", "very " * 100 + "longer", "short"])
    @examples(10)
    def test_packed_prompts_equal_one_at_a_time(self, names: list[str]) -> None:
        torch.testing.assert_close(encode(names), encode_one_by_one(names), rtol=0, atol=EMBEDDINGS)

    @given(vocabularies(), st.data())
    def test_any_order_of_names_permutes_them_exactly(self, names: list[str], data: st.DataObject) -> None:
        order = data.draw(orders(len(names)))
        assert torch.equal(encode([names[index] for index in order]), encode(names)[order])

    @given(vocabularies())
    def test_padding_does_not_matter_at_all(self, names: list[str]) -> None:
        assert torch.equal(encode(names, padding="max_length"), encode(names))

    @given(st.lists(synonyms, min_size=2, max_size=3), st.data())
    def test_the_order_of_synonyms_does_not_matter(self, names: list[str], data: st.DataObject) -> None:
        order = data.draw(orders(len(names)))
        expected, actual = encode([", ".join(names)]), encode([", ".join(names[index] for index in order)])
        torch.testing.assert_close(actual, expected, rtol=0, atol=EMBEDDINGS)


class TestPacking:
    prompts = st.lists(st.lists(st.integers(1, 3), max_size=6), min_size=1, max_size=20, unique_by=tuple)

    def packs(self, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[PackedPrompts]]:
        ordered = sorted([*prompt, 9] for prompt in prompts)
        length = max(map(len, ordered))
        tokens = torch.tensor([prompt + [0] * (length - len(prompt)) for prompt in ordered])
        return ordered, list(pack_prompts(tokens, torch.tensor([len(prompt) for prompt in ordered]), max_tokens))

    @given(prompts, st.integers(0, 30))
    def test_the_end_of_any_prompt_attends_to_that_prompt(self, prompts: list[list[int]], max_tokens: int) -> None:
        ordered, packs = self.packs(prompts, max_tokens)
        found = []
        for packed in packs:
            for sequence, end in zip(packed.sequences.tolist(), packed.ends.tolist(), strict=True):
                slots = packed.may_attend[sequence, 0, end].nonzero().squeeze(1)
                slots = slots[packed.position_ids[sequence, slots].argsort()]
                assert packed.position_ids[sequence, slots].tolist() == list(range(len(slots)))
                found.append(packed.input_ids[sequence, slots].tolist())
        assert found == ordered

    @given(prompts, st.integers(0, 30))
    def test_no_sequence_is_longer_than_asked_or_than_a_prompt(self, prompts: list[list[int]], max_tokens: int) -> None:
        ordered, packs = self.packs(prompts, max_tokens)
        assert all(packed.input_ids.shape[1] <= max(max_tokens, *map(len, ordered), 0) for packed in packs)


def test_the_examples_cover_synonyms_and_characters_of_every_plane() -> None:
    """What the strategies are for: without it the properties above would say less than they seem to."""
    found: set[str] = set()

    @given(vocabularies())
    @examples(100)
    def collect(names: list[str]) -> None:
        found.update(names)

    collect()
    assert any(", " in name for name in found)
    assert any(re.search(r"[^\u0000-\uffff]", name) for name in found)
