"""Configuration of SED (Xie et al., CVPR 2024, arXiv 2311.15537)."""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig
from transformers.activations import ACT2FN

# The 80 ImageNet prompt templates of OpenAI CLIP (https://github.com/openai/CLIP, MIT licence), as in open_clip.
OPENAI_IMAGENET_TEMPLATES: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)


# Far beyond any model; a configuration with a digit too many is refused before it takes all time and memory.
MAX_WIDTH = 2**16
MAX_LAYERS = 200
MAX_TOKENS = 2**22
MAX_KERNEL = 255

# Arguments of `timm.create_model` that are no part of a network's shape.
READING_MODEL_ARGS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"}
)

# The code that a Hub repository carries: what each Auto class and `pipeline` make with `trust_remote_code=True`.
AUTO_MAP = {
    "AutoConfig": "configuration_sed.SEDConfig",
    "AutoModel": "modeling_sed.SEDForSemanticSegmentation",
    "AutoModelForSemanticSegmentation": "modeling_sed.SEDForSemanticSegmentation",
    "AutoImageProcessor": "image_processing_sed.SEDImageProcessor",
    "AutoProcessor": "processing_sed.SEDProcessor",
}
CUSTOM_PIPELINES = {
    "open-vocabulary-segmentation": {
        "impl": "pipeline_sed.SEDPipeline",
        "pt": ["AutoModelForSemanticSegmentation"],
    },
}


def require_at_least_1(config: PreTrainedConfig, *names: str) -> None:
    """Refuse numbers less than 1, by name; `None` is no number."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")


def require_probabilities(config: PreTrainedConfig, *names: str) -> None:
    """Refuse, by name, what is no probability of dropping something."""
    for name in names:
        value = getattr(config, name)
        if value is None or not 0 <= value < 1:
            raise ValueError(f"{name}={value}: expected a probability in [0, 1)")


def require_finite(config: PreTrainedConfig, *names: str) -> None:
    """Refuse infinities and NaN, by name."""
    for name in names:
        value = getattr(config, name)
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}: expected a finite number")


def require_epsilon(config: PreTrainedConfig, name: str) -> None:
    """Refuse what a variance cannot be kept from 0 with, by name."""
    value = getattr(config, name)
    if value is None or not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: expected a finite number above 0")


def _is_up_to(largest: int) -> Callable[[Any], bool]:
    """A test for whole numbers from 1 to the largest."""
    return lambda value: type(value) is int and 1 <= value <= largest


@strict
class SEDVisionConfig(PreTrainedConfig):
    """The image encoder: a ConvNeXt trunk of timm and the projection into CLIP's embedding space.

    Args:
        architecture (`str`): timm model name of the trunk; a ConvNeXt.
        model_args (`dict`): Keyword arguments for `timm.create_model`, e.g. `{"depths": (1, 1, 2, 1)}`.
        drop_path_rate (`float`): Stochastic depth of the trunk in training (SED-B 0, SED-L 0.1).
        projection (`"linear"` or `"mlp"`): `linear` has no bias; `mlp` has one hidden layer of twice the embedding
            width with GELU, a bias in the first layer and none in the second.
        projection_dropout (`float`): Dropout after the first layer of the `mlp` projection (SED-L 0.1).
    """

    model_type = "sed_vision_model"
    base_config_key = "vision_config"

    architecture: str = "convnext_base"
    model_args: dict[str, Any] = field(default_factory=dict)
    drop_path_rate: float | int = 0.0
    projection: Literal["linear", "mlp"] = "linear"
    projection_dropout: float | int = 0.0

    def validate_architecture(self) -> None:
        """Refuse values that cannot be built, by name."""
        for name in READING_MODEL_ARGS & self.model_args.keys():
            raise ValueError(
                f"model_args: {name} would read or download weights; expected the shape of a network alone"
            )
        for name, largest in (("depths", MAX_LAYERS), ("dims", MAX_WIDTH)):
            values = self.model_args.get(name, [1] * 4)
            if not isinstance(values, list | tuple) or len(values) != 4 or not all(map(_is_up_to(largest), values)):
                raise ValueError(f"model_args: expected as {name} 4 numbers from 1 to {largest}, got {values!r:.80}")
        if not self.architecture.startswith("convnext"):
            raise ValueError(f"architecture={self.architecture!r}: expected the name of a ConvNeXt model in timm")
        require_probabilities(self, "drop_path_rate", "projection_dropout")


@strict
class SEDTextConfig(CLIPTextConfig):
    """The text encoder: the CLIP text transformer. The defaults are SED-B's."""

    model_type = "sed_text_model"
    base_config_key = "text_config"

    hidden_size: int = 640
    intermediate_size: int = 2560
    projection_dim: int | None = 640
    num_attention_heads: int = 10
    hidden_act: str = "gelu"
    pad_token_id: int | None = 0  # open_clip pads with 0

    def validate_architecture(self) -> None:
        """Refuse values that cannot be built, by name."""
        for name, largest in (
            ("hidden_size", MAX_WIDTH),
            ("intermediate_size", MAX_WIDTH),
            ("projection_dim", MAX_WIDTH),
            ("num_attention_heads", MAX_WIDTH),
            ("max_position_embeddings", MAX_WIDTH),
            ("num_hidden_layers", MAX_LAYERS),
            ("vocab_size", MAX_TOKENS),
        ):
            value = getattr(self, name)
            if value is not None and not _is_up_to(largest)(value):
                raise ValueError(f"text_config.{name}={value!r:.80}: expected a number from 1 to {largest}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads}: expected a divisor of hidden_size={self.hidden_size}"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={self.hidden_act!r}: expected one of {', '.join(ACT2FN)}")
        require_epsilon(self, "layer_norm_eps")
        require_probabilities(self, "attention_dropout")


@strict
class SEDConfig(PreTrainedConfig):
    """Configuration of [`SEDForSemanticSegmentation`]. `SEDConfig()` is SED-B.

    Sizes are in channels unless another unit is given. "Stage" means one of the stages of the gradual fusion decoder.

    Args:
        vision_config (`SEDVisionConfig` or `dict`): The image encoder.
        text_config (`SEDTextConfig` or `dict`): The text encoder. Its `projection_dim` follows `projection_dim`.
        projection_dim (`int`): Width D of the embedding space that images and class names share.
        prompt_templates (`list[str]`): P templates, each with one `{}`. They are the channels of the cost map.
        cost_embedding_kernel_size (`int`): Kernel of the convolution P → `decoder_hidden_sizes[0]`.
        decoder_hidden_sizes (`list[int]`): Width of the cost embedding, then of the output of each stage.
        skip_guidance_sizes (`list[int]`): Width of the skip guidance for each stage (from res4, res3, res2).
        cost_guidance_sizes (`list[int]`): Width of the cost guidance for each stage.
        decoder_kernel_size (`int`): Depthwise kernel of the ConvNeXt block of each stage.
        decoder_mlp_ratio (`int`): Hidden width of the MLPs of each stage, as a multiple of its input width.
        layer_scale_init_value (`float`): Initial layer scale of the ConvNeXt block of each stage.
        layer_norm_eps (`float`): Epsilon of the LayerNorm of the ConvNeXt block of each stage.
        group_norm_group_size (`int`): Channels of each group of the GroupNorms of each stage.
        num_attention_heads (`int`): Heads of class attention.
        class_attention_type (`"linear"` or `"full"`): Linear attention (feature map elu(x) + 1) or softmax attention.
        train_pooling_size (`int`): Spatial average pooling before class attention in training, in cells.
        inference_pooling_size (`int`): The same in inference; the official evaluation uses 1 (no pooling).
        early_rejection_topk (`int`, *optional*): Category early rejection keeps the classes that are among the k best
            at some pixel. `None` decodes every class (dense).
        class_chunk_size (`int`, *optional*): Classes that the decoder takes at a time. By default as many as fit a
            CPU's cache, or keep a GPU busy, at each resolution. The result does not depend on it.
        freeze_text_encoder (`bool`): No gradient reaches the text encoder, as SED trains.
        logit_scale_init_value (`float`): Initial logarithm of CLIP's temperature. SED's cost map has no temperature;
            it is kept so that the two towers remain a complete CLIP.
        ignore_index (`int`): Label of pixels that have no class.
        ignored_as_negative (`bool`): The loss counts ignored pixels as pixels whose every class is negative, as the
            official implementation does. Otherwise they do not count.
    """

    model_type = "sed"
    sub_configs = {"vision_config": SEDVisionConfig, "text_config": SEDTextConfig}

    vision_config: dict | SEDVisionConfig | None = None
    text_config: dict | SEDTextConfig | None = None
    projection_dim: int = 640
    prompt_templates: list[str] | tuple[str, ...] = OPENAI_IMAGENET_TEMPLATES

    cost_embedding_kernel_size: int = 7
    decoder_hidden_sizes: list[int] | tuple[int, ...] = (128, 64, 32, 16)
    skip_guidance_sizes: list[int] | tuple[int, ...] = (32, 16, 8)
    cost_guidance_sizes: list[int] | tuple[int, ...] = (32, 16, 8)
    decoder_kernel_size: int = 9
    decoder_mlp_ratio: int = 4
    layer_scale_init_value: float | int = 1.0
    layer_norm_eps: float = 1e-6
    group_norm_group_size: int = 16

    num_attention_heads: int = 4
    class_attention_type: Literal["linear", "full"] = "linear"
    train_pooling_size: int = 2
    inference_pooling_size: int = 1

    early_rejection_topk: int | None = None
    class_chunk_size: int | None = None
    freeze_text_encoder: bool = True
    logit_scale_init_value: float | int = 2.6592
    ignore_index: int = 255
    ignored_as_negative: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # Lists, as JSON gives them, so that a configuration equals itself after a round trip.
        for name in ("prompt_templates", "decoder_hidden_sizes", "skip_guidance_sizes", "cost_guidance_sizes"):
            setattr(self, name, list(getattr(self, name)))
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = SEDVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = SEDTextConfig(**{"projection_dim": self.projection_dim, **(self.text_config or {})})
        remote_code = {"auto_map": dict(AUTO_MAP), "custom_pipelines": dict(CUSTOM_PIPELINES)}
        super().__post_init__(**{**remote_code, **kwargs})

    def validate_architecture(self) -> None:
        """Refuse values that cannot be built, by name."""
        require_at_least_1(
            self,
            "projection_dim",
            "decoder_mlp_ratio",
            "group_norm_group_size",
            "num_attention_heads",
            "train_pooling_size",
            "inference_pooling_size",
            "early_rejection_topk",
            "class_chunk_size",
        )
        for name in ("projection_dim", "decoder_mlp_ratio"):
            if getattr(self, name) > MAX_WIDTH:
                raise ValueError(f"{name}={getattr(self, name)}: expected at most {MAX_WIDTH}")
        require_finite(self, "layer_scale_init_value", "logit_scale_init_value")
        require_epsilon(self, "layer_norm_eps")
        if not -(2**63) <= self.ignore_index < 2**63:
            raise ValueError(f"ignore_index={self.ignore_index}: expected a number of 64 bits, as labels are")
        for name in ("cost_embedding_kernel_size", "decoder_kernel_size"):
            value = getattr(self, name)
            if value > MAX_KERNEL:
                raise ValueError(f"{name}={value}: expected at most {MAX_KERNEL}")
            if value < 1 or value % 2 == 0:
                raise ValueError(f"{name}={value}: expected an odd size, so that the output keeps the input's size")
        self._validate_decoder_widths()
        self._validate_prompt_templates()
        if isinstance(self.text_config, PreTrainedConfig) and self.text_config.projection_dim != self.projection_dim:
            raise ValueError(
                f"projection_dim={self.projection_dim}: expected text_config.projection_dim"
                f" ({self.text_config.projection_dim}); images and class names share one embedding space"
            )

    def _validate_decoder_widths(self) -> None:
        widths = self.decoder_hidden_sizes
        if len(widths) != 4:
            raise ValueError(
                f"decoder_hidden_sizes={widths}: expected 4 widths, of the cost embedding and three stages"
            )
        for name in ("skip_guidance_sizes", "cost_guidance_sizes"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name}={getattr(self, name)}: expected 3 widths, one for each stage")
        for name in ("decoder_hidden_sizes", "skip_guidance_sizes", "cost_guidance_sizes"):
            if not all(map(_is_up_to(MAX_WIDTH), getattr(self, name))):
                raise ValueError(f"{name}={getattr(self, name)!r:.80}: expected widths from 1 to {MAX_WIDTH}")
        for stage, (width_in, width_out, skip) in enumerate(
            zip(widths[:-1], widths[1:], self.skip_guidance_sizes, strict=True)
        ):
            if width_in % self.num_attention_heads:
                raise ValueError(
                    f"num_attention_heads={self.num_attention_heads}: expected a divisor of"
                    f" decoder_hidden_sizes[{stage}]={width_in}"
                )
            if width_out % self.group_norm_group_size:
                raise ValueError(
                    f"group_norm_group_size={self.group_norm_group_size}: expected a divisor of"
                    f" decoder_hidden_sizes[{stage + 1}]={width_out}"
                )
            if skip >= width_in:
                raise ValueError(
                    f"skip_guidance_sizes[{stage}]={skip}: expected less than decoder_hidden_sizes[{stage}]={width_in}"
                )

    def _validate_prompt_templates(self) -> None:
        if len(self.prompt_templates) > MAX_WIDTH:
            raise ValueError(f"prompt_templates: expected at most {MAX_WIDTH}, got {len(self.prompt_templates)}")
        if not self.prompt_templates:
            raise ValueError("prompt_templates=[]: expected at least one template")
        for template in self.prompt_templates:
            if template.count("{}") != 1:
                raise ValueError(f"prompt_templates: expected exactly one {{}} in each template, got {template!r:.80}")


__all__ = ["OPENAI_IMAGENET_TEMPLATES", "SEDConfig", "SEDTextConfig", "SEDVisionConfig"]
