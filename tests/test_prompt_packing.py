"""Prompts that begin alike share what they begin with."""

import pytest
import torch
from torch import Tensor

from sed_hf.prompt_packing_sed import PackedPrompts, pack_prompts

END = 9


def sorted_prompts(*prompts: list[int]) -> tuple[Tensor, Tensor]:
    """Sorted tokens (N, L), padded with 0, and lengths; each prompt gets its end."""
    ordered = sorted([*prompt, END] for prompt in prompts)
    length = max(len(prompt) for prompt in ordered)
    tokens = torch.tensor([prompt + [0] * (length - len(prompt)) for prompt in ordered])
    return tokens, torch.tensor([len(prompt) for prompt in ordered])


def branches(packed: PackedPrompts) -> list[list[int]]:
    """What the end of each prompt attends to, in the order of the positions."""
    found = []
    for sequence, end in zip(packed.sequences.tolist(), packed.ends.tolist(), strict=True):
        slots = packed.may_attend[sequence, 0, end].nonzero().squeeze(1)
        slots = slots[packed.position_ids[sequence, slots].argsort()]
        found.append(packed.input_ids[sequence, slots].tolist())
    return found


def random_prompts(seed: int) -> tuple[Tensor, Tensor]:
    """Prompts of 1 to 6 tokens of three kinds, so that many begin alike."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (60,), generator=generator).tolist()
    chosen = {tuple(torch.randint(1, 4, (length,), generator=generator).tolist()) for length in lengths}
    return sorted_prompts(*(list(prompt) for prompt in chosen))


@pytest.mark.parametrize("max_tokens", [0, 8, 20, 77])
@pytest.mark.parametrize("seed", range(5))
def test_the_end_of_a_prompt_attends_to_that_prompt(seed: int, max_tokens: int) -> None:
    prompts, lengths = random_prompts(seed)
    packs = list(pack_prompts(prompts, lengths, max_tokens))
    assert all(packed.input_ids.shape[1] <= max(max_tokens, lengths.max()) for packed in packs)
    found = [branch for packed in packs for branch in branches(packed)]
    assert found == [tokens[:length].tolist() for tokens, length in zip(prompts, lengths, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_every_token_attends_to_as_many_tokens_as_are_before_it_and_to_itself(seed: int) -> None:
    for packed in pack_prompts(*random_prompts(seed), max_tokens=20):
        is_token = packed.input_ids > 0
        assert torch.equal(packed.may_attend.sum(-1).squeeze(1)[is_token], packed.position_ids[is_token] + 1)
        assert packed.may_attend.squeeze(1).diagonal(dim1=1, dim2=2)[is_token].all()


def test_what_two_prompts_share_is_encoded_once() -> None:
    (packed,) = pack_prompts(*sorted_prompts([1, 2, 3, 4], [1, 2, 3, 5, 6]), max_tokens=77)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, END, 5, 6, END]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]


def test_many_packs_come_in_batches() -> None:
    batches = list(pack_prompts(*random_prompts(0), max_tokens=12, packs_per_batch=2))
    assert {len(packed.input_ids) for packed in batches[:-1]} == {2}
