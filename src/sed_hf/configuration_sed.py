"""Configuration of SED (Xie et al., CVPR 2024, arXiv 2311.15537)."""

from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig

# The 80 ImageNet prompt templates of OpenAI CLIP (https://github.com/openai/CLIP, MIT licence), as in open_clip.
# fmt: off
OPENAI_IMAGENET_TEMPLATES: tuple[str, ...] = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
    "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
    "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.", "a painting of a {}.",
    "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.",
    "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.",
    "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.", "a origami {}.",
    "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.",
    "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.", "a embroidered {}.",
    "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.",
    "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
    "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
    "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.",
    "a tattoo of the {}.",
)
# fmt: on

# The code that a Hub repository carries: what each Auto class and `pipeline` make with `trust_remote_code=True`.
AUTO_MAP = {
    "AutoConfig": "configuration_sed.SEDConfig",
    "AutoModel": "modeling_sed.SEDForSemanticSegmentation",
    "AutoModelForSemanticSegmentation": "modeling_sed.SEDForSemanticSegmentation",
    "AutoImageProcessor": "image_processing_sed.SEDImageProcessor",
    "AutoProcessor": "processing_sed.SEDProcessor",
}
CUSTOM_PIPELINES = {
    "open-vocabulary-segmentation": {"impl": "pipeline_sed.SEDPipeline", "pt": ["AutoModelForSemanticSegmentation"]}
}

# Arguments of `timm.create_model` that do not describe the shape of a network.
READING_MODEL_ARGS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"}
)


def check(config: PreTrainedConfig, name: str, is_valid: bool, expected: str) -> None:
    """Refuse a value by its name."""
    if not is_valid:
        raise ValueError(f"{name}={getattr(config, name)!r:.80}: expected {expected}")


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
        """Refuse what would be wrong without a word, or would read or download weights."""
        check(self, "architecture", self.architecture.startswith("convnext"), "the name of a ConvNeXt in timm")
        reading = READING_MODEL_ARGS & self.model_args.keys()
        check(self, "model_args", not reading, f"the shape of a network; {', '.join(reading)} would read weights")
        for name in ("drop_path_rate", "projection_dropout"):
            check(self, name, 0 <= getattr(self, name) < 1, "a probability in [0, 1)")


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


@strict
class SEDConfig(PreTrainedConfig):
    """Configuration of [`SEDForSemanticSegmentation`]. `SEDConfig()` is SED-B.

    Sizes are in channels unless another unit is given; a stage is one of the gradual fusion decoder.

    Args:
        vision_config (`SEDVisionConfig` or `dict`): The image encoder.
        text_config (`SEDTextConfig` or `dict`): The text encoder. Its `projection_dim` follows `projection_dim`.
        projection_dim (`int`): Width D of the embedding space that images and class names share.
        prompt_templates (`list[str]`): P templates, each with one `{}`. They are the channels of the cost map.
        cost_embedding_kernel_size (`int`): Kernel of the convolution P → `decoder_hidden_sizes[0]`.
        decoder_hidden_sizes (`list[int]`): Width of the cost embedding, then of the output of each stage.
        skip_guidance_sizes, cost_guidance_sizes (`list[int]`): Width of the guidance of each stage (res4, res3, res2).
        decoder_kernel_size, decoder_mlp_ratio, layer_norm_eps, layer_scale_init_value: Depthwise kernel, width of the
            MLP as a multiple of its input, epsilon and initial layer scale of the ConvNeXt block of each stage.
        group_norm_group_size (`int`): Channels of each group of the GroupNorms of each stage.
        num_attention_heads (`int`): Heads of class attention.
        class_attention_type (`"linear"` or `"full"`): Linear attention (feature map elu(x) + 1) or softmax attention.
        train_pooling_size, inference_pooling_size (`int`): Spatial average pooling before class attention, in cells.
        early_rejection_topk (`int`, *optional*): Category early rejection keeps the classes that are among the k best
            at some pixel. `None` decodes every class (dense).
        class_chunk_size (`int`, *optional*): Classes that the decoder takes at a time. By default as many as fit a
            CPU's cache, or keep a GPU busy, at each resolution. The result does not depend on it.
        freeze_text_encoder (`bool`): Text encoder and logit scale do not require gradients, as SED trains.
        logit_scale_init_value (`float`): Initial logarithm of CLIP's temperature, which SED's cost map does not use.
        ignore_index (`int`): Label of pixels that have no class.
        ignored_as_negative (`bool`): The loss counts ignored pixels as pixels whose every class is negative, as the
            official implementation does. Otherwise they do not count.
        num_saved_classes (`int`, *optional*): Classes saved with the weights, as `set_classes` notes.
    """

    model_type = "sed"
    sub_configs = {"vision_config": SEDVisionConfig, "text_config": SEDTextConfig}
    keys_to_ignore_at_inference = [  # so that `Trainer` gathers the logits only
        "aux_logits", "losses", "logit_classes", "kept_classes", "class_embeddings", "dense_embeddings", "cost_map",
        "encoder_hidden_states", "decoder_hidden_states",
    ]  # fmt: skip

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
    num_saved_classes: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Lists, as JSON gives them, so that a configuration equals itself after a round trip.
        for name in ("prompt_templates", "decoder_hidden_sizes", "skip_guidance_sizes", "cost_guidance_sizes"):
            setattr(self, name, list(getattr(self, name)))
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = SEDVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = SEDTextConfig(**{"projection_dim": self.projection_dim, **(self.text_config or {})})
        if not __name__.startswith("transformers_modules."):  # the installed package's pipeline is registered
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**{"auto_map": dict(AUTO_MAP), **kwargs})

    def to_dict(self) -> dict[str, Any]:
        """All settings, with the code that a saved folder carries, wherever the model came from."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP), "custom_pipelines": dict(CUSTOM_PIPELINES)}

    def validate_architecture(self) -> None:
        """Refuse what would be wrong without a word."""
        counts = ("decoder_mlp_ratio", "group_norm_group_size", "train_pooling_size", "inference_pooling_size")
        for name in (*counts, "early_rejection_topk", "class_chunk_size", "num_saved_classes"):
            value = getattr(self, name)
            check(self, name, value is None or value > 0, "at least 1")
        widths = self.decoder_hidden_sizes
        for name, count in (("decoder_hidden_sizes", 4), ("skip_guidance_sizes", 3), ("cost_guidance_sizes", 3)):
            sizes = getattr(self, name)
            check(self, name, len(sizes) == count and min(sizes) > 0, f"{count} widths of at least 1")
        fits = all(skip < width for skip, width in zip(self.skip_guidance_sizes, widths[:-1], strict=True))
        check(self, "skip_guidance_sizes", fits, f"each less than decoder_hidden_sizes={widths[:-1]}")
        fits = not any(width % self.group_norm_group_size for width in widths[1:])
        check(self, "group_norm_group_size", fits, f"a divisor of decoder_hidden_sizes={widths[1:]}")
        templates = self.prompt_templates
        fits = bool(templates) and all(template.count("{}") == 1 for template in templates)
        check(self, "prompt_templates", fits, "templates with one {} each")


__all__ = ["OPENAI_IMAGENET_TEMPLATES", "SEDConfig", "SEDTextConfig", "SEDVisionConfig"]
