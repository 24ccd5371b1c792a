"""SED: a simple encoder-decoder for open-vocabulary semantic segmentation (Xie et al., CVPR 2024, arXiv 2311.15537).

Top to bottom: the hierarchical image encoder, the loss, and the model with its text encoder. The gradual fusion decoder
is a module of its own, `decoder_sed.py`.

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
from transformers.utils import ModelOutput, cached_file

from .configuration_sed import SEDConfig, SEDVisionConfig
from .decoder_sed import SEDConvNextBlock, SEDDecoder, compute_cost_map, restore_rejected_classes
from .prompt_packing_sed import pack_prompts

ENCODER_STRIDE = 32
LOSS_ELEMENTS_PER_CHUNK = 2**21
# The code of the pipeline, beside that which the model and the processor import.
PIPELINE_FILES = ("pipeline_sed.py", "sliding_window_sed.py")


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
        logits: (B, T, 8h, 8w), at a quarter of the input size. A sigmoid turns them into probabilities. With early
            rejection (B, K, 8h, 8w), of the classes `logit_classes` alone; see also [`all_logits`].
        aux_logits: (B, T, h, w), (B, T, 2h, 2w), (B, T, 4h, 4w): what the auxiliary heads see before each stage; in
            dense decoding only.
        losses: The terms of the loss: of `logits`, then of each of `aux_logits`.
        logit_classes: (K,) sorted indices, with early rejection: the classes that survive in some image.
        kept_classes: (B, S, T) bool, with early rejection: the classes that enter each of the S stages.
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
    logit_classes: Tensor | None = None
    kept_classes: Tensor | None = None
    class_embeddings: Tensor | None = None
    dense_embeddings: Tensor | None = None
    cost_map: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None

    def all_logits(self) -> Tensor:
        """The logits (B, T, 8h, 8w) of every class; for a rejected one, so low that their sigmoid is 0."""
        assert self.logits is not None
        if self.logit_classes is None or self.kept_classes is None:
            return self.logits
        return restore_rejected_classes(self.logits, self.logit_classes, self.kept_classes.shape[-1])


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


# Loss (section 3.5) --------------------------------------------------------------------------------------------------


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int, ignored_as_negative: bool) -> Tensor:
    """Binary cross-entropy of logits, resized to the labels' size, against one-hot labels; mean of pixels and classes.

    Args:
        logits: (B, T, h, w).
        labels: (B, H, W) integers: a class, or `ignore_index`.
        ignore_index: Label of pixels without a class.
        ignored_as_negative: Whether those count as pixels whose every class is negative; otherwise not at all.
    """
    labels = labels.long()
    ignored = labels == ignore_index
    positive = labels.masked_fill(ignored, -1)
    uncounted = None if ignored_as_negative else ignored
    num_counted = labels.numel() if uncounted is None else (~uncounted).sum().clamp(min=1)
    total: Tensor = ChunkedBinaryCrossEntropy.apply(logits, positive, uncounted)
    return total / (num_counted * logits.shape[1])


class ChunkedBinaryCrossEntropy(torch.autograd.Function):
    """The sum of the binary cross-entropy over all classes and all counted pixels, with logits resized to the labels.

    Classes are handled in chunks, and a chunk's gradient is taken while its resized logits are at hand. So neither the
    resized logits nor a one-hot target of (B, T, H, W) is ever held, and backward recomputes nothing.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positive: Tensor, uncounted: Tensor | None) -> Tensor:
        """Sum for (B, T, h, w) logits and (B, H, W) `positive` classes, -1 where there is none."""
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        dtype = torch.promote_types(logits.dtype, torch.float32)  # half precision is too coarse for sums
        total = logits.new_zeros((), dtype=dtype)
        chunk_size = max(1, LOSS_ELEMENTS_PER_CHUNK // positive.numel())
        for first_class in range(0, logits.shape[1], chunk_size):
            chunk = logits[:, first_class : first_class + chunk_size].to(dtype)
            resized = F.interpolate(chunk, size=positive.shape[-2:], mode="bilinear", align_corners=False)
            if uncounted is not None:
                resized = resized.masked_fill_(uncounted.unsqueeze(1), -torch.inf)  # loss and gradient 0
            index = (positive - first_class).unsqueeze(1)
            inside = (index >= 0) & (index < chunk.shape[1])
            index = index.clamp(0, chunk.shape[1] - 1)
            # BCE(x, y) = softplus(x) - x y, whose derivative is sigmoid(x) - y.
            total += F.softplus(resized).sum() - resized.gather(1, index).where(inside, 0).sum()
            if gradient is not None:
                difference = resized.sigmoid_().scatter_add_(1, index, -inside.to(dtype))
                gradient[:, first_class : first_class + chunk_size] = torch.ops.aten.upsample_bilinear2d_backward(
                    difference, list(difference.shape[-2:]), list(chunk.shape), False, None, None
                )
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total, None, None


# Model ---------------------------------------------------------------------------------------------------------------


class SEDPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config: SEDConfig
    config_class = SEDConfig
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
        for name in PIPELINE_FILES:
            file: Any = Path(__file__).with_name(name)
            if not file.is_file():  # remote code, of which transformers fetches only what it needs
                file = cached_file(self.config.name_or_path, name)
            if Path(file).resolve().parent != Path(save_directory).resolve():
                shutil.copy(file, save_directory)


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
        # Of one element rather than a scalar, which FSDP cannot shard.
        self.logit_scale = nn.Parameter(torch.tensor([float(config.logit_scale_init_value)]))
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
        class_embeddings = class_embeddings.to(dense_embeddings)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        locations = F.normalize(dense_embeddings, dim=1)
        decoded = self.decoder(
            locations,
            class_embeddings,
            image_features.hidden_states,
            topk,
            output_hidden_states,
        )
        losses = None
        if labels is not None:
            losses = self._compute_losses((decoded.logits, *decoded.aux_logits), labels)

        output = SEDSemanticSegmentationOutput(
            loss=None if losses is None else torch.stack(losses).sum(),
            logits=decoded.logits,
            aux_logits=decoded.aux_logits,
            losses=losses,
            logit_classes=decoded.logit_classes,
            kept_classes=decoded.kept_classes,
        )
        if output_hidden_states:
            output.class_embeddings = class_embeddings
            output.dense_embeddings = dense_embeddings
            output.cost_map = compute_cost_map(locations, class_embeddings)
            output.encoder_hidden_states = image_features.hidden_states
            output.decoder_hidden_states = decoded.hidden_states
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
        """Encode (N, L) tokens to (N, D): each different prompt once, none with padding, and shared beginnings once.

        Attention is causal and the embedding is read at the end-of-text token, so what follows it changes nothing.
        """
        text_config = self.text_encoder.config
        is_end = input_ids == text_config.eos_token_id
        if not is_end.any(1).all():
            raise ValueError(f"input_ids: expected the end-of-text token {text_config.eos_token_id} in every prompt")
        lengths = is_end.int().argmax(1) + 1
        is_padding = torch.arange(input_ids.shape[1], device=input_ids.device) >= lengths[:, None]
        prompts, inverse = input_ids.masked_fill(is_padding, 0).unique(dim=0, return_inverse=True)
        lengths = lengths.new_empty(len(prompts)).index_copy_(0, inverse, lengths)
        takes_masks = text_config._attn_implementation in ("eager", "sdpa")  # else each prompt is a pack of its own
        encoded = []
        for packed in pack_prompts(prompts, lengths, text_config.max_position_embeddings if takes_masks else 0):
            mask = torch.zeros_like(packed.may_attend, dtype=self.dtype)
            mask.masked_fill_(~packed.may_attend, torch.finfo(mask.dtype).min)
            hidden_states = self.text_encoder(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                attention_mask=mask if takes_masks else None,
            ).last_hidden_state
            encoded.append(self.text_encoder.text_projection(hidden_states[packed.sequences, packed.ends]))
        return torch.cat(encoded)[inverse]

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
        if class_embeddings.ndim != 3 or class_embeddings.shape[1:] != expected or not class_embeddings.shape[0]:
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
