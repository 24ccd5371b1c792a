"""Official checkpoints and open_clip weights, turned into this model."""

import codecs
import pickle
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer
from transformers.utils import logging

from . import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from .hub.load import some

logger = logging.get_logger(__name__)

# What DistributedDataParallel, torch.compile and Detectron2 put before the names of SED's own tensors.
WRAPPERS = re.compile(r"(module\.|_orig_mod\.)*(sem_seg_head\.predictor\.)?")
# Buffers of Detectron2, CLIP and losses, which earlier versions of them saved and no result depends on.
BUFFERS = re.compile(
    r"(.*\.)?((clip_)?(pixel|image)_(mean|std)|attn_mask|position_ids|num_batches_tracked|empty_weight"
    r"|input_resolution|context_length|vocab_size)"
)
CLIP_PREFIX = "clip_model."

SED_BASE = "convnext_base_w_320"
SED_LARGE = "convnext_large_d_320"

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
    """Turn an official SED checkpoint into this model, in evaluation mode.

    Args:
        checkpoint: A `.pth`, `.pkl` (Detectron2's pickle of arrays) or `.safetensors` file, or what it holds: a dict
            with key `model`, or a bare state dict, of tensors or numpy arrays.
        config: Configuration of the model. By default SED-B or SED-L is recognised by its shapes.
        ignore_extra: Drop tensors that the model has no place for, rather than refuse them.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file cannot be read without running code, the variant is not recognised, or the checkpoint
            does not fit: what is missing, left over or of another shape is listed.
    """
    if isinstance(checkpoint, str | Path):
        checkpoint = load_checkpoint(Path(checkpoint))
    official = official_state_dict(checkpoint)
    model = SEDForSemanticSegmentation(recognise_variant(official) if config is None else config)
    model.load_state_dict(convert_weights(model, official, ignore_extra))
    return model.eval()


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint without running code that it may contain.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is damaged, or holds more than tensors, arrays and numbers.
    """
    safe = numpy_globals()
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return ArrayUnpickler(file, encoding="latin1").load()
        with torch.serialization.safe_globals([(value, name) for name, value in safe.items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        # torch's own message would advise to load the file without this protection.
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} was refused, since reading it would run {refused[1]:.80}; if you trust it, save it again with"
                " its weights only: torch.save({'model': weights}, ...)"
            ) from error
        raise ValueError(f"{path}: expected a checkpoint; this is another kind of file, or damaged") from error


def numpy_globals() -> dict[str, Any]:
    """What pickles of numpy arrays and scalars refer to, by the names of numpy 1 and 2."""
    array, scalar = np.empty(0), np.float64(0)
    functions: list[Any] = [array.__reduce__()[0], array.__reduce_ex__(5)[0], scalar.__reduce__()[0]]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return {
        **{
            f"{package}.{function.__module__.rpartition('.')[2]}.{function.__name__}": function
            for package in ("numpy.core", "numpy._core")
            for function in functions
        },
        **{f"numpy.dtypes.{dtype.__name__}": dtype for dtype in dtypes},
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
    }


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of arrays and plain Python values, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle refers to by this name.

        Raises:
            UnpicklingError: It is not known to be harmless.
        """
        safe = {**numpy_globals(), "_codecs.encode": codecs.encode, "collections.OrderedDict": OrderedDict}
        if f"{module}.{name}" not in safe:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return safe[f"{module}.{name}"]


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
    stem = official.get("clip_model.visual.trunk.stem.0.weight")
    if stem is None:
        raise ValueError("checkpoint: not of SED; it has no clip_model.visual.trunk.stem.0.weight")
    variants = {(128, 3, 4, 4): SED_BASE, (192, 3, 4, 4): SED_LARGE}
    if stem.shape not in variants:
        raise ValueError(
            f"checkpoint: neither SED-B nor SED-L (stem of the trunk: {tuple(stem.shape)}); pass the config of another"
            " variant"
        )
    return config_from_open_clip(variants[stem.shape])


def convert_weights(
    model: SEDForSemanticSegmentation, official: Mapping[str, Tensor], ignore_extra: bool = False
) -> dict[str, Tensor]:
    """A value for every parameter of the model, from exactly the given tensors; see [`convert_official_checkpoint`]."""
    unused = set(official)
    missing, misfits, converted = set(), [], {}
    for name, parameter in model.state_dict().items():
        source = official_name(name)
        unused.discard(source)
        if source not in official:
            missing.add(source)
            continue
        tensor = select_weights(name, official[source])
        if tensor.shape == parameter.shape and tensor.is_floating_point():
            converted[name] = tensor.to(parameter.dtype)
        else:
            got = f"{tuple(tensor.shape)} of {tensor.dtype}"
            misfits.append(f"{source}: expected {tuple(parameter.shape)} for {name}, got {got}")
    dropped = unused if ignore_extra else {name for name in unused if BUFFERS.fullmatch(name)}
    problems: dict[str, Collection[str]] = {
        "missing": missing,
        "left over": unused - dropped,
        "of another shape or type": misfits,
    }
    if any(problems.values()):
        lists = "; ".join(f"{kind} ({len(names)}): {some(names)}" for kind, names in problems.items() if names)
        hint = "; --ignore-extra drops what is left over" if unused - dropped else ""
        raise ValueError(f"checkpoint: does not fit the configuration; {lists}{hint}")
    if bad := [name for name, tensor in converted.items() if not tensor.isfinite().all()]:
        raise ValueError(f"checkpoint: numbers that are not finite, for {some(bad)}")
    if dropped:
        logger.warning(
            f"Dropped from the checkpoint, since the model has no place for them: {', '.join(sorted(dropped))}"
        )
    return converted


def official_name(name: str) -> str:
    """The official name of the tensor that holds one of our parameters."""
    for pattern, replacement in NAME_RULES:
        if match := re.fullmatch(rf"(?:sed\.)?{pattern}", name):
            return re.sub(r"\{(\d)\}", lambda number: str(int(number[1]) + 1), match.expand(replacement))
    raise ValueError(f"no official name for {name!r}")


def select_weights(name: str, tensor: Tensor) -> Tensor:
    """The part of an official tensor that is one of our parameters."""
    name = name.removeprefix("sed.")
    if name == "text_encoder.text_projection.weight":
        return tensor.T  # open_clip multiplies from the right
    if name == "logit_scale":
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

    Raises:
        ValueError: open_clip has no such model, its image tower is not a timm ConvNeXt without pooling, or the weights
            are unknown or cannot be downloaded.
    """
    config = config_from_open_clip(variant)
    try:
        clip = open_clip.create_model(variant, pretrained=pretrained)
    except RuntimeError as error:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(variant))
        raise ValueError(f"pretrained={pretrained!r}: expected a file or one of {tags} ({error})") from error
    model = SEDForSemanticSegmentation(config)
    towers = {CLIP_PREFIX + name: tensor for name, tensor in clip.state_dict().items()}
    decoder = {
        official_name(name): tensor for name, tensor in model.state_dict().items() if name.startswith("decoder.")
    }
    model.load_state_dict(convert_weights(model, {**towers, **decoder}))
    return model


def config_from_open_clip(variant: str) -> SEDConfig:
    """The configuration of SED on an open_clip model.

    Drop path and dropout are those of official SED for its two variants, and open_clip's for others.
    """
    clip = open_clip.get_model_config(variant)
    if clip is None:
        known = [name for name in open_clip.list_models() if name.startswith("convnext")]
        raise ValueError(f"variant={variant!r}: expected a ConvNeXt model of open_clip: {', '.join(known)}")
    vision, text, width = clip["vision_cfg"], clip["text_cfg"], clip["embed_dim"]
    architecture = vision.get("timm_model_name", "")
    if not architecture.startswith("convnext") or vision["timm_pool"] or vision["timm_proj"] not in ("linear", "mlp"):
        raise ValueError(f"variant={variant!r}: expected a timm ConvNeXt without pooling as image tower")
    regularisation = {"drop_path_rate": vision["timm_drop_path"], "projection_dropout": vision["timm_drop"]}
    regularisation |= {
        SED_BASE: {"drop_path_rate": 0.0, "projection_dropout": 0.0},
        SED_LARGE: {"drop_path_rate": 0.1, "projection_dropout": 0.1},
    }.get(variant, {})
    return SEDConfig(
        projection_dim=width,
        vision_config={"architecture": architecture, "projection": vision["timm_proj"], **regularisation},
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
