"""SED's decoder as the paper writes it, all classes at once and one operation after the other.

The decoder of the package must equal it; `scripts/benchmark.py` compares its speed and memory with it. It shares the
weights of that decoder, but none of its code.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainOutput(NamedTuple):
    """Logits (B, T, 8h, 8w), auxiliary logits, and with rejection the classes (T',) that enter each stage."""

    logits: Tensor
    aux_logits: list[Tensor]
    kept: list[Tensor]


def plain_decode(
    decoder: nn.Module,
    dense_embeddings: Tensor,
    class_embeddings: Tensor,
    encoder_hidden_states: tuple[Tensor, ...],
    topk: int | None = None,
) -> PlainOutput:
    """Decode (B, D, h, w) dense embeddings and (T, P, D) class embeddings; with rejection of one image only."""
    config = decoder.config
    pooling_size = config.train_pooling_size if decoder.training else config.inference_pooling_size
    attend = {"linear": linear_attention, "full": full_attention}[config.class_attention_type]
    batch_size, num_classes = len(dense_embeddings), len(class_embeddings)

    cost_map = torch.einsum("bdhw,tpd->btphw", dense_embeddings, class_embeddings)
    features = decoder.cost_embedding(cost_map.flatten(0, 1)).unflatten(0, (batch_size, num_classes))
    guidance, kept = cost_map, torch.arange(num_classes)
    aux_logits, kept_by_stage = [], []
    for index, stage in enumerate(decoder.stages):
        head = decoder.auxiliary_heads[index]
        logits = head(features.detach().flatten(0, 1)).unflatten(0, features.shape[:2]).squeeze(2)
        aux_logits.append(logits)
        if topk is not None:
            survivors = logits[0].topk(min(topk, logits.shape[1]), dim=0).indices.unique()
            kept, features, guidance = kept[survivors], features[:, survivors], guidance[:, survivors]
            kept_by_stage.append(kept)
        shape = features.shape[:2]

        block = stage.spatial_block
        residual = block.depthwise(features.flatten(0, 1)).permute(0, 2, 3, 1)
        residual = block.layer_scale * block.mlp(block.norm(residual))
        features = features + residual.permute(0, 3, 1, 2).unflatten(0, shape)

        features = features + attend_classes(stage.class_attention, features, pooling_size, attend)

        guidance = stage.cost_guidance(guidance.flatten(0, 1)).unflatten(0, shape)
        skip = stage.skip_guidance(encoder_hidden_states[2 - index].detach())
        upsampled = stage.skip_fusion.upsample(features.flatten(0, 1)).unflatten(0, shape)
        skip = skip.unsqueeze(1).expand(-1, shape[1], -1, -1, -1)
        merged = torch.cat([upsampled, skip, guidance], dim=2)
        features = stage.skip_fusion.fuse(merged.flatten(0, 1)).unflatten(0, shape)
    logits = decoder.head(features.flatten(0, 1)).unflatten(0, features.shape[:2]).squeeze(2)
    return PlainOutput(logits, aux_logits, kept_by_stage)


def attend_classes(attention: nn.Module, features: Tensor, pooling_size: int, attend) -> Tensor:
    """A transformer layer over the classes at each location of (B, T, C, H, W)."""
    batch_size, _, _, height, width = features.shape
    pooled = F.avg_pool2d(features.flatten(0, 1), (min(pooling_size, height), min(pooling_size, width)))
    tokens = pooled.unflatten(0, features.shape[:2]).permute(0, 3, 4, 1, 2)  # (B, H', W', T, C)
    normed = attention.attention_norm(tokens)
    heads = attention.num_attention_heads
    query, key, value = (
        layer(normed).unflatten(-1, (heads, -1)).transpose(-2, -3)  # (B, H', W', heads, T, C / heads)
        for layer in (attention.query, attention.key, attention.value)
    )
    tokens = tokens + attend(query, key, value).transpose(-2, -3).flatten(-2)
    tokens = tokens + attention.mlp(attention.mlp_norm(tokens))
    mixed = tokens.permute(0, 3, 4, 1, 2).flatten(0, 1)
    mixed = F.interpolate(mixed, size=(height, width), mode="bilinear", align_corners=True)
    return mixed.unflatten(0, (batch_size, -1))


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(..., heads, T, channels), with values divided by T before and multiplied after, as officially."""
    num_classes = value.shape[-2]
    query, key = F.elu(query) + 1, F.elu(key) + 1
    normalizer = 1 / ((query * key.sum(-2, keepdim=True)).sum(-1, keepdim=True) + 1e-6)
    return query @ (key.transpose(-1, -2) @ (value / num_classes)) * normalizer * num_classes


def full_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over T."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.softmax(-1) @ value
