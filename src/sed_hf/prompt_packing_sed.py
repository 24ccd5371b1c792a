"""Prompts packed into sequences in which what they share is encoded once, and the text encoder run on them.

Attention is causal: a token depends only on those before it. So prompts that begin alike ("a photo of the cat.", "a
photo of the dog.") are a tree, and a token that several share needs to be encoded only once, if every token attends to
its own branch. A prompt of CLIP's 80 templates then costs four tokens instead of eleven, or of 77 with padding.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection
from transformers import initialization as init


def encode_prompts(text_encoder: CLIPTextModelWithProjection, input_ids: Tensor) -> Tensor:
    """Encode (N, L) tokens to (N, D): each different prompt once, none with padding, and shared beginnings once.

    Attention is causal and the embedding is read at the end-of-text token, so what follows it changes nothing. A prompt
    without that token ends with its last.
    """
    config, device = text_encoder.config, input_ids.device
    input_ids = input_ids.cpu()  # where tokens are laid out, so that a GPU is waited for only once
    is_end = input_ids == config.eos_token_id
    is_end[:, -1] = True
    lengths = is_end.int().argmax(1) + 1
    is_padding = torch.arange(input_ids.shape[1], device=input_ids.device) >= lengths[:, None]
    prompts, inverse = input_ids.masked_fill(is_padding, 0).unique(dim=0, return_inverse=True)
    lengths = lengths.new_empty(len(prompts)).index_copy_(0, inverse, lengths)
    takes_masks = config._attn_implementation in ("eager", "sdpa")  # else each prompt is a pack of its own
    encoded = []
    for packed in pack_prompts(prompts, lengths, config.max_position_embeddings if takes_masks else 0):
        packed = PackedPrompts(*(part.to(device, non_blocking=device.type == "cuda") for part in packed))
        mask = torch.zeros_like(packed.may_attend, dtype=text_encoder.dtype)
        mask.masked_fill_(~packed.may_attend, torch.finfo(mask.dtype).min)
        hidden_states = text_encoder(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=mask if takes_masks else None,
        ).last_hidden_state
        encoded.append(text_encoder.text_projection(hidden_states[packed.sequences, packed.ends]))
    return torch.cat(encoded)[inverse.to(device)]


class PackedPrompts(NamedTuple):
    """S sequences of W tokens, which hold N prompts."""

    input_ids: Tensor  # (S, W)
    position_ids: Tensor  # (S, W), of a token in its prompt
    may_attend: Tensor  # (S, 1, W, W) bool: which tokens (last axis) are on a token's branch
    sequences: Tensor  # (N,) the sequence of each prompt
    ends: Tensor  # (N,) where in its sequence each prompt ends


def pack_prompts(prompts: Tensor, lengths: Tensor, max_tokens: int) -> Iterator[PackedPrompts]:
    """Pack prompts in their order, in batches of 64 sequences.

    Args:
        prompts: (N, L) tokens, sorted, so that prompts that begin alike are neighbours. None is the beginning of
            another, since each ends with the end-of-text token or is the longest.
        lengths: (N,) tokens of each prompt; what follows them does not count.
        max_tokens: Most tokens W of a sequence, unless a single prompt is longer.
    """
    shared = torch.zeros_like(lengths)
    shared[1:] = (prompts[1:] == prompts[:-1]).cummin(dim=1).values.sum(dim=1)
    first_prompts, tokens = [], max_tokens
    for index, (length, known) in enumerate(zip(lengths.tolist(), shared.tolist(), strict=True)):
        tokens += length - known
        if not index or tokens > max_tokens:
            first_prompts.append(index)
            tokens = length
    shared[first_prompts] = 0
    sizes = torch.tensor([*first_prompts, len(prompts)]).diff().to(prompts.device)
    first_prompt = 0
    for batch in sizes.split(64):
        inside = slice(first_prompt, first_prompt + int(batch.sum()))
        sequences = torch.arange(len(batch), device=prompts.device).repeat_interleave(batch)
        yield lay_out(prompts[inside], lengths[inside], shared[inside], sequences)
        first_prompt = inside.stop


def lay_out(prompts: Tensor, lengths: Tensor, shared: Tensor, sequences: Tensor) -> PackedPrompts:
    """Lay out prompts (N, L), which share so many tokens with the one before, in so many sequences (N,)."""
    positions = torch.arange(prompts.shape[1], device=prompts.device)
    is_new = (positions >= shared[:, None]) & (positions < lengths[:, None])
    before = (lengths - shared).cumsum(0) - (lengths - shared)
    is_first = torch.cat([sequences.new_ones(1, dtype=torch.bool), sequences.diff() > 0])
    offsets = before - before[is_first][sequences]  # of a prompt's own tokens in its sequence
    # A shared token belongs to the last prompt up to this one that has not taken it from the one before.
    prompt_numbers = torch.arange(len(prompts), device=prompts.device)[:, None]
    owner = torch.where(positions >= shared[:, None], prompt_numbers, 0).cummax(dim=0).values
    slots = offsets[owner] + positions - shared[owner]

    size = (int(sequences[-1]) + 1, int((offsets + lengths - shared).max()))
    prompt, position = is_new.nonzero(as_tuple=True)
    sequence, slot = sequences[prompt], slots[prompt, position]
    input_ids, position_ids = prompts.new_zeros(size), prompts.new_zeros(size)
    input_ids[sequence, slot] = prompts[prompt, position]
    position_ids[sequence, slot] = position
    may_attend = torch.zeros(*size, size[1], dtype=torch.bool, device=prompts.device)
    token, ancestor = (positions <= position[:, None]).nonzero(as_tuple=True)
    may_attend[sequence[token], slot[token], slots[prompt[token], ancestor]] = True
    ends = slots.gather(1, lengths[:, None] - 1).squeeze(1)
    return PackedPrompts(input_ids, position_ids, may_attend.unsqueeze(1), sequences, ends)


def init_text_encoder_as_open_clip(text_encoder: CLIPTextModelWithProjection) -> None:
    """Initialise what no checkpoint has provided by the rule of open_clip, from which that of transformers differs."""
    width, depth = text_encoder.config.hidden_size, text_encoder.config.num_hidden_layers
    std = dict.fromkeys(("q_proj", "k_proj", "v_proj", "text_projection"), width**-0.5)
    std |= {"token_embedding": 0.02, "position_embedding": 0.01, "fc1": (2 * width) ** -0.5}
    std |= dict.fromkeys(("out_proj", "fc2"), width**-0.5 * (2 * depth) ** -0.5)
    for name, module in text_encoder.named_modules():  # by name: the layer does not tell its role
        role = name.rpartition(".")[-1]
        if role in std:
            init.normal_(module.weight, std=std[role])
        if role in ("fc1", "fc2"):
            bound = module.in_features**-0.5
            init.uniform_(module.bias, -bound, bound)
