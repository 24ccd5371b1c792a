"""Official checkpoints and open_clip weights, turned into this model."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from . import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from .hub.load import build_model, some
from .utils import short_error

OFFICIAL_PREFIX = "sem_seg_head.predictor."
CLIP_PREFIX = "clip_model."

SED_BASE = "convnext_base_w_320"
SED_LARGE = "convnext_large_d_320"

# Our name, as a regular expression, and the official one (CLIP's are open_clip's).
NAME_RULES: tuple[tuple[str, str], ...] = (
    (r"image_encoder\.trunk\.(.*)", r"clip_model.visual.trunk.\1"),
    (r"image_encoder\.projection\.(fc\d\..*)", r"clip_model.visual.head.mlp.\1"),
    (r"image_encoder\.projection\.(weight)", r"clip_model.visual.head.proj.\1"),
    (r"text_encoder\.text_model\.embeddings\.token_embedding\.weight", r"clip_model.token_embedding.weight"),
    (r"text_encoder\.text_model\.embeddings\.position_embedding\.weight", r"clip_model.positional_embedding"),
    (r"text_encoder\.text_model\.final_layer_norm\.(.*)", r"clip_model.ln_final.\1"),
    (r"text_encoder\.text_projection\.weight", r"clip_model.text_projection"),
    (
        r"text_encoder\.text_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.(.*)",
        r"clip_model.transformer.resblocks.\1.ln_\2.\3",
    ),
    (
        r"text_encoder\.text_model\.encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(weight|bias)",
        r"clip_model.transformer.resblocks.\1.attn.in_proj_\2",
    ),
    (
        r"text_encoder\.text_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)",
        r"clip_model.transformer.resblocks.\1.attn.out_proj.\2",
    ),
    (
        r"text_encoder\.text_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.(.*)",
        r"clip_model.transformer.resblocks.\1.mlp.c_fc.\2",
    ),
    (
        r"text_encoder\.text_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.(.*)",
        r"clip_model.transformer.resblocks.\1.mlp.c_proj.\2",
    ),
    (r"logit_scale", r"clip_model.logit_scale"),
    (r"decoder\.cost_embedding\.(.*)", r"transformer.conv1.\1"),
    (r"decoder\.auxiliary_heads\.(\d)\.(.*)", r"transformer.head\1.\2"),
    (r"decoder\.head\.(.*)", r"transformer.head.\1"),
    (r"decoder\.stages\.(\d)\.skip_guidance\.(.*)", r"transformer.decoder_guidance_projection.\1.\2"),
    (r"decoder\.stages\.(\d)\.cost_guidance\.(.*)", r"transformer.decoder_corr_guidance_projection.\1.\2"),
    (r"decoder\.stages\.(\d)\.spatial_block\.depthwise\.(.*)", r"transformer.decoder{\1}.cnext.dwconv.\2"),
    (r"decoder\.stages\.(\d)\.spatial_block\.mlp\.fc(\d)\.(.*)", r"transformer.decoder{\1}.cnext.pwconv\2.\3"),
    (r"decoder\.stages\.(\d)\.spatial_block\.norm\.(.*)", r"transformer.decoder{\1}.cnext.norm.\2"),
    (r"decoder\.stages\.(\d)\.spatial_block\.layer_scale", r"transformer.decoder{\1}.cnext.gamma"),
    (
        r"decoder\.stages\.(\d)\.class_attention\.(q|k|v)(?:uery|ey|alue)\.(.*)",
        r"transformer.decoder{\1}.attention.attention.\2.\3",
    ),
    (r"decoder\.stages\.(\d)\.class_attention\.attention_norm\.(.*)", r"transformer.decoder{\1}.attention.norm1.\2"),
    (r"decoder\.stages\.(\d)\.class_attention\.mlp_norm\.(.*)", r"transformer.decoder{\1}.attention.norm2.\2"),
    (r"decoder\.stages\.(\d)\.class_attention\.mlp\.fc1\.(.*)", r"transformer.decoder{\1}.attention.MLP.0.\2"),
    (r"decoder\.stages\.(\d)\.class_attention\.mlp\.fc2\.(.*)", r"transformer.decoder{\1}.attention.MLP.2.\2"),
    (r"decoder\.stages\.(\d)\.skip_fusion\.upsample\.(.*)", r"transformer.decoder{\1}.up.\2"),
    (r"decoder\.stages\.(\d)\.skip_fusion\.fuse\.(.*)", r"transformer.decoder{\1}.conv.double_conv.\2"),
)


def convert_official_checkpoint(
    checkpoint: str | Path | Mapping[str, Any], config: SEDConfig | None = None
) -> SEDForSemanticSegmentation:
    """Turn an official SED checkpoint into this model, in evaluation mode.

    Args:
        checkpoint: A `.pth` file (or the same tensors as `.safetensors`), or what `torch.load` gives for it: a dict
            with key `model`, or a bare state dict, of tensors or numpy arrays.
        config: Configuration of the model. By default SED-B or SED-L is recognised by its shapes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read without executing code, the variant is not recognised, or the checkpoint
            does not fit: what is missing, left over or misshaped is listed.
    """
    if isinstance(checkpoint, str | Path):
        checkpoint = load_checkpoint(Path(checkpoint))
    official = official_state_dict(checkpoint)
    if config is None:
        config = recognise_variant(official)
    with torch.device("meta"):  # what does not fit is refused before memory is taken for it
        weights = convert_weights(build_model(config), official)
    model = build_model(config)
    model.load_state_dict(weights)
    return model.eval()


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint without executing code that it may contain."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_is_not_packed(path)
        with torch.serialization.safe_globals(numpy_globals()), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # torch's own message goes on to advise loading the file without this protection.
        raise ValueError(f"checkpoint: {path} was refused: it holds more than tensors and arrays") from error
    except Exception as error:  # what torch raises depends on where the file is damaged
        raise ValueError(
            f"checkpoint: {path} is not a PyTorch checkpoint, or is incomplete ({short_error(error)})"
        ) from error


def check_is_not_packed(path: Path) -> None:
    """Refuse a file that would take more memory than disk: torch packs nothing.

    Raises:
        ValueError: It is such a file.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, more than its own size, which torch never writes")


def numpy_globals() -> list[Any]:
    """What unpickling a plain numpy array takes, under the names of numpy 1 and 2."""
    reconstruct = np.empty(0).__reduce__()[0]
    dtypes = {type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")}
    return [
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *dtypes,
    ]


def official_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, by official name without `sem_seg_head.predictor.`."""
    weights = checkpoint.get("model", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"checkpoint: expected a state dict, got {type(weights).__name__}")
    state_dict = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(value, Tensor):
            raise ValueError(f"checkpoint: expected tensors or arrays, got {type(value).__name__} for {name!r:.80}")
        if value.layout != torch.strided or not value.is_floating_point():
            raise ValueError(f"checkpoint: expected floating-point numbers for {name!r:.80}, got {value.dtype}")
        state_dict[str(name).removeprefix(OFFICIAL_PREFIX)] = value
    return state_dict


def recognise_variant(official: Mapping[str, Tensor]) -> SEDConfig:
    """The configuration of SED-B or SED-L, by the width of the trunk and of the text encoder."""
    names = ("clip_model.visual.trunk.stem.0.weight", "clip_model.ln_final.weight")
    if absent := [name for name in names if name not in official]:
        raise ValueError(f"checkpoint: not of SED; it has no {' and no '.join(absent)}")
    shapes = [tuple(official[name].shape) for name in names]
    variants = {((128, 3, 4, 4), (640,)): SED_BASE, ((192, 3, 4, 4), (768,)): SED_LARGE}
    variant = variants.get(tuple(shapes))  # type: ignore[arg-type]
    if variant is None:
        raise ValueError(
            "checkpoint: neither SED-B nor SED-L (trunk stem and final LayerNorm of the text encoder have shapes"
            f" {shapes[0]} and {shapes[1]}); pass the config of another variant"
        )
    return config_from_open_clip(variant)


def convert_weights(model: SEDForSemanticSegmentation, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A value for every parameter of the model, from exactly the given tensors; see [`convert_official_checkpoint`]."""
    unused = set(official)
    missing, misshaped, converted = [], [], {}
    for name, parameter in model.state_dict().items():
        source = official_name(name)
        unused.discard(source)
        if source not in official:
            missing.append(source)
            continue
        try:
            tensor = select_weights(name, official[source])
        except (IndexError, RuntimeError):  # it cannot even be taken apart
            tensor = official[source]
        if tensor.shape != parameter.shape:
            misshaped.append(f"{source}: expected {tuple(parameter.shape)} for {name}, got {tuple(tensor.shape)}")
        else:
            converted[name] = tensor.to(parameter.dtype)
    problems = {"missing": sorted(set(missing)), "left over": sorted(unused), "misshaped": misshaped}
    if any(problems.values()):
        lists = "".join(f"\n{kind} ({len(names)}): {some(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"checkpoint: does not fit the configuration{lists}")
    if infinite := [name for name, tensor in converted.items() if not tensor.isfinite().all()]:
        raise ValueError(f"checkpoint: numbers that are not finite, for {some(infinite)}")
    return converted


def official_name(name: str) -> str:
    """The official name of the tensor that holds one of our parameters."""
    for pattern, replacement in NAME_RULES:
        if match := re.fullmatch(pattern, name):
            # {n} counts from one.
            return re.sub(r"\{(\d)\}", lambda number: str(int(number[1]) + 1), match.expand(replacement))
    raise ValueError(f"no official name for {name!r}")


def select_weights(name: str, tensor: Tensor) -> Tensor:
    """The part of an official tensor that is one of our parameters."""
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
    model = SEDForSemanticSegmentation(config_from_open_clip(variant))
    try:
        clip = open_clip.create_model(variant, pretrained=pretrained)
    except RuntimeError as error:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(variant))
        raise ValueError(f"pretrained={pretrained!r}: expected a file or one of {tags} ({error})") from error
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
