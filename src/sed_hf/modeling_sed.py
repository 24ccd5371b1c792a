"""SED: a simple encoder-decoder for open-vocabulary semantic segmentation (Xie et al., CVPR 2024, arXiv 2311.15537).

Top to bottom as in the paper's figure 2: hierarchical encoder, cost map, feature aggregation module, skip-layer fusion
module, gradual fusion decoder (from the cost embedding on, with category early rejection), model.

Shapes are written with B images, T classes, P prompt templates, D embedding channels and (h, w) = input size / 32. In
the decoder features are (t, B, H, W, C) as they lie in memory: a few classes t first, channels C last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.layers.grn import GlobalResponseNorm
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModelWithProjection
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .chunking_sed import Chunks
from .class_inputs_sed import ClassInputs
from .configuration_sed import SEDConfig, SEDVisionConfig
from .loss_sed import segmentation_losses
from .prompt_packing_sed import encode_prompts, init_text_encoder_as_open_clip

if TYPE_CHECKING:
    # transformers saves a model with every file that its code names in a relative import: so with the pipeline's too.
    from .pipeline_sed import SEDPipeline  # noqa: F401

ENCODER_STRIDE = 32


@dataclass
class SEDSemanticSegmentationOutput(ModelOutput):
    """Output of [`SEDForSemanticSegmentation`]; of [`SEDModel`], which has no decoder, with what comes before it.

    Attributes:
        loss: Sum of `losses`, when labels are given.
        logits: (B, T, 8h, 8w), at a quarter of the input size. A sigmoid turns them into probabilities. With the
            argument `early_rejection_topk` (B, K, 8h, 8w), of the `logit_classes` only; see also [`all_logits`].
        aux_logits: (B, T, h, w), (B, T, 2h, 2w), (B, T, 4h, 4w) of the auxiliary heads; in dense decoding only.
        losses: The terms of the loss: of `logits`, then of each of `aux_logits`.
        logit_classes: (K,) sorted indices, with that argument: the classes that survive in some image.
        kept_classes: (B, S, T) bool, with early rejection: the classes that enter each of the S stages.
        cost_map: On request, (B, T, P, h, w) cosine similarity of every location and every prompt of every class.
        dense_embeddings, class_embeddings: Likewise, (B, D, h, w), not normalised, and (T, P, D), of length 1.
        encoder_hidden_states: Likewise, res2, res3, res4, res5, at strides 4, 8, 16, 32.
        decoder_hidden_states: Likewise, cost embedding (B, T, C, h, w) and outputs of the stages, in dense decoding.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    aux_logits: tuple[Tensor, ...] | None = None
    losses: tuple[Tensor, ...] | None = None
    logit_classes: Tensor | None = None
    kept_classes: Tensor | None = None
    cost_map: Tensor | None = None
    dense_embeddings: Tensor | None = None
    class_embeddings: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    hidden_states = property(lambda self: self.encoder_hidden_states)

    def all_logits(self) -> Tensor:
        """The logits (B, T, 8h, 8w) of every class; for a rejected one, so low that their sigmoid is 0."""
        assert self.logits is not None
        if self.logit_classes is None or self.kept_classes is None:
            return self.logits
        return restore_rejected_classes(self.logits, self.logit_classes, self.kept_classes.shape[-1])


# Hierarchical encoder (section 3.2) ----------------------------------------------------------------------------------


class SEDImageEncoder(nn.Module):
    """Hierarchical encoder: CLIP's ConvNeXt, with its projection applied to every location of its last stage."""

    def __init__(self, config: SEDVisionConfig, projection_dim: int) -> None:
        super().__init__()
        self.config = config
        arguments = {"drop_path_rate": config.drop_path_rate, **config.model_args}
        self.trunk = timm.create_model(config.architecture, num_classes=0, global_pool="", **arguments)
        if not isinstance(self.trunk, ConvNeXt):
            raise ValueError(f"architecture={config.architecture!r}: expected a ConvNeXt")
        self.hidden_sizes = [info["num_chs"] for info in self.trunk.feature_info]
        width, drop = self.hidden_sizes[-1], (config.projection_dropout, 0.0)
        linear = partial(nn.Linear, width, projection_dim, bias=False)
        mlp = partial(Mlp, width, 2 * projection_dim, projection_dim, bias=(True, False), drop=drop)
        self.projection: nn.Module = linear() if config.projection == "linear" else mlp()
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] = checkpoint

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Encode images (B, 3, 32h, 32w); for the output see `get_image_features`."""
        hidden_states = []
        features = self.trunk.stem(pixel_values)
        for stage in self.trunk.stages:
            features = stage.downsample(features)
            for block in stage.blocks:
                if self.gradient_checkpointing and self.training:
                    if any(parameter.requires_grad for parameter in block.parameters()):
                        features.requires_grad_()  # without which reentrant checkpointing gives the block no gradients
                    features = self._gradient_checkpointing_func(block.__call__, features)
                else:
                    features = block(features)
            hidden_states.append(features)
        # Each location is an image of its own: CLIP's head without its global pooling.
        dense_embeddings = self.projection(self.trunk.head.norm(features).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return BaseModelOutputWithPooling(features, dense_embeddings, tuple(hidden_states))


# Cost map (section 3.2) ----------------------------------------------------------------------------------------------


class SEDCostMap(NamedTuple):
    """Cost map: cosine similarity of every location and every prompt of every class, with no temperature.

    Only the embeddings are held: costs of a few classes are computed when they are needed, which is cheaper.
    """

    dense_embeddings: Tensor  # (B, D, h, w), of length 1
    class_embeddings: Tensor  # (T, P, D), of length 1

    @classmethod
    def of(cls, dense_embeddings: Tensor, class_embeddings: Tensor) -> "SEDCostMap":
        """The cost map of dense embeddings of any length."""
        return cls(F.normalize(dense_embeddings, dim=1), class_embeddings.to(dense_embeddings))

    def of_classes(self, classes: Tensor) -> Tensor:
        """Cosine similarities (t, B, h, w, P) of some classes (t,)."""
        return torch.einsum("bdhw,tpd->tbhwp", self.dense_embeddings, self.class_embeddings[classes]).contiguous()

    def compute(self) -> Tensor:
        """Cosine similarities (B, T, P, h, w) of all classes."""
        return torch.einsum("bdhw,tpd->btphw", *self)


# Gradual fusion decoder (section 3.3): feature aggregation module ----------------------------------------------------


def for_each_class(layer: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Apply a layer on images (N, C, H, W) to every class of features (t, B, H, W, C)."""
    images = layer(features.flatten(0, 1).permute(0, 3, 1, 2))
    return images.permute(0, 2, 3, 1).unflatten(0, features.shape[:2])


class SEDSpatialAggregation(GradientCheckpointingLayer):
    """Spatial-level fusion of the feature aggregation module: a large-kernel ConvNeXt block, for each class."""

    def __init__(self, config: SEDConfig, hidden_size: int) -> None:
        super().__init__()
        kernel_size = config.decoder_kernel_size
        self.depthwise = nn.Conv2d(hidden_size, hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(hidden_size, config.decoder_mlp_ratio * hidden_size)
        self.layer_scale = nn.Parameter(torch.full((hidden_size,), float(config.layer_scale_init_value)))

    def forward(self, features: Tensor) -> Tensor:
        """Features (t, B, H, W, C) to the same shape."""
        residual = self.mlp(self.norm(for_each_class(self.depthwise, features)))
        return torch.addcmul(features, residual, self.layer_scale)


def linear_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Linear attention (Katharopoulos et al., 2020) of tokens (N, T, C), to the same shape; the cost is linear in T."""
    num_classes, width = key.shape[-2:]
    query, key = positive_features(query), positive_features(key)
    # One product for all heads and their normalisers, with zeros where heads would mix, is faster than one for each.
    heads = torch.eye(num_heads, dtype=key.dtype, device=key.device).repeat_interleave(width // num_heads, dim=0)
    same_head = heads @ heads.T
    # Means rather than sums over classes, which would overflow float16. (`beta=0`: the first argument does not count.)
    context = torch.baddbmm(same_head, key.transpose(1, 2), value, beta=0, alpha=1 / num_classes)
    context = torch.cat([context * same_head, key.mean(1).unsqueeze(-1) * heads], dim=-1)
    mixed, normalizer = (query @ context).split([width, num_heads], dim=-1)
    normalizer = (normalizer + 1e-6 / num_classes).clamp(min=torch.finfo(key.dtype).tiny)  # float16 rounds it to 0
    return (mixed.unflatten(-1, (num_heads, -1)) / normalizer.unsqueeze(-1)).flatten(-2)


def positive_features(tokens: Tensor) -> Tensor:
    """elu(x) + 1, the feature map of linear attention."""
    if tokens.device.type == "cpu":  # whose elu is seven times slower than this
        return tokens.clamp(max=0).exp() + tokens.relu()
    return F.elu(tokens) + 1


def full_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Softmax attention of tokens (N, T, C), to the same shape."""
    heads = [part.unflatten(-1, (num_heads, -1)).transpose(-2, -3) for part in (query, key, value)]
    return F.scaled_dot_product_attention(*heads).transpose(-2, -3).flatten(-2)


CLASS_ATTENTION = {"linear": linear_attention, "full": full_attention}


class SEDClassAggregation(GradientCheckpointingLayer):
    """Class-level fusion of the feature aggregation module: at each location, a transformer layer over the classes.

    The only part of the decoder in which classes see each other; but no location sees another.
    """

    def __init__(self, config: SEDConfig, hidden_size: int) -> None:
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.attend = CLASS_ATTENTION[config.class_attention_type]
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = Mlp(hidden_size, config.decoder_mlp_ratio * hidden_size, act_layer=partial(nn.ReLU, inplace=True))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix the T classes at each of n locations: (T, n, C) to the same shape."""
        normed = self.attention_norm(tokens)
        query, key, value = (layer(normed).transpose(0, 1) for layer in (self.query, self.key, self.value))
        tokens = tokens + self.attend(query, key, value, self.num_attention_heads).transpose(0, 1)
        return tokens + self.mlp(self.mlp_norm(tokens))


# Gradual fusion decoder: skip-layer fusion module --------------------------------------------------------------------


class SEDSkipLayerFusion(nn.Module):
    """Skip-layer fusion module: doubles the resolution and merges skip guidance and cost guidance, for each class.

    As a formula, `fuse(cat([upsample(features), skip_guidance, cost_guidance]))`. The first convolution of `fuse` is
    linear in each of the three: of the skip guidance it is the same for every class, and after `upsample`, with nothing
    between them, it is one transposed convolution.
    """

    def __init__(self, config: SEDConfig, hidden_size: int, out_size: int, skip_size: int, cost_size: int) -> None:
        super().__init__()
        num_groups = out_size // config.group_norm_group_size
        self.sizes = [hidden_size - skip_size, skip_size, cost_size]
        self.upsample: Any = nn.ConvTranspose2d(hidden_size, hidden_size - skip_size, kernel_size=2, stride=2)
        self.fuse: Any = nn.Sequential(
            nn.Conv2d(hidden_size + cost_size, out_size, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(num_groups, out_size),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_size, out_size, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(num_groups, out_size),
            nn.ReLU(inplace=True),
        )

    def share(self, skip_guidance: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute what all classes share, for skip guidance (B, S, 2H, 2W); in every forward, to follow the weights.

        That is what skip guidance and the bias of `upsample` add to the first convolution (B, C_out, 2H, 2W), and both
        layers as one transposed convolution (C, C_out, 4, 4). Where something wraps them, as LoRA does: the skip
        guidance, and `None`.
        """
        if not (is_plain(self.upsample) and is_plain(self.fuse) and is_plain(self.fuse[0])):
            return skip_guidance, None
        upsampled, skip, _ = self.fuse[0].weight.split(self.sizes, dim=1)
        # The bias is the same everywhere, but for the zeros beyond the border.
        bias = self.upsample.bias.view(1, -1, 1, 1).expand(skip_guidance.shape[0], -1, *skip_guidance.shape[2:])
        weight = torch.cat([upsampled, skip], 1).contiguous(memory_format=torch.channels_last)  # and so what it makes
        shared = F.conv2d(torch.cat([bias, skip_guidance], 1), weight, padding=1)
        return shared, F.conv2d(self.upsample.weight, upsampled, padding=2)

    def forward(self, features: Tensor, cost_guidance: Tensor, shared: Tensor, kernel: Tensor | None) -> Tensor:
        """Merge features (t, B, H, W, C) and cost guidance (t, B, 2H, 2W, G) with what `share` gives."""
        if kernel is None:
            skip_guidance = shared.permute(0, 2, 3, 1).expand(features.shape[0], -1, -1, -1, -1)
            upsampled = for_each_class(self.upsample, features)
            return for_each_class(self.fuse, torch.cat([upsampled, skip_guidance, cost_guidance], dim=-1))
        fused = for_each_class(partial(F.conv_transpose2d, weight=kernel, stride=2, padding=1), features)
        cost_kernel = self.fuse[0].weight[:, -self.sizes[-1] :]
        fused.add_(for_each_class(partial(F.conv2d, weight=cost_kernel, padding=1), cost_guidance))
        fused.add_(shared.permute(0, 2, 3, 1))
        return for_each_class(self.fuse[1:], fused)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is its weights and no more: no adapter, parametrization or hook, and nothing that offloads it."""
    is_wrapped = layer._forward_pre_hooks or layer._forward_hooks or hasattr(layer, "_hf_hook")
    return type(layer) in (nn.Conv2d, nn.ConvTranspose2d, nn.Sequential) and not is_wrapped


# Gradual fusion decoder: cost embedding, stages and category early rejection -----------------------------------------


class SEDDecoderStage(nn.Module):
    """One stage: feature aggregation (spatial, then class), then skip-layer fusion at twice the resolution."""

    def __init__(self, config: SEDConfig, index: int, skip_channels: int) -> None:
        super().__init__()
        self.config = config
        hidden_size, out_size = config.decoder_hidden_sizes[index : index + 2]
        skip_size, cost_size = config.skip_guidance_sizes[index], config.cost_guidance_sizes[index]
        cost_channels = config.cost_guidance_sizes[index - 1] if index else len(config.prompt_templates)
        self.widest = max(config.decoder_mlp_ratio * hidden_size, 4 * out_size)  # most channels made of a location
        self.spatial_block = SEDSpatialAggregation(config, hidden_size)
        self.class_attention = SEDClassAggregation(config, hidden_size)
        self.skip_guidance = nn.Sequential(nn.Conv2d(skip_channels, skip_size, 3, padding=1), nn.ReLU(inplace=True))
        upsample = nn.ConvTranspose2d(cost_channels, cost_size, kernel_size=2, stride=2)
        self.cost_guidance = nn.Sequential(upsample, nn.ReLU(inplace=True))
        self.skip_fusion = SEDSkipLayerFusion(config, hidden_size, out_size, skip_size, cost_size)

    def aggregate(self, features: list[Tensor], chunks: Chunks) -> None:
        """Feature aggregation: refine features (T, B, H, W, C) of all classes, held as a list of parts."""
        # features + class_attention(features): the latter has a residual, so the input counts twice, as officially.
        chunks.update_classes(self.spatial_block, features, self.widest)
        pooled = [self.pool(part) for part in features]
        if pooled[0] is features[0]:
            chunks.update_locations(self.class_attention, features, self.widest, add=True)
            return
        chunks.update_locations(self.class_attention, pooled, self.widest)
        resize = partial(F.interpolate, size=features[0].shape[2:4], mode="bilinear", align_corners=True)
        for index, part in enumerate(pooled):
            features[index] = features[index] + for_each_class(resize, part)

    def pool(self, features: Tensor) -> Tensor:
        """The mean of each window of locations of (t, B, H, W, C)."""
        size = self.config.train_pooling_size if self.training else self.config.inference_pooling_size
        window = tuple(min(size, length) for length in features.shape[2:4])
        return features if window == (1, 1) else for_each_class(partial(F.avg_pool2d, kernel_size=window), features)


class SEDDecoder(nn.Module):
    """Gradual fusion decoder: from a cost map to a logit for each class and pixel."""

    def __init__(self, config: SEDConfig, encoder_hidden_sizes: list[int]) -> None:
        super().__init__()
        self.config = config
        kernel_size, widths = config.cost_embedding_kernel_size, config.decoder_hidden_sizes
        self.cost_embedding = nn.Conv2d(len(config.prompt_templates), widths[0], kernel_size, padding=kernel_size // 2)
        self.auxiliary_heads: Any = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for width in widths[:-1])
        self.stages: Any = nn.ModuleList(
            SEDDecoderStage(config, index, skip_channels)
            for index, skip_channels in enumerate(reversed(encoder_hidden_sizes[:-1]))
        )
        self.head: Any = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.chunks = Chunks(config.class_chunk_size)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] = checkpoint

    def forward(
        self,
        cost_map: SEDCostMap,
        encoder_hidden_states: Sequence[Tensor],
        early_rejection_topk: int | None = None,
        output_hidden_states: bool = False,
    ) -> SEDSemanticSegmentationOutput:
        """Decode the cost map of B images and T classes; hidden states, of each stage, come in dense decoding only."""
        # Detached: the image encoder learns through the cost map only.
        skip_features = [features.detach() for features in reversed(encoder_hidden_states[:-1])]
        decode = partial(self.chunks.retry, self.decode, num_classes=cost_map.class_embeddings.shape[0])
        if early_rejection_topk is None:
            return decode(cost_map, skip_features, None, output_hidden_states)
        # Each image keeps classes of its own.
        maps = (SEDCostMap(part, cost_map.class_embeddings) for part in cost_map.dense_embeddings.split(1))
        skips = zip(*(features.split(1) for features in skip_features), strict=True)
        return join_images([decode(*image, early_rejection_topk) for image in zip(maps, skips, strict=True)])

    @torch.compiler.disable(reason="its chunks would be unrolled; `compile_decoder` compiles what runs for each")
    def decode(
        self, cost_map: SEDCostMap, skip_features: Sequence[Tensor], topk: int | None, keep_hidden: bool = False
    ) -> SEDSemanticSegmentationOutput:
        """Decode B images, or with category early rejection (section 3.4) a single one; see `forward`."""
        classes = torch.arange(cost_map.class_embeddings.shape[0], device=cost_map.class_embeddings.device)
        kept = classes.new_zeros(1, len(self.stages), *classes.shape, dtype=torch.bool)
        aux_logits, states = [], []
        locations = cost_map.dense_embeddings[:, 0]
        channel_bytes = locations.numel() * locations.element_size()
        class_bytes = [channel_bytes * 4**index * stage.widest for index, stage in enumerate(self.stages)]
        embed = partial(self.chunks.map, partial(self.embed, *cost_map), size=class_bytes[0])

        # With rejection the cost embedding of all classes is never held: that of the survivors is computed again.
        features, logits = embed(classes, keep=topk is None)
        for index, stage in enumerate(self.stages):
            if topk is None:
                aux_logits.append(logits)
            else:
                best = logits[0].topk(min(topk, len(classes)), dim=0).indices.flatten()  # places in `classes`
                features, survivors = self.chunks.select(features, torch.zeros_like(classes).index_fill_(0, best, 1))
                classes = classes[survivors]
                kept[0, index].index_fill_(0, classes, True)
                features = features or embed(classes)[0]  # before the first stage there are none yet
            if keep_hidden:
                states.append(torch.cat(features))

            stage.aggregate(features, self.chunks)
            shared = stage.skip_fusion.share(stage.skip_guidance(skip_features[index]))
            fuse = partial(self.checkpointed, self.fuse_skip_layers, index, *cost_map, *shared)
            keep = keep_hidden or index + 1 < len(self.stages)
            features, logits = self.chunks.map(fuse, classes, class_bytes[index], features, keep)
        if topk is not None:
            return SEDSemanticSegmentationOutput(logits=logits, logit_classes=classes, kept_classes=kept)
        if keep_hidden:
            states = [part.permute(1, 0, 4, 2, 3) for part in (*states, torch.cat(features))]
        hidden = tuple(states) or None
        return SEDSemanticSegmentationOutput(logits=logits, aux_logits=tuple(aux_logits), decoder_hidden_states=hidden)

    def embed(self, dense_embeddings: Tensor, class_embeddings: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Cost embedding (t, B, h, w, C) and first auxiliary logits (t, B, h, w) of some classes (t,)."""
        costs = SEDCostMap(dense_embeddings, class_embeddings).of_classes(classes)
        features = for_each_class(self.cost_embedding, costs)
        if self.gradient_checkpointing and self.training:
            features.requires_grad_()  # without which reentrant checkpointing gives the stages no gradients
        return features, self.predict(0, features)

    def fuse_skip_layers(
        self,
        index: int,
        dense_embeddings: Tensor,
        class_embeddings: Tensor,
        shared: Tensor,
        kernel: Tensor | None,
        classes: Tensor,
        features: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Skip-layer fusion of a stage for some classes (t,): their features and logits at twice the resolution."""
        # Each stage enlarges the cost guidance of the one before: computed again, which is cheaper than to hold.
        cost_guidance = SEDCostMap(dense_embeddings, class_embeddings).of_classes(classes)
        for stage in self.stages[: index + 1]:
            cost_guidance = for_each_class(stage.cost_guidance, cost_guidance)
        features = self.stages[index].skip_fusion(features, cost_guidance, shared, kernel)
        return features, self.predict(index + 1, features)

    def predict(self, index: int, features: Tensor) -> Tensor:
        """Logits (t, B, H, W) of the head before a stage, or after the last. Auxiliary heads train only themselves."""
        is_last = index == len(self.auxiliary_heads)
        head, features = (self.head, features) if is_last else (self.auxiliary_heads[index], features.detach())
        if features.device.type != "cpu" or features.dtype != torch.float32 or not is_plain(head):
            return for_each_class(head, features).squeeze(-1)
        # One convolution for each channel and their sum: on a CPU five times faster than a convolution to one channel.
        convolve = partial(F.conv2d, weight=head.weight.transpose(0, 1), padding=1, groups=features.shape[-1])
        return for_each_class(convolve, features).sum(-1) + head.bias

    def checkpointed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, with checkpointing. Of tensors, reentrant checkpointing follows only its arguments."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(function, *arguments)
        return function(*arguments)


def join_images(images: Sequence[Any]) -> SEDSemanticSegmentationOutput:
    """One output of several images, with logits of all classes that survive in some image."""
    if len(images) == 1:
        return images[0]
    kept_classes = torch.cat([image.kept_classes for image in images])
    classes = kept_classes[:, -1].any(0).nonzero().squeeze(1)
    logits = [
        restore_rejected_classes(image.logits, torch.searchsorted(classes, image.logit_classes), len(classes))
        for image in images
    ]
    return SEDSemanticSegmentationOutput(logits=torch.cat(logits), logit_classes=classes, kept_classes=kept_classes)


def restore_rejected_classes(logits: Tensor, kept: Tensor, num_classes: int) -> Tensor:
    """Spread (B, K, H, W) logits of the classes `kept` over (B, T, H, W); the others get probability exactly 0."""
    if len(kept) == num_classes:
        return logits
    # The lowest finite number rather than -inf, whose interpolation gives NaN.
    restored = logits.new_full((len(logits), num_classes, *logits.shape[2:]), torch.finfo(logits.dtype).min)
    return restored.index_copy_(1, kept, logits)


# Model ---------------------------------------------------------------------------------------------------------------


class SEDPreTrainedModel(ClassInputs):
    """Loading, saving and initialisation; image and text encoder."""

    config: SEDConfig
    base_model_prefix = "sed"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConvNeXtBlock", "CLIPTextEmbeddings", "CLIPEncoderLayer", "SEDDecoder"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """What SED's training starts from: the trunk as timm initialises it, the rest as torch does."""
        image_encoder = self.base_model.image_encoder
        if isinstance(module, nn.Conv2d | nn.Linear) and module in set(image_encoder.trunk.modules()):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.LayerNorm | nn.GroupNorm):
            module.reset_parameters()
        elif isinstance(module, ConvNeXtBlock) and module.gamma is not None:
            init.constant_(module.gamma, image_encoder.config.model_args.get("ls_init_value", 1e-6))
        elif isinstance(module, GlobalResponseNorm):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SEDSpatialAggregation):
            init.constant_(module.layer_scale, self.config.layer_scale_init_value)
        elif isinstance(module, SEDModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what no checkpoint has provided, and freeze what the configuration freezes."""
        is_first_time = not getattr(self, "_is_hf_initialized", False)
        super().initialize_weights()
        if is_first_time:
            init_text_encoder_as_open_clip(self.base_model.text_encoder)
        # Loading makes all trainable. No gradient reaches the temperature, which the cost map does not use.
        self.base_model.logit_scale.requires_grad_(False)
        if self.config.freeze_text_encoder:
            self.base_model.text_encoder.requires_grad_(False)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None
    ) -> BaseModelOutputWithPooling:
        """Encode images (B, 3, H, W), with an H and a W that are multiples of 32.

        Returns:
            `last_hidden_state` is res5 (B, C, h, w); `pooler_output`, in which nothing is pooled, is the embedding
            (B, D, h, w) of every location, not normalised; `hidden_states`, on request, are res2, res3, res4, res5.
        """
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != 3 or any(not size or size % ENCODER_STRIDE for size in shape[2:]):
            expected = f"(batch, 3, height, width) with multiples of {ENCODER_STRIDE}"
            raise ValueError(f"pixel_values: expected {expected}, got {shape}")
        dtype = self.base_model.logit_scale.dtype
        features = self.image_encoder(pixel_values.to(dtype, memory_format=torch.channels_last))
        if output_hidden_states or (output_hidden_states is None and self.config.output_hidden_states):
            return features
        return BaseModelOutputWithPooling(features.last_hidden_state, features.pooler_output)

    def get_class_embeddings(
        self, input_ids: Tensor, class_ids: Tensor | None = None, num_synonyms: Tensor | None = None
    ) -> Tensor:
        """Encode class names: `get_class_embeddings(**processor(text=["cat", "dog, puppy"], return_tensors="pt"))`.

        Every prompt is encoded, normalised, averaged over the synonyms of a class and normalised again: (T, P, D).
        Templates are not averaged: they become the channels of the cost map.

        Args:
            input_ids: (S, P, L) tokens of S synonyms in P templates; what follows the end-of-text token is padding.
            class_ids: (S,) the class of each synonym. Defaults to one synonym a class.
            num_synonyms: (S,) in each row S, which tells when rows are missing.
        """
        self.check_tokens(input_ids, num_synonyms)
        if class_ids is None:
            class_ids = torch.arange(len(input_ids), device=input_ids.device)
        with torch.set_grad_enabled(self.trains_text_encoder() and torch.is_grad_enabled()):
            prompts = F.normalize(encode_prompts(self.base_model.text_encoder, input_ids.flatten(0, 1)), dim=-1)
            # A sum, since the length of the mean is normalised away.
            summed = prompts.new_zeros(int(class_ids.max()) + 1, input_ids.shape[1], prompts.shape[-1])
            return F.normalize(summed.index_add(0, class_ids, prompts.unflatten(0, input_ids.shape[:2])), dim=-1)


class SEDModel(SEDPreTrainedModel):
    """SED without its decoder: image encoder, text encoder and cost map."""

    def __init__(self, config: SEDConfig) -> None:
        super().__init__(config)
        self.image_encoder = SEDImageEncoder(config.vision_config, config.projection_dim)  # type: ignore[arg-type]
        dtype = torch.get_default_dtype()  # of all the model, not that of a saved text configuration
        self.text_encoder = CLIPTextModelWithProjection._from_config(config.text_config, dtype=dtype)
        # Of one element rather than a scalar, which FSDP cannot shard.
        self.logit_scale = nn.Parameter(torch.tensor([float(config.logit_scale_init_value)]))
        size = (config.num_saved_classes or 0, len(config.prompt_templates), config.projection_dim)
        self.register_buffer("class_embeddings", torch.zeros(size) if size[0] else None)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        class_ids: Tensor | None = None,
        class_embeddings: Tensor | None = None,
        num_synonyms: Tensor | None = None,
    ) -> SEDSemanticSegmentationOutput:
        """Compare images with classes; arguments as those of [`SEDForSemanticSegmentation`]."""
        image_features = self.get_image_features(pixel_values, output_hidden_states=True, return_dict=True)
        class_embeddings = self.find_classes(input_ids, class_ids, num_synonyms, class_embeddings)
        cost_map = SEDCostMap.of(image_features.pooler_output, class_embeddings)
        return SEDSemanticSegmentationOutput(
            cost_map=cost_map.compute(),
            dense_embeddings=image_features.pooler_output,
            class_embeddings=cost_map.class_embeddings,
            encoder_hidden_states=image_features.hidden_states,
        )


class SEDForSemanticSegmentation(SEDPreTrainedModel):
    """SED: labels every pixel with one of T classes that are given as text.

    ```python
    inputs = processor(images=image, text=["cat", "dog, puppy", "grass"], return_tensors="pt")
    outputs = model(**inputs)
    segmentation = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
    ```
    """

    def __init__(self, config: SEDConfig) -> None:
        super().__init__(config)
        self.sed = SEDModel(config)
        self.decoder = SEDDecoder(config, self.sed.image_encoder.hidden_sizes)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        class_ids: Tensor | None = None,
        class_embeddings: Tensor | None = None,
        labels: Tensor | None = None,
        early_rejection_topk: int | None = None,
        output_hidden_states: bool | None = None,
        num_synonyms: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
    ) -> SEDSemanticSegmentationOutput:
        """Segment images. The classes come as the processor's text inputs, as `class_embeddings`, or of `set_classes`.

        Args:
            pixel_values: (B, 3, H, W); H and W are multiples of 32.
            input_ids, class_ids, num_synonyms: As [`SEDProcessor`] gives them; see [`SEDModel.get_class_embeddings`].
            class_embeddings: (T, P, D), of [`SEDModel.get_class_embeddings`].
            labels: (B, H', W') class of each pixel, or `config.ignore_index`; of any size.
            early_rejection_topk: Keep the classes that are among the k best at some pixel; 0 decodes every class. Not
                with labels: the loss is of all classes. By default as the configuration says, with logits of all.
            output_hidden_states: Return intermediate results too. Defaults to `config.output_hidden_states`.
            num_items_in_batch: Pixels to divide the summed loss by, for a part of a batch, as [`Trainer`] gives it.
            output_attentions: Accepted as of every model; none are returned.
            return_dict: `False` returns a tuple. Defaults to `config.return_dict`.
        """
        topk = self.find_topk(early_rejection_topk, labels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        image_features = self.get_image_features(pixel_values, output_hidden_states=True, return_dict=True)
        class_embeddings = self.find_classes(input_ids, class_ids, num_synonyms, class_embeddings, labels)
        cost_map = SEDCostMap.of(image_features.pooler_output, class_embeddings)
        output = self.decoder(cost_map, image_features.hidden_states, topk, output_hidden_states)
        if labels is not None:
            all_logits = (output.logits, *output.aux_logits)
            output["losses"] = segmentation_losses(all_logits, labels, self.config, num_items_in_batch)
            output["loss"] = torch.stack(output.losses).sum()
        if early_rejection_topk is None:  # `Trainer.predict` joins batches, which need the same classes
            output["logits"], output["logit_classes"] = output.all_logits(), None
        if output_hidden_states:
            output["cost_map"] = cost_map.compute()
            output["dense_embeddings"] = image_features.pooler_output
            output["class_embeddings"] = cost_map.class_embeddings
            output["encoder_hidden_states"] = image_features.hidden_states
        return SEDSemanticSegmentationOutput(**output)  # in the order of the fields

    def find_topk(self, topk: int | None, labels: Tensor | None) -> int | None:
        """How many classes early rejection keeps at a pixel, or `None` for dense decoding."""
        if topk is None and labels is None:
            topk = self.config.early_rejection_topk
        if topk is not None and (not isinstance(topk, int) or topk < 0 or (topk and labels is not None)):
            raise ValueError(f"early_rejection_topk={topk}: expected a whole number, and 0 (every class) with labels")
        return topk or None

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the loss is of the labels other than -100, which [`Trainer`] counts as `num_items_in_batch`."""
        return self.config.ignored_as_negative != (self.config.ignore_index == -100)

    def compile_decoder(self, **options: Any) -> None:
        """Compile what the decoder does for each class by `torch.compile`, in place, for any sizes and classes."""
        if "isolate_recompiles" in signature(torch.compile).parameters:  # else the stages would share torch's limit
            options = {"isolate_recompiles": True, **options}
        for stage in self.decoder.stages:
            for part in (stage.spatial_block, stage.class_attention, stage.skip_fusion):
                part.compile(**{"dynamic": True, **options})

    image_encoder = property(lambda self: self.sed.image_encoder)
    text_encoder = property(lambda self: self.sed.text_encoder)
    logit_scale = property(lambda self: self.sed.logit_scale)


__all__ = ["SEDForSemanticSegmentation", "SEDModel", "SEDPreTrainedModel", "SEDSemanticSegmentationOutput"]
