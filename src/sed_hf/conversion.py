"""Official checkpoints and open_clip weights, turned into this model."""

import codecs
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy._core import multiarray, numeric
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer
from transformers.utils import logging

from . import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from .utils import some

logger = logging.get_logger(__name__)

SED_BASE = "convnext_base_w_320"
SED_LARGE = "convnext_large_d_320"
VARIANTS = {128: SED_BASE, 192: SED_LARGE}  # by the width of the trunk's stem

OF_OTHER_FILES = (LookupError, ValueError, AttributeError, TypeError)  # which unpickling raises
# What pickles of arrays, numpy scalars and state dicts refer to, by the names of numpy 1 and 2.
SAFE_GLOBALS: dict[str, Any] = {
    "_codecs.encode": codecs.encode,
    "collections.OrderedDict": OrderedDict,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.dtypes.{type(np.dtype(code)).__name__}": type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
}
for function in (multiarray._reconstruct, multiarray.scalar, numeric._frombuffer):  # type: ignore[attr-defined]
    for package in ("numpy.core", "numpy._core"):
        SAFE_GLOBALS[f"{package}.{function.__module__.rpartition('.')[2]}.{function.__name__}"] = function

# What DistributedDataParallel, torch.compile and Detectron2 put before the names of SED's own tensors.
WRAPPERS = re.compile(r"(module\.|_orig_mod\.)*(sem_seg_head\.predictor\.)?")
# Buffers of Detectron2, CLIP and losses, which earlier versions of them saved and no result depends on.
BUFFERS = re.compile(
    r"(.*\.)?((clip_)?(pixel|image)_(mean|std)|attn_mask|position_ids|num_batches_tracked|empty_weight"
    r"|input_resolution|context_length|vocab_size)"
)

TEXT = r"text_encoder\.text_model\."
TEXT_LAYER, OFFICIAL_TEXT_LAYER = TEXT + r"encoder\.layers\.(\d+)\.", r"clip_model.transformer.resblocks.\1."
STAGE, OFFICIAL_STAGE = r"decoder\.stages\.(\d)\.", r"transformer.decoder{\1}."
# Our name, as a regular expression, and the official one (CLIP's are open_clip's), where {n} counts from one.
NAME_RULES: tuple[tuple[str, str], ...] = (
    (r"image_encoder\.trunk\.(.*)", r"clip_model.visual.trunk.\1"),
    (r"image_encoder\.projection\.(fc\d\..*)", r"clip_model.visual.head.mlp.\1"),
    (r"image_encoder\.projection\.(weight)", r"clip_model.visual.head.proj.\1"),
    (TEXT + r"embeddings\.token_embedding\.weight", r"clip_model.token_embedding.weight"),
    (TEXT + r"embeddings\.position_embedding\.weight", r"clip_model.positional_embedding"),
    (TEXT + r"final_layer_norm\.(.*)", r"clip_model.ln_final.\1"),
    (TEXT_LAYER + r"layer_norm(\d)\.(.*)", OFFICIAL_TEXT_LAYER + r"ln_\2.\3"),
    (TEXT_LAYER + r"self_attn\.[qkv]_proj\.(weight|bias)", OFFICIAL_TEXT_LAYER + r"attn.in_proj_\2"),
    (TEXT_LAYER + r"self_attn\.out_proj\.(.*)", OFFICIAL_TEXT_LAYER + r"attn.out_proj.\2"),
    (TEXT_LAYER + r"mlp\.fc1\.(.*)", OFFICIAL_TEXT_LAYER + r"mlp.c_fc.\2"),
    (TEXT_LAYER + r"mlp\.fc2\.(.*)", OFFICIAL_TEXT_LAYER + r"mlp.c_proj.\2"),
    (r"text_encoder\.text_projection\.weight", r"clip_model.text_projection"),
    (r"logit_scale", r"clip_model.logit_scale"),
    (r"decoder\.cost_embedding\.(.*)", r"transformer.conv1.\1"),
    (r"decoder\.auxiliary_heads\.(\d)\.(.*)", r"transformer.head\1.\2"),
    (r"decoder\.head\.(.*)", r"transformer.head.\1"),
    (STAGE + r"skip_guidance\.(.*)", r"transformer.decoder_guidance_projection.\1.\2"),
    (STAGE + r"cost_guidance\.(.*)", r"transformer.decoder_corr_guidance_projection.\1.\2"),
    (STAGE + r"spatial_block\.depthwise\.(.*)", OFFICIAL_STAGE + r"cnext.dwconv.\2"),
    (STAGE + r"spatial_block\.mlp\.fc(\d)\.(.*)", OFFICIAL_STAGE + r"cnext.pwconv\2.\3"),
    (STAGE + r"spatial_block\.norm\.(.*)", OFFICIAL_STAGE + r"cnext.norm.\2"),
    (STAGE + r"spatial_block\.layer_scale", OFFICIAL_STAGE + r"cnext.gamma"),
    (STAGE + r"class_attention\.(q|k|v)(?:uery|ey|alue)\.(.*)", OFFICIAL_STAGE + r"attention.attention.\2.\3"),
    (STAGE + r"class_attention\.attention_norm\.(.*)", OFFICIAL_STAGE + r"attention.norm1.\2"),
    (STAGE + r"class_attention\.mlp_norm\.(.*)", OFFICIAL_STAGE + r"attention.norm2.\2"),
    (STAGE + r"class_attention\.mlp\.fc1\.(.*)", OFFICIAL_STAGE + r"attention.MLP.0.\2"),
    (STAGE + r"class_attention\.mlp\.fc2\.(.*)", OFFICIAL_STAGE + r"attention.MLP.2.\2"),
    (STAGE + r"skip_fusion\.upsample\.(.*)", OFFICIAL_STAGE + r"up.\2"),
    (STAGE + r"skip_fusion\.fuse\.(.*)", OFFICIAL_STAGE + r"conv.double_conv.\2"),
)


def convert_official_checkpoint(
    checkpoint: str | Path | Mapping[str, Any], config: SEDConfig | None = None, ignore_extra: bool = False
) -> SEDForSemanticSegmentation:
    """Turn an official SED checkpoint into this model, in evaluation mode, without running code that it may contain.

    Args:
        checkpoint: A `.pth`, `.pkl` (Detectron2's pickle of arrays) or `.safetensors` file, or what it holds: a dict
            with key `model`, or a bare state dict, of tensors or numpy arrays.
        config: Configuration of the model. By default SED-B or SED-L is recognised by its shapes.
        ignore_extra: Drop tensors that the model has no place for, rather than refuse them.

    Raises:
        ValueError: The file is refused, or does not fit: what is missing, left over or of another shape is listed.
    """
    if isinstance(checkpoint, str | Path):
        checkpoint = load_checkpoint(Path(checkpoint))
    official = official_state_dict(checkpoint)
    model = SEDForSemanticSegmentation(recognise_variant(official) if config is None else config)
    model.load_state_dict(convert_weights(model, official, ignore_extra))
    return model.eval()


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint; a file that is damaged, or holds more than tensors, arrays and numbers, is a ValueError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return ArrayUnpickler(file, encoding="latin1").load()
        with torch.serialization.safe_globals([(value, name) for name, value in SAFE_GLOBALS.items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, *OF_OTHER_FILES) as error:
        # torch's own message would advise to load the file without this protection.
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} was refused, since reading it would run {refused[1]:.80}; if you trust it, save it again with"
                " its weights only: torch.save({'model': weights}, ...)"
            ) from error
        raise ValueError(f"{path}: expected a checkpoint; this is another kind of file, or damaged") from error


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of arrays and plain Python values, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle refers to by this name, if it is known to be harmless."""
        if f"{module}.{name}" not in SAFE_GLOBALS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return SAFE_GLOBALS[f"{module}.{name}"]


def official_state_dict(checkpoint: Any) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, by official name without what wrappers put before it."""
    weights = checkpoint.get("model", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"checkpoint: expected a state dict, got {type(weights).__name__}")
    state_dict = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))  # torch has no other byte order
        if not isinstance(value, Tensor):
            raise ValueError(f"checkpoint: expected tensors or arrays, got {type(value).__name__} for {name!r:.80}")
        state_dict[WRAPPERS.sub("", str(name), count=1)] = value
    return state_dict


def recognise_variant(official: Mapping[str, Tensor]) -> SEDConfig:
    """The configuration of SED-B or SED-L, by the width of the trunk."""
    width = len(official.get("clip_model.visual.trunk.stem.0.weight", ()))
    if width not in VARIANTS:
        raise ValueError("checkpoint: expected weights of SED-B or SED-L; another variant of SED needs its config")
    return config_from_open_clip(VARIANTS[width])


def convert_weights(
    model: SEDForSemanticSegmentation, official: Mapping[str, Tensor], ignore_extra: bool = False
) -> dict[str, Tensor]:
    """A value for every parameter of the model, from exactly the given tensors; see [`convert_official_checkpoint`]."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    sources = {name: official_name(name) for name in shapes}
    weights = {name: select_weights(name, official[source]) for name, source in sources.items() if source in official}
    unused = official.keys() - set(sources.values())
    dropped = unused if ignore_extra else {name for name in unused if BUFFERS.fullmatch(name)}
    problems = {
        "missing": set(sources.values()) - official.keys(),
        "left over": unused - dropped,
        "of another shape or type": {
            f"{sources[name]}: expected {shapes[name]}, got {tuple(tensor.shape)} of {tensor.dtype}"
            for name, tensor in weights.items()
            if tensor.shape != shapes[name] or not tensor.is_floating_point()
        },
        "not finite": {sources[name] for name, tensor in weights.items() if not tensor.isfinite().all()},
    }
    if any(problems.values()):
        lists = "; ".join(f"{kind} ({len(names)}): {some(names)}" for kind, names in problems.items() if names)
        hint = "; --ignore-extra drops what is left over" if problems["left over"] else ""
        raise ValueError(f"checkpoint: does not fit the configuration; {lists}{hint}")
    if dropped:
        names = ", ".join(sorted(dropped))
        logger.warning(f"Dropped from the checkpoint, since the model has no place for them: {names}")
    return weights


def official_name(name: str) -> str:
    """The official name of the tensor that holds one of our parameters."""
    for pattern, replacement in NAME_RULES:
        if match := re.fullmatch(rf"(?:sed\.)?{pattern}", name):
            return re.sub(r"\{(\d)\}", lambda number: str(int(number[1]) + 1), match.expand(replacement))
    raise ValueError(f"no official name for {name!r}")


def select_weights(name: str, tensor: Tensor) -> Tensor:
    """The part of an official tensor that is one of our parameters."""
    if name.endswith("text_projection.weight"):
        return tensor.T  # open_clip multiplies from the right
    if name.endswith("logit_scale"):
        return tensor.reshape(1)
    if match := re.search(r"\.self_attn\.([qkv])_proj\.", name):
        return tensor.chunk(3)["qkv".index(match[1])]
    return tensor


def from_open_clip(variant: str = SED_BASE, pretrained: str | None = None) -> SEDForSemanticSegmentation:
    """A model ready to train: the towers of an open_clip ConvNeXt model and a fresh decoder.

    Args:
        variant: Name of the model in open_clip. `convnext_base_w_320` makes SED-B, `convnext_large_d_320` SED-L.
        pretrained: Name of the weights in open_clip, or a file. SED-B trains from `laion_aesthetic_s13b_b82k`, SED-L
            from `laion2b_s29b_b131k_ft_soup`. `None` leaves the towers at open_clip's random initialisation.
    """
    config = config_from_open_clip(variant)
    tags = open_clip.list_pretrained_tags_by_model(variant)
    if pretrained is not None and pretrained not in tags and not Path(pretrained).exists():
        raise ValueError(f"pretrained={pretrained!r}: expected a file or one of {', '.join(tags)}")
    clip = open_clip.create_model(variant, pretrained=pretrained)
    model = SEDForSemanticSegmentation(config)
    weights = {f"clip_model.{name}": tensor for name, tensor in clip.state_dict().items()}
    weights |= {official_name(name): x for name, x in model.state_dict().items() if name.startswith("decoder.")}
    model.load_state_dict(convert_weights(model, weights))
    return model


def config_from_open_clip(variant: str) -> SEDConfig:
    """The configuration of SED on an open_clip model.

    Drop path and dropout are those of official SED for its two variants, and open_clip's for others.
    """
    clip = open_clip.get_model_config(variant) or {"vision_cfg": {}}
    vision = clip["vision_cfg"]
    architecture = vision.get("timm_model_name", "")
    if not architecture.startswith("convnext") or vision["timm_pool"] or vision["timm_proj"] not in ("linear", "mlp"):
        known = ", ".join(name for name in open_clip.list_models() if name.startswith("convnext"))
        raise ValueError(f"variant={variant!r}: expected a timm ConvNeXt without pooling in open_clip, such as {known}")
    official = {SED_BASE: 0.0, SED_LARGE: 0.1}
    text = clip["text_cfg"]
    return SEDConfig(
        projection_dim=clip["embed_dim"],
        vision_config={
            "architecture": architecture,
            "projection": vision["timm_proj"],
            "drop_path_rate": official.get(variant, vision["timm_drop_path"]),
            "projection_dropout": official.get(variant, vision["timm_drop"]),
        },
        text_config={
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_attention_heads": text["heads"],
            "num_hidden_layers": text["layers"],
        },
    )


def build_processor(config: SEDConfig) -> SEDProcessor:
    """The processor of official SED, with CLIP's vocabulary as open_clip ships it."""
    image_processor = SEDImageProcessor(ignore_index=config.ignore_index)
    return SEDProcessor(image_processor, build_clip_tokenizer(), prompt_templates=config.prompt_templates)


def build_clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, from open_clip's BPE vocabulary."""
    bpe = SimpleTokenizer()
    vocabulary = dict(bpe.encoder)
    vocabulary["<|startoftext|>"] = vocabulary.pop("<start_of_text>")
    vocabulary["<|endoftext|>"] = vocabulary.pop("<end_of_text>")
    return CLIPTokenizer(vocab=vocabulary, merges=list(bpe.bpe_ranks), model_max_length=bpe.context_length)
