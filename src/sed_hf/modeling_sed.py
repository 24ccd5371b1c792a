"""SED: a simple encoder-decoder for open-vocabulary semantic segmentation (Xie et al., CVPR 2024, arXiv 2311.15537).

Top to bottom as in the paper's figure 2: the hierarchical image encoder, the text encoder, the cost map between them,
the gradual fusion decoder with category early rejection, and the loss.

Shapes are written with B images, T classes, P prompt templates, D embedding channels and (h, w) = input size / 32.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.layers.grn import GlobalResponseNorm
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModelWithProjection, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, cached_file

from .configuration_sed import SEDConfig, SEDVisionConfig

ENCODER_STRIDE = 32
PROMPTS_PER_BATCH = 256
LOSS_ELEMENTS_PER_CHUNK = 2**24


class SEDImageEncoderOutput(NamedTuple):
    """What the image encoder sees.

    Attributes:
        dense_embeddings: (B, D, h, w) embedding of every location, not normalised.
        hidden_states: res2, res3, res4, res5, at strides 4, 8, 16, 32.
    """

    dense_embeddings: Tensor
    hidden_states: tuple[Tensor, ...]


@dataclass
class SEDSemanticSegmentationOutput(ModelOutput):
    """Output of [`SEDForSemanticSegmentation`].

    Attributes:
        loss: Sum of `losses`, when labels are given.
        logits: (B, T, 8h, 8w), at a quarter of the input size. A sigmoid turns them into probabilities. A rejected
            class holds the lowest number of the dtype, whose sigmoid is exactly 0.
        aux_logits: (B, T, h, w), (B, T, 2h, 2w), (B, T, 4h, 4w): what the auxiliary heads see before each stage.
        losses: The terms of the loss: of `logits`, then of each of `aux_logits`.
        kept_classes: (B, T) bool, with early rejection: the classes that survived all rejections.
        class_embeddings: (T, P, D), on request (`output_hidden_states=True`, as all that follows).
        dense_embeddings: (B, D, h, w), not normalised.
        cost_map: (B, T, P, h, w) cosine similarities.
        encoder_hidden_states: res2, res3, res4, res5.
        decoder_hidden_states: Cost embedding (B, T, C, h, w) and the outputs of the stages; in dense decoding only,
            since rejection leaves each image other classes.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    aux_logits: tuple[Tensor, ...] | None = None
    losses: tuple[Tensor, ...] | None = None
    kept_classes: Tensor | None = None
    class_embeddings: Tensor | None = None
    dense_embeddings: Tensor | None = None
    cost_map: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None


# Image encoder (section 3.2) -----------------------------------------------------------------------------------------


class SEDImageEncoder(nn.Module):
    """Hierarchical image encoder: CLIP's ConvNeXt, with its projection applied to every location of its last stage."""

    def __init__(self, config: SEDVisionConfig, projection_dim: int) -> None:
        super().__init__()
        self.config = config
        self.trunk = timm.create_model(
            config.architecture,
            pretrained=False,
            num_classes=0,
            global_pool="",
            drop_path_rate=config.drop_path_rate,
            **config.model_args,
        )
        if not isinstance(self.trunk, ConvNeXt):
            raise ValueError(
                f"architecture={config.architecture!r}: expected a ConvNeXt, got {type(self.trunk).__name__}"
            )
        self.hidden_sizes = [info["num_chs"] for info in self.trunk.feature_info]
        self.projection: nn.Module
        if config.projection == "linear":
            self.projection = nn.Linear(self.hidden_sizes[-1], projection_dim, bias=False)
        else:
            self.projection = Mlp(
                self.hidden_sizes[-1],
                2 * projection_dim,
                projection_dim,
                bias=(True, False),
                drop=(config.projection_dropout, 0.0),
            )
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable = checkpoint

    def forward(self, pixel_values: Tensor) -> SEDImageEncoderOutput:
        """Encode images (B, 3, 32h, 32w)."""
        hidden_states = []
        features = self.trunk.stem(pixel_values)
        for stage in self.trunk.stages:
            features = stage.downsample(features)
            for block in stage.blocks:
                if self.gradient_checkpointing and self.training:
                    features = self._gradient_checkpointing_func(block.__call__, features)
                else:
                    features = block(features)
            hidden_states.append(features)
        # Each location is an image of its own: CLIP's head without its global pooling.
        features = self.trunk.head.norm(features)
        dense_embeddings = self.projection(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return SEDImageEncoderOutput(dense_embeddings=dense_embeddings, hidden_states=tuple(hidden_states))


# Cost map (section 3.2) ----------------------------------------------------------------------------------------------


def compute_cost_map(dense_embeddings: Tensor, class_embeddings: Tensor) -> Tensor:
    """Cosine similarity of every location and every prompt of every class, with no temperature.

    Args:
        dense_embeddings: (B, D, h, w), of any length.
        class_embeddings: (T, P, D), of length 1.

    Returns:
        (B, T, P, h, w).
    """
    dense_embeddings = F.normalize(dense_embeddings, dim=1)
    return torch.einsum("bdhw,tpd->btphw", dense_embeddings, class_embeddings)


# Gradual fusion decoder (section 3.3) --------------------------------------------------------------------------------


def for_each_class(layer: nn.Module, features: Tensor) -> Tensor:
    """Apply a layer on (N, C, H, W) to every class of (B, T, C, H, W) on its own."""
    return layer(features.flatten(0, 1)).unflatten(0, features.shape[:2])


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention with feature map elu(x) + 1 (Katharopoulos et al., 2020); the cost is linear in T.

    Args:
        query, key, value: (..., heads, T, channels).

    Returns:
        (..., heads, T, channels).
    """
    num_classes = key.shape[-2]
    query = F.elu(query) + 1
    key = (F.elu(key) + 1) / num_classes  # means rather than sums over classes, which would overflow float16
    eps = max(1e-6 / num_classes, torch.finfo(key.dtype).tiny)
    normalizer = query @ key.sum(-2).unsqueeze(-1) + eps
    return query @ (key.transpose(-1, -2) @ value) / normalizer


CLASS_ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": linear_attention,
    "full": F.scaled_dot_product_attention,
}


class SEDClassAttention(nn.Module):
    """Class-level fusion of the feature aggregation module: at each location, attention over the classes.

    The only part of the decoder in which classes see each other.
    """

    def __init__(self, config: SEDConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.attend = CLASS_ATTENTION[config.class_attention_type]
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = Mlp(hidden_size, config.decoder_mlp_ratio * hidden_size, act_layer=nn.ReLU)

    def forward(self, features: Tensor) -> Tensor:
        """Mix the classes of (B, T, C, h, w); the result has the same shape and is to be added to the input."""
        height, width = features.shape[-2:]
        pooling_size = self.config.train_pooling_size if self.training else self.config.inference_pooling_size
        kernel = (min(pooling_size, height), min(pooling_size, width))
        if kernel == (1, 1):
            return self.mix_classes(features)
        pooled = F.avg_pool2d(features.flatten(0, 1), kernel).unflatten(0, features.shape[:2])
        mixed = self.mix_classes(pooled).flatten(0, 1)
        mixed = F.interpolate(mixed, size=(height, width), mode="bilinear", align_corners=True)
        return mixed.unflatten(0, features.shape[:2])

    def mix_classes(self, features: Tensor) -> Tensor:
        """Across classes: a transformer layer over T at every location of (B, T, C, h, w)."""
        tokens = features.permute(0, 3, 4, 1, 2)  # (B, h, w, T, C)
        normed = self.attention_norm(tokens)
        heads = [
            projection(normed).unflatten(-1, (self.config.num_attention_heads, -1)).transpose(-2, -3)
            for projection in (self.query, self.key, self.value)
        ]
        tokens = tokens + self.attend(*heads).transpose(-2, -3).flatten(-2)
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return tokens.permute(0, 3, 4, 1, 2)


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


class SEDSkipLayerFusion(nn.Module):
    """Skip-layer fusion module: doubles the resolution and merges skip guidance and cost guidance, for each class."""

    def __init__(self, config: SEDConfig, hidden_size: int, out_size: int, skip_size: int, cost_size: int) -> None:
        super().__init__()
        num_groups = out_size // config.group_norm_group_size
        self.upsample = nn.ConvTranspose2d(hidden_size, hidden_size - skip_size, kernel_size=2, stride=2)
        self.fuse = nn.Sequential(
            nn.Conv2d(hidden_size + cost_size, out_size, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(num_groups, out_size),
            nn.ReLU(),
            nn.Conv2d(out_size, out_size, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(num_groups, out_size),
            nn.ReLU(),
        )

    def forward(self, features: Tensor, skip_guidance: Tensor, cost_guidance: Tensor) -> Tensor:
        """(B, T, C, H, W), (B, S, 2H, 2W), (B, T, G, 2H, 2W) to (B, T, C_out, 2H, 2W)."""
        features = for_each_class(self.upsample, features)
        skip_guidance = skip_guidance.unsqueeze(1).expand(-1, features.shape[1], -1, -1, -1)
        return for_each_class(self.fuse, torch.cat([features, skip_guidance, cost_guidance], dim=2))


class SEDDecoderStage(GradientCheckpointingLayer):
    """One stage of the decoder: feature aggregation (spatial, then class), then skip-layer fusion at twice the size."""

    def __init__(self, config: SEDConfig, index: int, skip_channels: int) -> None:
        super().__init__()
        hidden_size, out_size = config.decoder_hidden_sizes[index : index + 2]
        skip_size, cost_size = config.skip_guidance_sizes[index], config.cost_guidance_sizes[index]
        cost_channels = config.cost_guidance_sizes[index - 1] if index else len(config.prompt_templates)
        self.spatial_block = SEDConvNextBlock(config, hidden_size)
        self.class_attention = SEDClassAttention(config, hidden_size)
        self.skip_guidance = nn.Sequential(nn.Conv2d(skip_channels, skip_size, kernel_size=3, padding=1), nn.ReLU())
        self.cost_guidance = nn.Sequential(nn.ConvTranspose2d(cost_channels, cost_size, 2, stride=2), nn.ReLU())
        self.skip_fusion = SEDSkipLayerFusion(config, hidden_size, out_size, skip_size, cost_size)

    def forward(self, features: Tensor, skip_features: Tensor, cost_guidance: Tensor) -> tuple[Tensor, Tensor]:
        """Refine (B, T, C, H, W) to (B, T, C_out, 2H, 2W).

        Args:
            features: (B, T, C, H, W).
            skip_features: (B, channels, 2H, 2W), of the image encoder.
            cost_guidance: (B, T, channels, H, W), of the stage before; the cost map itself for the first stage.

        Returns:
            The refined features, and this stage's cost guidance (B, T, G, 2H, 2W).
        """
        features = for_each_class(self.spatial_block, features)
        # The attention block has a residual of its own: without pooling the input counts twice, as it officially does.
        features = features + self.class_attention(features)
        cost_guidance = for_each_class(self.cost_guidance, cost_guidance)
        return self.skip_fusion(features, self.skip_guidance(skip_features), cost_guidance), cost_guidance


class SEDDecoderOutput(NamedTuple):
    """Output of [`SEDDecoder`]; the fields are those of [`SEDSemanticSegmentationOutput`]."""

    logits: Tensor
    aux_logits: tuple[Tensor, ...]
    kept_classes: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None


class SEDDecoder(nn.Module):
    """Gradual fusion decoder: from the cost map to a logit for each class and pixel, at a quarter of the input size."""

    def __init__(self, config: SEDConfig, encoder_hidden_sizes: list[int]) -> None:
        super().__init__()
        kernel_size = config.cost_embedding_kernel_size
        widths = config.decoder_hidden_sizes
        self.cost_embedding = nn.Conv2d(len(config.prompt_templates), widths[0], kernel_size, padding=kernel_size // 2)
        self.auxiliary_heads = nn.ModuleList(nn.Conv2d(width, 1, kernel_size=3, padding=1) for width in widths[:-1])
        self.stages = nn.ModuleList(
            SEDDecoderStage(config, index, skip_channels)
            for index, skip_channels in enumerate(reversed(encoder_hidden_sizes[:-1]))
        )
        self.head = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)

    def forward(
        self, cost_map: Tensor, encoder_hidden_states: tuple[Tensor, ...], early_rejection_topk: int | None = None
    ) -> SEDDecoderOutput:
        """Decode (B, T, P, h, w) with the image encoder's res2, res3, res4, res5; see [`SEDDecoderOutput`]."""
        # Detached: the image encoder learns through the cost map alone.
        skip_features = [features.detach() for features in reversed(encoder_hidden_states[:-1])]
        if early_rejection_topk is None:
            return self.decode(cost_map, skip_features)
        # Each image keeps classes of its own, so that each is decoded on its own.
        images = [
            self.decode_with_early_rejection(
                cost_map[index : index + 1],
                [features[index : index + 1] for features in skip_features],
                early_rejection_topk,
            )
            for index in range(len(cost_map))
        ]
        return SEDDecoderOutput(
            logits=torch.cat([image.logits for image in images]),
            aux_logits=tuple(torch.cat(logits) for logits in zip(*(image.aux_logits for image in images), strict=True)),
            kept_classes=torch.cat([image.kept_classes for image in images if image.kept_classes is not None]),
        )

    def decode(self, cost_map: Tensor, skip_features: list[Tensor]) -> SEDDecoderOutput:
        """Dense decoding: every class through every stage."""
        features, cost_guidance = for_each_class(self.cost_embedding, cost_map), cost_map
        hidden_states, aux_logits = [features], []
        for auxiliary_head, stage, skip in zip(self.auxiliary_heads, self.stages, skip_features, strict=True):
            aux_logits.append(predict(auxiliary_head, features.detach()))  # they train only themselves
            features, cost_guidance = stage(features, skip, cost_guidance)
            hidden_states.append(features)
        return SEDDecoderOutput(
            logits=predict(self.head, features),
            aux_logits=tuple(aux_logits),
            decoder_hidden_states=tuple(hidden_states),
        )

    def decode_with_early_rejection(self, cost_map: Tensor, skip_features: list[Tensor], topk: int) -> SEDDecoderOutput:
        """Category early rejection (section 3.4) for one image: only the classes that survive reach the next stage."""
        num_classes = cost_map.shape[1]
        kept = torch.arange(num_classes, device=cost_map.device)
        features, cost_guidance = for_each_class(self.cost_embedding, cost_map), cost_map
        aux_logits = []
        for auxiliary_head, stage, skip in zip(self.auxiliary_heads, self.stages, skip_features, strict=True):
            logits = predict(auxiliary_head, features)
            aux_logits.append(restore_rejected_classes(logits, kept, num_classes))
            survivors = surviving_classes(logits[0], topk)
            kept, features, cost_guidance = kept[survivors], features[:, survivors], cost_guidance[:, survivors]
            features, cost_guidance = stage(features, skip, cost_guidance)
        return SEDDecoderOutput(
            logits=restore_rejected_classes(predict(self.head, features), kept, num_classes),
            aux_logits=tuple(aux_logits),
            kept_classes=torch.zeros(1, num_classes, dtype=torch.bool, device=kept.device).index_fill_(1, kept, True),
        )


def predict(head: nn.Module, features: Tensor) -> Tensor:
    """The logits (B, T, H, W) that a one-channel head gives for (B, T, C, H, W)."""
    return for_each_class(head, features).squeeze(2)


def surviving_classes(logits: Tensor, topk: int) -> Tensor:
    """Sorted indices of the classes that are among the `topk` best of (T, H, W) logits at some pixel."""
    return logits.topk(min(topk, len(logits)), dim=0).indices.unique()


def restore_rejected_classes(logits: Tensor, kept: Tensor, num_classes: int) -> Tensor:
    """Spread (1, T', H, W) logits of the classes `kept` over (1, T, H, W); the others get probability exactly 0."""
    # The lowest finite number rather than -inf, whose interpolation gives NaN.
    restored = logits.new_full((1, num_classes, *logits.shape[2:]), torch.finfo(logits.dtype).min)
    return restored.index_copy_(1, kept, logits)


# Loss (section 3.5) --------------------------------------------------------------------------------------------------


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int, ignored_as_negative: bool) -> Tensor:
    """Binary cross-entropy of logits, resized to the labels' size, against one-hot labels; mean of pixels and classes.

    Classes are handled in chunks that backward recomputes: neither the resized logits nor a one-hot target of
    (B, T, H, W) is ever held.

    Args:
        logits: (B, T, h, w).
        labels: (B, H, W) integers: a class, or `ignore_index`.
        ignore_index: Label of pixels without a class.
        ignored_as_negative: Whether those count as pixels whose every class is negative; otherwise not at all.
    """
    num_classes = logits.shape[1]
    labels = labels.long()
    counted = torch.ones_like(labels, dtype=torch.bool) if ignored_as_negative else labels != ignore_index
    positive = labels.masked_fill(labels == ignore_index, -1)
    chunk_size = max(1, LOSS_ELEMENTS_PER_CHUNK // labels.numel())

    def chunk_loss(chunk: Tensor, first_class: int) -> Tensor:
        resized = F.interpolate(chunk.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        index = positive - first_class
        inside = (index >= 0) & (index < chunk.shape[1])
        positive_logits = resized.gather(1, index.clamp(0, chunk.shape[1] - 1).unsqueeze(1)).squeeze(1)
        # BCE(x, y) = softplus(x) - x y
        return (F.softplus(resized).sum(1) * counted).sum() - (positive_logits * inside).sum()

    total = logits.new_zeros((), dtype=torch.float32)
    for first_class in range(0, num_classes, chunk_size):
        chunk = logits[:, first_class : first_class + chunk_size]
        total = total + checkpoint(chunk_loss, chunk, first_class, use_reentrant=False)
    return total / (counted.sum().clamp(min=1) * num_classes)


# Model ---------------------------------------------------------------------------------------------------------------


class SEDPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config: SEDConfig
    config_class = SEDConfig
    base_model_prefix = "sed"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConvNeXtBlock", "CLIPTextEmbeddings", "CLIPEncoderLayer", "SEDDecoderStage"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """What SED's training starts from: the trunk as timm initialises it, the rest as torch does."""
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if any(module is layer for layer in self.image_encoder.trunk.modules()):
                init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    init.zeros_(module.bias)
            else:
                module.reset_parameters()
        elif isinstance(module, ConvNeXtBlock) and module.gamma is not None:
            init.constant_(module.gamma, self.image_encoder.config.model_args.get("ls_init_value", 1e-6))
        elif isinstance(module, GlobalResponseNorm):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SEDConvNextBlock):
            init.constant_(module.layer_scale, self.config.layer_scale_init_value)
        elif isinstance(module, SEDForSemanticSegmentation):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what no checkpoint has provided."""
        is_first_time = not getattr(self, "_is_hf_initialized", False)
        super().initialize_weights()
        if is_first_time:
            init_text_encoder_as_open_clip(self.text_encoder)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the model, with the pipeline's code beside the model's own, which transformers adds."""
        super().save_pretrained(save_directory, *args, **kwargs)
        pipeline_file: Any = Path(__file__).with_name("pipeline_sed.py")
        if not pipeline_file.is_file():  # remote code, of which transformers fetches only what it needs
            pipeline_file = cached_file(self.config.name_or_path, "pipeline_sed.py")
        if Path(pipeline_file).resolve().parent != Path(save_directory).resolve():
            shutil.copy(pipeline_file, save_directory)


def init_text_encoder_as_open_clip(text_encoder: CLIPTextModelWithProjection) -> None:
    """Initialise by the rule of open_clip, from which that of transformers differs.

    By name, and so not in `_init_weights`, which is shown a layer but not its role.
    """
    width, depth = text_encoder.config.hidden_size, text_encoder.config.num_hidden_layers
    std = {
        "token_embedding": 0.02,
        "position_embedding": 0.01,
        "q_proj": width**-0.5,
        "k_proj": width**-0.5,
        "v_proj": width**-0.5,
        "out_proj": width**-0.5 * (2 * depth) ** -0.5,
        "fc1": (2 * width) ** -0.5,
        "fc2": width**-0.5 * (2 * depth) ** -0.5,
        "text_projection": width**-0.5,
    }
    for name, module in text_encoder.named_modules():
        role = name.rpartition(".")[-1]
        if role in std:
            init.normal_(module.weight, std=std[role])
        if role in ("fc1", "fc2"):
            bound = module.in_features**-0.5
            init.uniform_(module.bias, -bound, bound)


class SEDForSemanticSegmentation(SEDPreTrainedModel):
    """SED: labels every pixel with one of T classes that are given as text.

    ```python
    model = SEDForSemanticSegmentation.from_pretrained(path).eval()
    processor = SEDProcessor.from_pretrained(path)
    inputs = processor(images=image, text=["cat", "dog, puppy", "grass"], return_tensors="pt")
    outputs = model(**inputs)
    segmentation = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
    ```
    """

    def __init__(self, config: SEDConfig) -> None:
        super().__init__(config)
        self.image_encoder = SEDImageEncoder(config.vision_config, config.projection_dim)  # type: ignore[arg-type]
        self.text_encoder = CLIPTextModelWithProjection._from_config(config.text_config)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.decoder = SEDDecoder(config, self.image_encoder.hidden_sizes)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the text encoder."""
        return self.text_encoder.get_input_embeddings()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        class_ids: Tensor | None = None,
        class_embeddings: Tensor | None = None,
        labels: Tensor | None = None,
        early_rejection_topk: int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SEDSemanticSegmentationOutput | tuple[Tensor, ...]:
        """Segment images. The classes come as `input_ids` and `class_ids`, or as `class_embeddings`.

        Args:
            pixel_values: (B, 3, H, W); H and W are multiples of 32.
            input_ids: (S, P, L) tokens, as [`SEDProcessor`] gives them; see [`get_class_embeddings`].
            class_ids: (S,) the class of each of the S synonyms.
            class_embeddings: (T, P, D), of [`get_class_embeddings`].
            labels: (B, H', W') class of each pixel, or `config.ignore_index`; of any size.
            early_rejection_topk: Keep the classes that are among the k best at some pixel; 0 decodes every class.
                Defaults to `config.early_rejection_topk`. Not with labels: the loss is of all classes.
            output_hidden_states: Return intermediate results too. Defaults to `config.output_hidden_states`.
            return_dict: `False` returns a tuple. Defaults to `config.return_dict`.

        Raises:
            ValueError: An argument is missing, given twice, or of another shape than stated above.
        """
        if (input_ids is None) == (class_embeddings is None):
            raise ValueError("expected exactly one of input_ids and class_embeddings")
        topk = self._resolve_early_rejection(early_rejection_topk, labels)

        image_features = self.get_image_features(pixel_values)
        if input_ids is not None:
            class_embeddings = self.get_class_embeddings(input_ids, class_ids)
        assert class_embeddings is not None
        self._check_class_embeddings(class_embeddings)
        dense_embeddings = image_features.dense_embeddings
        cost_map = compute_cost_map(dense_embeddings, class_embeddings.to(dense_embeddings))
        decoded = self.decoder(cost_map, image_features.hidden_states, topk)
        losses = None if labels is None else self._compute_losses((decoded.logits, *decoded.aux_logits), labels)

        output = SEDSemanticSegmentationOutput(
            loss=None if losses is None else torch.stack(losses).sum(),
            logits=decoded.logits,
            aux_logits=decoded.aux_logits,
            losses=losses,
            kept_classes=decoded.kept_classes,
        )
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            output.class_embeddings = class_embeddings
            output.dense_embeddings = dense_embeddings
            output.cost_map = cost_map
            output.encoder_hidden_states = image_features.hidden_states
            output.decoder_hidden_states = decoded.decoder_hidden_states
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def get_image_features(self, pixel_values: Tensor) -> SEDImageEncoderOutput:
        """Encode images.

        Args:
            pixel_values: (B, 3, H, W); H and W are multiples of 32.

        Raises:
            ValueError: `pixel_values` has another shape.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values: expected (batch, 3, height, width), got {tuple(pixel_values.shape)}")
        height, width = pixel_values.shape[-2:]
        if height % ENCODER_STRIDE or width % ENCODER_STRIDE or not height or not width:
            raise ValueError(
                f"pixel_values: expected a height and a width that are multiples of {ENCODER_STRIDE},"
                f" got {height}x{width}"
            )
        return self.image_encoder(pixel_values.to(self.logit_scale.dtype))

    def get_class_embeddings(self, input_ids: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """Encode class names: `get_class_embeddings(**processor(text=["cat", "dog, puppy"], return_tensors="pt"))`.

        Every prompt is encoded, normalised, averaged over the synonyms of a class and normalised again. Templates are
        not averaged: they become the channels of the cost map.

        Args:
            input_ids: (S, P, L) tokens of S synonyms in P prompt templates; what follows the end-of-text token is
                padding.
            class_ids: (S,) the class of each synonym. Defaults to one synonym a class.

        Returns:
            (T, P, D), of length 1.

        Raises:
            ValueError: The shapes are others, or a prompt has no end-of-text token.
        """
        num_templates = len(self.config.prompt_templates)
        if input_ids.ndim != 3 or input_ids.shape[1] != num_templates:
            raise ValueError(
                f"input_ids: expected (synonyms, {num_templates} prompt templates, tokens),"
                f" got {tuple(input_ids.shape)}"
            )
        if class_ids is None:
            class_ids = torch.arange(len(input_ids), device=input_ids.device)
        if class_ids.shape != input_ids.shape[:1]:
            raise ValueError(f"class_ids: expected ({len(input_ids)},), got {tuple(class_ids.shape)}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_text_encoder):
            prompt_embeddings = self._encode_prompts(input_ids.flatten(0, 1)).unflatten(0, input_ids.shape[:2])
            prompt_embeddings = F.normalize(prompt_embeddings, dim=-1)
            # A sum, since the length of the mean is normalised away.
            summed = prompt_embeddings.new_zeros(int(class_ids.max()) + 1, *prompt_embeddings.shape[1:])
            return F.normalize(summed.index_add(0, class_ids, prompt_embeddings), dim=-1)

    def _encode_prompts(self, input_ids: Tensor) -> Tensor:
        """Encode (N, L) tokens to (N, D): each different prompt once, and none with padding.

        Attention is causal and the embedding is read at the end-of-text token, so what follows it changes nothing.
        """
        prompts, inverse = input_ids.unique(dim=0, return_inverse=True)
        end_of_text = self.text_encoder.config.eos_token_id
        is_end = prompts == end_of_text
        if not is_end.any(1).all():
            raise ValueError(f"input_ids: expected the end-of-text token {end_of_text} in every prompt")
        lengths = is_end.int().argmax(1) + 1
        batches = [
            (batch, length)
            for length in lengths.unique().tolist()
            for batch in (lengths == length).nonzero().squeeze(1).split(PROMPTS_PER_BATCH)
        ]
        encoded = [self.text_encoder(input_ids=prompts[batch, :length]).text_embeds for batch, length in batches]
        position = torch.cat([batch for batch, _ in batches]).argsort()
        return torch.cat(encoded)[position[inverse]]

    def _resolve_early_rejection(self, early_rejection_topk: int | None, labels: Tensor | None) -> int | None:
        if early_rejection_topk is None:
            return self.config.early_rejection_topk if labels is None else None
        if not isinstance(early_rejection_topk, int) or early_rejection_topk < 0:
            raise ValueError(f"early_rejection_topk={early_rejection_topk}: expected a whole number; 0 is every class")
        if early_rejection_topk and labels is not None:
            raise ValueError(
                f"early_rejection_topk={early_rejection_topk}: expected none with labels; the loss is of all classes"
            )
        return early_rejection_topk or None

    def _check_class_embeddings(self, class_embeddings: Tensor) -> None:
        expected = (len(self.config.prompt_templates), self.config.projection_dim)
        if class_embeddings.ndim != 3 or class_embeddings.shape[1:] != expected or not len(class_embeddings):
            raise ValueError(
                f"class_embeddings: expected (classes, {expected[0]} prompt templates, {expected[1]} channels),"
                f" got {tuple(class_embeddings.shape)}"
            )

    def _compute_losses(self, all_logits: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, ...]:
        batch_size, num_classes = all_logits[0].shape[:2]
        if labels.ndim != 3 or len(labels) != batch_size or labels.is_floating_point():
            got = f"{labels.dtype} of {tuple(labels.shape)}"
            raise ValueError(f"labels: expected integers ({batch_size}, height, width), got {got}")
        if not torch.compiler.is_compiling():
            wrong = (labels != self.config.ignore_index) & ((labels < 0) | (labels >= num_classes))
            if wrong.any():
                raise ValueError(
                    f"labels: expected classes from 0 to {num_classes - 1} or ignore_index={self.config.ignore_index},"
                    f" got {labels[wrong][0].item()}"
                )
        return tuple(
            segmentation_loss(logits, labels, self.config.ignore_index, self.config.ignored_as_negative)
            for logits in all_logits
        )


__all__ = [
    "SEDForSemanticSegmentation",
    "SEDImageEncoderOutput",
    "SEDPreTrainedModel",
    "SEDSemanticSegmentationOutput",
]
