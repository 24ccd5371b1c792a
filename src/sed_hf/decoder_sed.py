"""SED's gradual fusion decoder: from a cost map to a logit for each class and pixel (section 3.3 of the paper).

Its cost is its class axis. Everything but class attention treats each class on its own, and class attention treats each
location on its own. So every stage runs over chunks of classes, and its attention over tiles of locations, that fit the
cache; the result does not depend on their sizes. Between stages only the features are held. A program that is exported
takes all classes and locations at once, since their numbers stay open.

Shapes are written with B images, T classes, t classes of a chunk, P prompt templates, D embedding channels and
(h, w) = input size / 32. Features have channels last in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import logging

from .chunking_sed import allocatable_bytes, is_out_of_memory, require_room
from .configuration_sed import SEDConfig

logger = logging.get_logger(__name__)

# Activations of a chunk: what stays in the cache of a CPU core, and what fills a GPU.
CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**28}
# Features that are held together; more than the most (2**25) for which glibc ever keeps freed memory for itself.
GROUP_BYTES = 2**26
# Activations that a chunk needs at once, as multiples of the largest.
ACTIVATIONS_AT_ONCE = 4


def compute_cost_map(dense_embeddings: Tensor, class_embeddings: Tensor) -> Tensor:
    """Cosine similarity of every location and every prompt of every class, with no temperature (section 3.2).

    Args:
        dense_embeddings: (B, D, h, w), of length 1.
        class_embeddings: (T, P, D), of length 1.

    Returns:
        (B, T, P, h, w), with channels last in memory.
    """
    cost_map = torch.einsum("bdhw,tpd->bthwp", dense_embeddings, class_embeddings)
    return cost_map.contiguous().permute(0, 1, 4, 2, 3)


def for_each_class(layer: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Apply a layer on (N, C, H, W) to every class of (B, t, C, H, W) on its own."""
    return layer(features.flatten(0, 1)).unflatten(0, features.shape[:2])


def may_write_in_place() -> bool:
    """Whether no gradient would be lost, and no program is being exported, whose operations are to have no effects."""
    return not (torch.is_grad_enabled() or torch.compiler.is_exporting())


def weights_of(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer; fetched first if accelerate offloads them while the layer does not run."""
    hook = getattr(layer, "_hf_hook", None)
    if hook is None:
        return layer.weight, layer.bias
    hook.pre_forward(layer)
    weights = layer.weight, layer.bias
    hook.post_forward(layer, None)
    return weights


def resize_bilinear(features: Tensor, size: Sequence[int]) -> Tensor:
    """(B, t, C, h, w) to (B, t, C, *size), corner to corner."""
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return for_each_class(lambda every: F.interpolate(every, size=size, mode="bilinear", align_corners=True), features)


# Class attention -----------------------------------------------------------------------------------------------------


def positive_features(tokens: Tensor) -> Tensor:
    """elu(x) + 1, in operations that a CPU has fast kernels for."""
    return tokens.clamp(max=0).exp() + tokens.relu()


def linear_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Linear attention with feature map elu(x) + 1 (Katharopoulos et al., 2020); the cost is linear in T.

    Args:
        query, key, value: (..., T, C).
        num_heads: Heads that the channels are split into.

    Returns:
        (..., T, C).
    """
    num_classes, width = key.shape[-2:]
    query = positive_features(query)
    key = positive_features(key) / num_classes  # means rather than sums over classes, which would overflow float16
    eps = (key.new_tensor(1e-6) / num_classes).clamp(min=torch.finfo(key.dtype).tiny)
    # One product of all channels, of which those of the same head count, is faster than a small one for each head.
    heads = torch.eye(num_heads, dtype=key.dtype, device=key.device).repeat_interleave(width // num_heads, dim=0)
    normalizer = query @ (key.sum(-2).unsqueeze(-1) * heads) + eps
    mixed = query @ (key.transpose(-1, -2) @ value * (heads @ heads.T))
    return (mixed.unflatten(-1, (num_heads, -1)) / normalizer.unsqueeze(-1)).flatten(-2)


def full_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Softmax attention; arguments and result as those of [`linear_attention`]."""
    # As four axes, the only ones that torch has fast kernels for, and ONNX any.
    heads = [part.flatten(0, -3).unflatten(-1, (num_heads, -1)).transpose(-2, -3) for part in (query, key, value)]
    return F.scaled_dot_product_attention(*heads).transpose(-2, -3).reshape(query.shape)


CLASS_ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "linear": linear_attention,
    "full": full_attention,
}


class SEDClassAttention(nn.Module):
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
        """Mix the T classes at each of N locations: (B, N, T, C) to the same shape."""
        normed = self.attention_norm(tokens)
        mixed = self.attend(self.query(normed), self.key(normed), self.value(normed), self.num_attention_heads)
        tokens = tokens + mixed
        return tokens + self.mlp(self.mlp_norm(tokens))


# A stage -------------------------------------------------------------------------------------------------------------


class SEDConvNextBlock(nn.Module):
    """Spatial-level fusion of the feature aggregation module: a large-kernel ConvNeXt block, for each class."""

    def __init__(self, config: SEDConfig, hidden_size: int) -> None:
        super().__init__()
        kernel_size = config.decoder_kernel_size
        self.depthwise = nn.Conv2d(hidden_size, hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(hidden_size, config.decoder_mlp_ratio * hidden_size)
        self.layer_scale = nn.Parameter(torch.full((hidden_size,), float(config.layer_scale_init_value)))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        residual = self.depthwise(features).permute(0, 2, 3, 1)
        residual = self.layer_scale * self.mlp(self.norm(residual))
        return features + residual.permute(0, 3, 1, 2)


class SharedFusion(NamedTuple):
    """What the skip-layer fusion of every class shares, in a forward.

    Attributes:
        fused_skip_guidance: (B, C_out, 2H, 2W), what the skip guidance adds to the first convolution.
        upsampling_kernel: (C, C_out, 4, 4), `upsample` and the first convolution as one transposed convolution.
        cost_kernel: (C_out, G, 3, 3), of the first convolution for the cost guidance.
    """

    fused_skip_guidance: Tensor
    upsampling_kernel: Tensor
    cost_kernel: Tensor


class SEDSkipLayerFusion(nn.Module):
    """Skip-layer fusion module: doubles the resolution and merges skip guidance and cost guidance, for each class.

    As a formula, `fuse(cat([upsample(features), skip_guidance, cost_guidance]))`. The first convolution of `fuse` is
    linear in each of the three: of the skip guidance it is the same for every class, and after `upsample`, with nothing
    between them, it is one transposed convolution. The kernels are derived in every forward, so that they follow the
    weights.
    """

    def __init__(self, config: SEDConfig, hidden_size: int, out_size: int, skip_size: int, cost_size: int) -> None:
        super().__init__()
        num_groups = out_size // config.group_norm_group_size
        self.sizes = [hidden_size - skip_size, skip_size, cost_size]
        self.upsample = nn.ConvTranspose2d(hidden_size, hidden_size - skip_size, kernel_size=2, stride=2)
        self.fuse = nn.Sequential(
            nn.Conv2d(hidden_size + cost_size, out_size, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(num_groups, out_size),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_size, out_size, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(num_groups, out_size),
            nn.ReLU(inplace=True),
        )

    def share(self, skip_guidance: Tensor) -> SharedFusion:
        """Compute what all classes share, for skip guidance (B, S, 2H, 2W)."""
        upsample, bias = weights_of(self.upsample)
        # The bias of `upsample` is the same everywhere, but for the zeros beyond the border.
        bias_map = bias.view(1, -1, 1, 1).expand(skip_guidance.shape[0], -1, *skip_guidance.shape[2:])
        first_kernel = self.first_kernel(like=upsample)
        upsampled, skip, cost = first_kernel.split(self.sizes, dim=1)
        dtype = torch.promote_types(upsample.dtype, torch.float32)  # so that half precision rounds once
        return SharedFusion(
            F.conv2d(torch.cat([bias_map, skip_guidance], dim=1), torch.cat([upsampled, skip], dim=1), padding=1),
            F.conv2d(upsample.to(dtype), upsampled.to(dtype), padding=2).to(upsample.dtype),
            cost,
        )

    def first_kernel(self, like: Tensor) -> Tensor:
        """The kernel (C_out, C_in, 3, 3) of the first convolution of `fuse`."""
        convolution: Any = self.fuse[0]
        if type(convolution) is nn.Conv2d and not hasattr(convolution, "_hf_hook"):
            return convolution.weight
        # Whatever wraps the layer (LoRA, offloaded weights): its kernel is what it makes of an impulse in each channel.
        impulses = torch.eye(sum(self.sizes), dtype=like.dtype, device=like.device)[..., None, None]
        return convolution(F.pad(impulses, (1, 1, 1, 1))).flip(2, 3).transpose(0, 1)

    def forward(self, features: Tensor, cost_guidance: Tensor, shared: SharedFusion) -> Tensor:
        """Merge a chunk of classes.

        Args:
            features: (B, t, C, H, W).
            cost_guidance: (B, t, G, 2H, 2W).
            shared: Of `share`.

        Returns:
            (B, t, C_out, 2H, 2W).
        """
        fused = F.conv_transpose2d(features.flatten(0, 1), shared.upsampling_kernel, stride=2, padding=1)
        fused += F.conv2d(cost_guidance.flatten(0, 1), shared.cost_kernel, padding=1)
        # In place: of a sum with a single class, torch would not see that channels are last.
        fused.unflatten(0, features.shape[:2]).add_(shared.fused_skip_guidance.unsqueeze(1))
        return self.fuse[1:](fused).unflatten(0, features.shape[:2])


class SEDDecoderStage(nn.Module):
    """One stage of the decoder: feature aggregation (spatial, then class), then skip-layer fusion at twice the size.

    The classes come in chunks. Spatial aggregation and fusion take one chunk after the other; class aggregation takes
    all classes, but one tile of locations after the other.
    """

    def __init__(self, config: SEDConfig, index: int, skip_channels: int) -> None:
        super().__init__()
        self.config = config
        hidden_size, out_size = config.decoder_hidden_sizes[index : index + 2]
        skip_size, cost_size = config.skip_guidance_sizes[index], config.cost_guidance_sizes[index]
        cost_channels = config.cost_guidance_sizes[index - 1] if index else len(config.prompt_templates)
        self.spatial_block = SEDConvNextBlock(config, hidden_size)
        self.class_attention = SEDClassAttention(config, hidden_size)
        self.skip_guidance = nn.Sequential(
            nn.Conv2d(skip_channels, skip_size, kernel_size=3, padding=1), nn.ReLU(inplace=True)
        )
        self.cost_guidance = nn.Sequential(
            nn.ConvTranspose2d(cost_channels, cost_size, 2, stride=2), nn.ReLU(inplace=True)
        )
        self.skip_fusion = SEDSkipLayerFusion(config, hidden_size, out_size, skip_size, cost_size)

    def aggregate_locations(self, features: Tensor) -> Tensor:
        """Refine each class of a chunk (B, t, C, H, W)."""
        return for_each_class(self.spatial_block, features)

    def aggregate_classes(self, groups: list[Tensor], tiles: Iterable[slice], run: Callable) -> None:
        """Let all classes see each other: adds to each group (B, t, C, H, W) of the list what class attention gives.

        The attention block has a residual of its own: without pooling the input counts twice, as it officially does.

        Args:
            groups: All classes.
            tiles: The locations to take at a time.
            run: Calls a function with arguments; [`SEDDecoder.checkpointed`].
        """
        pooled = [self.pool(group) for group in groups]
        tokens = [group.permute(0, 3, 4, 1, 2).flatten(1, 2) for group in pooled]  # (B, N, t, C)
        sizes = [group.shape[1] for group in groups]
        in_place = pooled[0] is groups[0] and may_write_in_place()
        updates_of_tiles = []
        for locations in tiles:
            mixed = run(self.class_attention, torch.cat([part[:, locations] for part in tokens], dim=2))
            updates = mixed.split(sizes, dim=2)
            if not in_place:
                updates_of_tiles.append(updates)
                continue
            for part, update in zip(tokens, updates, strict=True):
                part[:, locations] += update
        for index, parts in enumerate(zip(*updates_of_tiles, strict=True)):
            mixed = torch.cat(parts, dim=1).unflatten(1, pooled[index].shape[-2:]).permute(0, 3, 4, 1, 2)
            groups[index] = groups[index] + resize_bilinear(mixed, groups[index].shape[-2:])

    def pool(self, features: Tensor) -> Tensor:
        """The mean of each window of locations of (B, t, C, H, W)."""
        pooling_size = self.config.train_pooling_size if self.training else self.config.inference_pooling_size
        if pooling_size > 1 and torch.compiler.is_exporting():
            # avg_pool2d of torch 2.11 ties a program to pictures as odd or even as the example; a convolution does not.
            channels = features.shape[-3]
            weight = features.new_full((channels, 1, pooling_size, pooling_size), 1 / pooling_size**2)
            return for_each_class(lambda every: F.conv2d(every, weight, stride=pooling_size, groups=channels), features)
        window = tuple(min(pooling_size, length) for length in features.shape[-2:])
        return features if window == (1, 1) else for_each_class(lambda every: F.avg_pool2d(every, window), features)


# Decoder -------------------------------------------------------------------------------------------------------------


class SEDDecoderOutput(NamedTuple):
    """Output of [`SEDDecoder`]; the fields are those of [`SEDSemanticSegmentationOutput`]."""

    logits: Tensor
    aux_logits: tuple[Tensor, ...] = ()
    logit_classes: Tensor | None = None
    kept_classes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class SEDDecoder(nn.Module):
    """Gradual fusion decoder."""

    def __init__(self, config: SEDConfig, encoder_hidden_sizes: list[int]) -> None:
        super().__init__()
        self.config = config
        kernel_size = config.cost_embedding_kernel_size
        widths = config.decoder_hidden_sizes
        self.cost_embedding = nn.Conv2d(len(config.prompt_templates), widths[0], kernel_size, padding=kernel_size // 2)
        self.auxiliary_heads = nn.ModuleList(nn.Conv2d(width, 1, kernel_size=3, padding=1) for width in widths[:-1])
        self.stages = nn.ModuleList(
            SEDDecoderStage(config, index, skip_channels)
            for index, skip_channels in enumerate(reversed(encoder_hidden_sizes[:-1]))
        )
        self.head = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)
        self.chunk_divisor = 1  # grows when memory runs out
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable = checkpoint

    def forward(
        self,
        dense_embeddings: Tensor,
        class_embeddings: Tensor,
        encoder_hidden_states: Sequence[Tensor],
        early_rejection_topk: int | None = None,
        output_hidden_states: bool = False,
    ) -> SEDDecoderOutput:
        """Decode.

        Args:
            dense_embeddings: (B, D, h, w), of length 1.
            class_embeddings: (T, P, D), of length 1.
            encoder_hidden_states: res2, res3, res4, res5 of the image encoder.
            early_rejection_topk: Keep the classes that are among the k best at some pixel; `None` keeps all.
            output_hidden_states: Return what each stage gives; in dense decoding only.
        """
        # Detached: the image encoder learns through the cost map alone.
        skip_features = [features.detach() for features in reversed(encoder_hidden_states[:-1])]

        def decode() -> SEDDecoderOutput:
            if early_rejection_topk is None:
                return self.decode(dense_embeddings, class_embeddings, skip_features, output_hidden_states)
            return self.decode_with_early_rejection(
                dense_embeddings, class_embeddings, skip_features, early_rejection_topk
            )

        # For a gradient all activations are held, in chunks of whatever size.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return decode()
        while True:
            try:
                return decode()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error)
            # Only here, after the handler, is what the failed attempt held released.
            self.take_smaller_chunks(dense_embeddings, len(class_embeddings), message)

    def take_smaller_chunks(self, dense_embeddings: Tensor, num_classes: int, message: str) -> None:
        """After memory has run out: from now on, take chunks of a quarter of the size.

        Raises:
            torch.OutOfMemoryError: They hold one class already.
        """
        if self.chunk_divisor >= num_classes:
            self.chunk_divisor = 1
            explanation = self.explain_lack_of_memory(dense_embeddings, num_classes)
            raise torch.OutOfMemoryError(f"{explanation} ({message[:200]})")
        if self.chunk_divisor == 1:
            logger.warning(
                f"{dense_embeddings.device}: memory ran out while decoding {num_classes} classes; decoding them in"
                " smaller chunks from now on, with the same result"
            )
        self.chunk_divisor *= 4

    def explain_lack_of_memory(self, dense_embeddings: Tensor, num_classes: int) -> str:
        """What dense decoding holds of all classes, whatever the chunks, and for how many there is memory."""
        batch_size, _, height, width = dense_embeddings.shape
        device, element_size = dense_embeddings.device, dense_embeddings.element_size()
        last = len(self.stages) - 1
        scale = 2**last  # of the features that enter the last stage, the largest that are held
        per_location = self.config.decoder_hidden_sizes[last] * scale**2 + sum(4**i for i in range(last + 2))
        per_class = batch_size * height * width * per_location * element_size
        working = ACTIVATIONS_AT_ONCE * batch_size * height * width * scale**2 * self.widest(last) * element_size
        free = allocatable_bytes(num_classes * per_class + working, device)
        fitting = min(max(0, free - working) // per_class, num_classes - 1)  # all of them have just been tried
        return (
            f"out of memory on {device}, even with one class decoded at a time: features of {num_classes} classes of"
            f" {batch_size} image(s) are {num_classes * per_class / 2**20:.0f} MiB, decoding takes"
            f" {working / 2**20:.0f} MiB more, and about {free / 2**20:.0f} MiB are free, which would fit {fitting}"
            " classes. Less is needed by early rejection (early_rejection_topk=8), fewer images at a time, a smaller"
            " input_size or half precision"
        )

    def decode(
        self, dense_embeddings: Tensor, class_embeddings: Tensor, skip_features: list[Tensor], keep_hidden: bool = False
    ) -> SEDDecoderOutput:
        """Dense decoding: every class through every stage."""
        outputs: Iterable[Tensor] = self.embed(dense_embeddings, class_embeddings)
        aux_logits, hidden_states = [], []
        for index, auxiliary_head in enumerate(self.auxiliary_heads):
            groups, logits = collect(outputs, class_embeddings.shape[0], auxiliary_head)
            aux_logits.append(logits)
            if keep_hidden:
                hidden_states.append(torch.cat(groups, dim=1))
            outputs = self.run_stage(index, groups, dense_embeddings, class_embeddings, skip_features[index])
        if keep_hidden:
            outputs = list(outputs)
            hidden_states.append(torch.cat(outputs, dim=1))
        logits = predict_all(self.head, outputs, class_embeddings.shape[0])
        return SEDDecoderOutput(logits, tuple(aux_logits), hidden_states=tuple(hidden_states) if keep_hidden else None)

    def decode_with_early_rejection(
        self, dense_embeddings: Tensor, class_embeddings: Tensor, skip_features: list[Tensor], topk: int
    ) -> SEDDecoderOutput:
        """Category early rejection (section 3.4): only the classes that survive reach the next stage.

        Each image keeps classes of its own, so that each is decoded on its own.
        """
        images = [
            self.decode_survivors(
                dense_embeddings[index : index + 1],
                class_embeddings,
                [features[index : index + 1] for features in skip_features],
                topk,
            )
            for index in range(len(dense_embeddings))
        ]
        kept_classes = torch.stack([kept for _, kept in images])
        classes = kept_classes[:, -1].any(0).nonzero().squeeze(1)  # that survive in some image
        logits = [
            restore_rejected_classes(logits, torch.searchsorted(classes, kept[-1].nonzero().squeeze(1)), len(classes))
            for logits, kept in images
        ]
        return SEDDecoderOutput(torch.cat(logits), logit_classes=classes, kept_classes=kept_classes)

    def decode_survivors(
        self, dense_embeddings: Tensor, class_embeddings: Tensor, skip_features: list[Tensor], topk: int
    ) -> tuple[Tensor, Tensor]:
        """The logits (1, K, 8h, 8w) of the survivors of one image, and the classes that enter each stage (S, T)."""
        kept = torch.arange(len(class_embeddings), device=class_embeddings.device)
        kept_classes = torch.zeros(len(self.stages), len(kept), dtype=torch.bool, device=kept.device)
        outputs = self.embed(dense_embeddings, class_embeddings)
        for index, auxiliary_head in enumerate(self.auxiliary_heads):
            if index == 0:
                # The cost embeddings of all classes are never held: those of the survivors are computed again.
                logits = predict_all(auxiliary_head, outputs, len(kept))
            else:
                groups, logits = collect(outputs, len(kept), auxiliary_head)
            survivors = surviving_classes(logits[0], topk)
            kept = kept[survivors]
            kept_classes[index, kept] = True
            if index == 0:
                groups = hold(self.embed(dense_embeddings, class_embeddings, kept), len(kept))
            else:
                groups = hold(select_classes(groups, survivors), len(kept))
            outputs = self.run_stage(index, groups, dense_embeddings, class_embeddings, skip_features[index], kept)
        return predict_all(self.head, outputs, len(kept)), kept_classes

    def embed(
        self, dense_embeddings: Tensor, class_embeddings: Tensor, classes: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The cost embedding of `classes`, or of all, in chunks (B, t, C, h, w)."""

        def embed_chunk(class_embeddings: Tensor) -> Tensor:
            return for_each_class(self.cost_embedding, compute_cost_map(dense_embeddings, class_embeddings))

        num_classes = (class_embeddings if classes is None else classes).shape[0]
        for chunk in self.chunks_of_classes(0, num_classes, dense_embeddings):
            yield self.checkpointed(embed_chunk, take(class_embeddings, classes, chunk))

    def run_stage(
        self,
        index: int,
        groups: list[Tensor],
        dense_embeddings: Tensor,
        class_embeddings: Tensor,
        skip_features: Tensor,
        classes: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Send groups (B, t, C, H, W) of `classes`, or of all, through a stage: chunks (B, t, C_out, 2H, 2W).

        `groups` is emptied on the way, so that what has been used is released. Cost guidance is computed from the
        embeddings again, which costs less than to hold it.
        """
        stage: Any = self.stages[index]
        for position, group in enumerate(groups):
            chunks = self.chunks_of_classes(index, group.shape[1], group)
            groups[position] = self.refine(stage.aggregate_locations, group, chunks)
        num_classes = (class_embeddings if classes is None else classes).shape[0]
        stage.aggregate_classes(groups, self.tiles_of_locations(index, num_classes, groups[0]), self.checkpointed)
        shared = stage.skip_fusion.share(stage.skip_guidance(skip_features))

        def finish_chunk(features: Tensor, class_embeddings: Tensor) -> Tensor:
            cost_guidance = self.compute_cost_guidance(index, compute_cost_map(dense_embeddings, class_embeddings))
            return stage.skip_fusion(features, cost_guidance, shared)

        first_class = 0
        while groups:
            group = groups.pop(0)
            for chunk in self.chunks_of_classes(index, group.shape[1], group):
                features = group[:, chunk]
                numbers = slice(first_class, first_class + features.shape[1])
                yield self.checkpointed(finish_chunk, features, take(class_embeddings, classes, numbers))
                first_class = numbers.stop

    def refine(self, function: Callable[[Tensor], Tensor], features: Tensor, chunks: Iterable[slice]) -> Tensor:
        """Apply a function to (B, T, C, H, W), a chunk of classes at a time; in place if that loses no gradient."""
        if not may_write_in_place():
            return join([self.checkpointed(function, features[:, chunk]) for chunk in chunks])
        for chunk in chunks:
            features[:, chunk] = function(features[:, chunk])
        return features

    def compute_cost_guidance(self, index: int, cost_map: Tensor) -> Tensor:
        """The cost guidance (B, t, G, 2H, 2W) of a stage: from the cost map through those of the stages before."""
        stage: Any
        for stage in self.stages[: index + 1]:
            cost_map = for_each_class(stage.cost_guidance, cost_map)
        return cost_map

    def chunks_of_classes(self, index: int, num_classes: int, like: Tensor) -> Iterable[slice]:
        """The classes that a stage takes at a time, of so many; `like` (B, ..., H, W) has the locations of each."""
        if torch.compiler.is_exporting():
            return [slice(None)]
        elements = self.widest(index) * len(like) * like.shape[-2] * like.shape[-1]
        size = self.config.class_chunk_size
        if size is None:
            size = self.chunk_elements(like) // elements
        return self.slices(num_classes, size, elements, like)

    def tiles_of_locations(self, index: int, num_classes: int, like: Tensor) -> Iterable[slice]:
        """The locations that class attention takes at a time, for so many classes of each image of `like`."""
        if torch.compiler.is_exporting():
            return [slice(None)]
        elements = self.widest(index) * len(like) * num_classes
        return self.slices(like.shape[-2] * like.shape[-1], self.chunk_elements(like) // elements, elements, like)

    def slices(self, length: int, size: int, elements: int, like: Tensor) -> Iterator[slice]:
        """A length in pieces of a size, or of less after memory has run out.

        Args:
            length: Of all.
            size: Of a piece.
            elements: Of the largest activation for one of the length.
            like: Has the type and the device of the activations.

        Raises:
            RuntimeError: There is no memory for the next piece.
        """
        size = max(1, min(size, length) // self.chunk_divisor)
        for first in range(0, length, size):
            # A GPU's own allocator says in time what it lacks.
            if like.device.type == "cpu" and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
                require_room(ACTIVATIONS_AT_ONCE * size * elements * like.element_size(), like.device)
            yield slice(first, min(first + size, length))

    def widest(self, index: int) -> int:
        """The most channels that a stage makes of a location."""
        width, out_width = self.config.decoder_hidden_sizes[index : index + 2]
        return max(self.config.decoder_mlp_ratio * width, 4 * out_width)

    def chunk_elements(self, like: Tensor) -> int:
        """Elements of the largest activation of a chunk."""
        return CHUNK_BYTES.get(like.device.type, CHUNK_BYTES["cuda"]) // like.element_size()

    def checkpointed(self, function: Callable, *args: Any) -> Any:
        """Call a function; in training with gradient checkpointing, backward calls it again instead of holding all."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(function, *args)
        return function(*args)


def take(class_embeddings: Tensor, classes: Tensor | None, numbers: slice) -> Tensor:
    """Embeddings of the classes with these numbers among `classes`, or among all; never of more at once."""
    return class_embeddings[numbers if classes is None else classes[numbers]]


def predict(head: nn.Module, features: Tensor) -> Tensor:
    """The logits (B, t, H, W) that a one-channel head gives for (B, t, C, H, W)."""
    return for_each_class(head, features).squeeze(2)


def predict_all(head: nn.Module, chunks: Iterable[Tensor], num_classes: int) -> Tensor:
    """The logits (B, T, H, W) of T classes, of chunks as they come."""
    logits = JoinedLogits(num_classes)
    for chunk in chunks:
        logits.append(predict(head, chunk))
    return logits.join()


def collect(chunks: Iterable[Tensor], num_classes: int, auxiliary_head: nn.Module) -> tuple[list[Tensor], Tensor]:
    """Groups of T classes, of chunks as they come, and the auxiliary logits (B, T, H, W) of all of them."""
    logits = JoinedLogits(num_classes)

    def predicted() -> Iterator[Tensor]:
        for chunk in chunks:
            logits.append(predict(auxiliary_head, chunk.detach()))  # auxiliary heads train only themselves
            yield chunk

    groups = hold(predicted(), num_classes)
    return groups, logits.join()


class JoinedLogits:
    """The logits (B, T, H, W) of T classes, which come in parts (B, t, H, W).

    Without gradients they are written to their place at once, for the reason that [`hold`] gives.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.parts: list[Tensor] = []
        self.whole: Tensor | None = None
        self.filled = 0

    def append(self, part: Tensor) -> None:
        """Add the next classes."""
        if not may_write_in_place():
            self.parts.append(part)
            return
        if self.whole is None:
            self.whole = part.new_empty(len(part), self.num_classes, *part.shape[2:])
        self.whole[:, self.filled : self.filled + part.shape[1]] = part
        self.filled += part.shape[1]

    def join(self) -> Tensor:
        """All of them."""
        return torch.cat(self.parts, dim=1) if self.whole is None else self.whole


def hold(chunks: Iterable[Tensor], num_classes: int) -> list[Tensor]:
    """The T classes of chunks (B, t, C, H, W) in few large groups.

    For these the system gives memory and takes it back; many small ones, held among temporary results, would leave the
    heap in fragments. Without gradients chunks are written to their place in a group at once.
    """
    if torch.compiler.is_exporting():
        return list(chunks)
    if torch.is_grad_enabled():
        return concatenated(chunks)
    groups: list[Tensor] = []
    room = 0
    for chunk in chunks:
        while chunk.shape[1]:
            if not room:
                room = min(num_classes, max(1, GROUP_BYTES * chunk.shape[1] // chunk.nbytes))
                num_classes -= room
                groups.append(empty_like_chunk(chunk, room))
            piece, chunk = chunk[:, :room], chunk[:, room:]
            first_class = groups[-1].shape[1] - room
            room -= piece.shape[1]
            groups[-1][:, first_class : first_class + piece.shape[1]] = piece
    return groups


def concatenated(chunks: Iterable[Tensor]) -> list[Tensor]:
    """Chunks (B, t, C, H, W) joined to groups of at least `GROUP_BYTES`, but for the last."""
    groups: list[Tensor] = []
    waiting: list[Tensor] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(part.nbytes for part in waiting) >= GROUP_BYTES:
            groups.append(join(waiting))
            waiting = []
    return [*groups, join(waiting)] if waiting else groups


def empty_like_chunk(chunk: Tensor, num_classes: int) -> Tensor:
    """Memory for classes like those of a chunk (B, t, C, H, W), with channels last."""
    batch_size, _, channels, height, width = chunk.shape
    return chunk.new_empty(batch_size, num_classes, height, width, channels).permute(0, 1, 4, 2, 3)


def join(chunks: list[Tensor]) -> Tensor:
    """One chunk of several; a single one is not copied."""
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)


def select_classes(groups: list[Tensor], classes: Tensor) -> Iterator[Tensor]:
    """The classes at sorted indices of groups (B, t, C, H, W), one by one; empties `groups`."""
    first_class = 0
    while groups:
        group = groups.pop(0)
        inside = classes[(classes >= first_class) & (classes < first_class + group.shape[1])] - first_class
        for index in inside.tolist():
            yield group[:, index : index + 1]
        first_class += group.shape[1]


def surviving_classes(logits: Tensor, topk: int) -> Tensor:
    """Sorted indices of the classes that are among the `topk` best of (T, H, W) logits at some pixel."""
    return logits.topk(min(topk, len(logits)), dim=0).indices.unique()


def restore_rejected_classes(logits: Tensor, kept: Tensor, num_classes: int) -> Tensor:
    """Spread (B, K, H, W) logits of the classes `kept` over (B, T, H, W); the others get probability exactly 0."""
    if len(kept) == num_classes:
        return logits
    # The lowest finite number rather than -inf, whose interpolation gives NaN.
    restored = logits.new_full((len(logits), num_classes, *logits.shape[2:]), torch.finfo(logits.dtype).min)
    return restored.index_copy_(1, kept, logits)
