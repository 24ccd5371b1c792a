"""Prompts packed into sequences in which what they share is encoded once.

Attention is causal: a token depends on those before it alone. So prompts that begin alike ("a photo of the cat.", "a
photo of the dog.") are a tree, and a token that several share needs to be encoded only once, if every token attends to
its own branch. A prompt of CLIP's 80 templates then costs four tokens instead of eleven, or of 77 with padding.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

PACKS_PER_BATCH = 64


class PackedPrompts(NamedTuple):
    """S sequences of W tokens, which hold N prompts.

    Attributes:
        input_ids: (S, W).
        position_ids: (S, W), of a token in its prompt.
        may_attend: (S, 1, W, W) bool: which tokens (last axis) are on a token's branch.
        sequences: (N,) the sequence of each prompt.
        ends: (N,) where in its sequence each prompt ends.
    """

    input_ids: Tensor
    position_ids: Tensor
    may_attend: Tensor
    sequences: Tensor
    ends: Tensor


def pack_prompts(prompts: Tensor, lengths: Tensor, max_tokens: int) -> Iterator[PackedPrompts]:
    """Pack prompts in their order, in batches.

    Args:
        prompts: (N, L) tokens, sorted, so that prompts that begin alike are neighbours. None is the beginning of
            another, since each ends with the end-of-text token.
        lengths: (N,) tokens of each prompt; what follows them does not count.
        max_tokens: Most tokens W of a sequence, unless a single prompt is longer.
    """
    shared = torch.zeros_like(lengths)
    shared[1:] = (prompts[1:] == prompts[:-1]).cummin(dim=1).values.sum(dim=1)
    first_prompts = split_into_packs(lengths.tolist(), shared.tolist(), max_tokens)
    shared[first_prompts] = 0
    sizes = torch.tensor([*first_prompts, len(prompts)]).diff().to(prompts.device)
    first_prompt = 0
    for batch in sizes.split(PACKS_PER_BATCH):
        inside = slice(first_prompt, first_prompt + int(batch.sum()))
        sequences = torch.arange(len(batch), device=prompts.device).repeat_interleave(batch)
        yield lay_out(prompts[inside], lengths[inside], shared[inside], sequences)
        first_prompt = inside.stop


def split_into_packs(lengths: list[int], shared: list[int], max_tokens: int) -> list[int]:
    """The first prompt of each pack, for the tokens of each prompt and those that it shares with the one before."""
    first_prompts = []
    tokens = max_tokens
    for index, (length, known) in enumerate(zip(lengths, shared, strict=True)):
        tokens += length - known
        if not index or tokens > max_tokens:
            first_prompts.append(index)
            tokens = length
    return first_prompts


def lay_out(prompts: Tensor, lengths: Tensor, shared: Tensor, sequences: Tensor) -> PackedPrompts:
    """The sequences of a batch of packs.

    Args:
        prompts: (N, L).
        lengths: (N,).
        shared: (N,) tokens that a prompt shares with the one before it in its pack.
        sequences: (N,) the pack of each prompt.
    """
    positions = torch.arange(prompts.shape[1], device=prompts.device)
    is_new = (positions >= shared[:, None]) & (positions < lengths[:, None])
    total = (lengths - shared).cumsum(0)
    before = total - (lengths - shared)
    is_first = torch.cat([sequences.new_ones(1, dtype=torch.bool), sequences.diff() > 0])
    offsets = before - before[is_first][sequences]  # of a prompt's own tokens in its sequence

    # A shared token belongs to the last prompt up to this one that has not taken it from the one before.
    prompt_numbers = torch.arange(len(prompts), device=prompts.device)[:, None]
    owner = torch.where(positions >= shared[:, None], prompt_numbers, 0).cummax(dim=0).values
    slots = offsets[owner] + positions - shared[owner]

    width = int((offsets + lengths - shared).max())
    size = (int(sequences[-1]) + 1, width)
    prompt, position = is_new.nonzero(as_tuple=True)
    sequence, slot = sequences[prompt], slots[prompt, position]
    input_ids, position_ids = prompts.new_zeros(size), prompts.new_zeros(size)
    input_ids[sequence, slot] = prompts[prompt, position]
    position_ids[sequence, slot] = position
    may_attend = torch.zeros(*size, width, dtype=torch.bool, device=prompts.device)
    token, ancestor = (positions <= position[:, None]).nonzero(as_tuple=True)
    may_attend[sequence[token], slot[token], slots[prompt[token], ancestor]] = True
    ends = slots.gather(1, lengths[:, None] - 1).squeeze(1)
    return PackedPrompts(input_ids, position_ids, may_attend.unsqueeze(1), sequences, ends)
