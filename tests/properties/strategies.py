"""What the properties are tried with: images, class names, label maps, configurations; and how often.

Pixels and weights are drawn from a seed, which is quick; sizes, forms and names are hypothesis' own, so that a failure
shrinks to the smallest of them.
"""

import string
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sed_hf.processing_sed import clean_text

QUICK_EXAMPLES = settings.get_profile("quick").max_examples

seeds = st.integers(0, 2**32 - 1)


def examples(count: int) -> settings:
    """So many examples in the profile `quick`, and in proportion in others; for tests whose examples take long."""
    return settings(max_examples=max(1, count * settings.default.max_examples // QUICK_EXAMPLES))


def normal(*size: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed numbers; the same in every dtype, but for rounding."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Images --------------------------------------------------------------------------------------------------------------


class AnyImage(NamedTuple):
    """An image in the form that a user has it.

    Attributes:
        image: PIL image, array or tensor.
        rgb: What it shows, uint8 (height, width, 3).
        data_format: Where an array has its channels; `None` where there is no doubt.
    """

    image: Any
    rgb: NDArray[np.uint8]
    data_format: str | None


# Sides of ordinary images, and of slivers.
sizes = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(100, 400)),
    st.tuples(st.integers(100, 400), st.integers(1, 3)),
)


@st.composite
def rgb_arrays(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) that no form can mistake: some of them are brighter than 1."""
    height, width = draw(sizes)
    return np.random.default_rng(draw(seeds)).integers(2, 256, (height, width, 3), dtype=np.uint8)


def gray_of(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey image (height, width) of the same pixels."""
    return np.ascontiguousarray(rgb[..., 0])


def gray_rgb(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a grey image shows."""
    return np.repeat(gray[..., None], 3, axis=2)


def on_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) of opacity (height, width) before a white wall."""
    share = alpha[..., None].astype(np.float32) / 255
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)


PIL_MODES = ("1", "L", "I", "I;16", "F", "P", "RGB", "RGBA", "LA", "CMYK")
ARRAY_FORMS = ("uint8", "read-only", "int64", "uint16", "float64 to 1", "float32 to 1", "float32 to 255")


def as_pil(rgb: NDArray[np.uint8], mode: str) -> tuple[Image.Image, NDArray[np.uint8]]:
    """A PIL image of a mode, of the pixels or of their first channel, and what it shows."""
    gray, alpha = gray_of(rgb), rgb[..., 1]
    if mode == "P":
        image = Image.fromarray(rgb).quantize(colors=16)
        return image, np.array(image.convert("RGB"))
    if mode == "RGBA":
        return Image.fromarray(np.dstack([rgb, alpha])), on_white(rgb, alpha)
    if mode == "LA":
        return Image.fromarray(np.dstack([gray, alpha]), mode="LA"), on_white(gray_rgb(gray), alpha)
    if mode == "1":
        return Image.fromarray(gray > 127), gray_rgb((gray > 127).astype(np.uint8) * 255)
    if mode in ("RGB", "CMYK"):
        return Image.fromarray(rgb).convert(mode), rgb
    levels = {"L": gray, "I;16": gray.astype(np.uint16) * 257, "I": gray.astype(np.int32), "F": gray.astype(np.float32)}
    return Image.fromarray(levels[mode]), gray_rgb(gray)


def as_array(rgb: NDArray[np.uint8], form: str) -> NDArray:
    """An array of a type and scale that shows the same."""
    if form == "read-only":
        return np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.shape)
    if form.endswith("to 1"):
        return (rgb / 255).astype(form.split()[0])
    return rgb.astype(form.split()[0]) * (257 if form == "uint16" else 1)


@st.composite
def pil_images(draw: st.DrawFn) -> AnyImage:
    """PIL images of every mode."""
    image, shown = as_pil(draw(rgb_arrays()), draw(st.sampled_from(PIL_MODES)))
    return AnyImage(image, shown, None)


@st.composite
def array_images(draw: st.DrawFn) -> AnyImage:
    """Arrays and tensors of every type, with channels first, last, or none."""
    rgb = draw(rgb_arrays())
    layout = draw(st.sampled_from(["channels_first", "channels_last", "gray"]))
    if layout == "gray":
        rgb = gray_rgb(gray_of(rgb))
    array = as_array(rgb, draw(st.sampled_from(ARRAY_FORMS)))
    array = {"channels_first": np.moveaxis(array, -1, 0), "channels_last": array, "gray": array[..., 0]}[layout]
    as_tensor = draw(st.booleans())
    return AnyImage(torch.tensor(array) if as_tensor else array, rgb, None if layout == "gray" else layout)


any_images = st.one_of(pil_images(), array_images())


# Class names ---------------------------------------------------------------------------------------------------------

_plain_names = st.text(string.ascii_letters + string.digits + " -'.", min_size=1, max_size=20)
_any_names = st.text(max_size=12)
synonyms = st.one_of(_plain_names, _any_names).filter(
    lambda name: ", " not in name and not name.strip().endswith(",") and bool(clean_text(name))
)
class_names = (
    st.lists(synonyms, min_size=1, max_size=3)
    .map(", ".join)
    .filter(lambda name: all(clean_text(synonym) for synonym in name.split(", ")))
)


def vocabularies(max_size: int = 6) -> st.SearchStrategy[list[str]]:
    """Lists of different class names of any characters, some with synonyms."""
    return st.lists(class_names, min_size=1, max_size=max_size, unique_by=clean_text)


@st.composite
def orders(draw: st.DrawFn, count: int) -> list[int]:
    """The numbers 0, 1, ... in any order."""
    return draw(st.permutations(range(count)))


# Label maps ----------------------------------------------------------------------------------------------------------


def label_maps(
    values: st.SearchStrategy[int], max_side: int = 8, dtype: Any = np.int64
) -> st.SearchStrategy[NDArray[np.integer]]:
    """Label maps (height, width) of any of the values."""
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=max_side)
    return hnp.arrays(dtype, shapes, elements=values)


# Configurations ------------------------------------------------------------------------------------------------------


@st.composite
def decoder_settings(draw: st.DrawFn, group_sizes: tuple[int, ...] = (1, 2, 4)) -> dict[str, Any]:
    """Settings of a `SEDConfig` that make a small decoder, with some channels in a group of its GroupNorms."""
    heads, group_size = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from(group_sizes))
    step = max(heads, group_size)
    widths = [step * draw(st.integers(1, 8 // step + 1)) for _ in range(4)]
    widths[:3] = [max(width, 2 * step) for width in widths[:3]]  # so that skip guidance leaves room for features
    return {
        "projection_dim": draw(st.integers(2, 12)),
        "prompt_templates": [f"{number} {{}}" for number in range(draw(st.integers(1, 4)))],
        "cost_embedding_kernel_size": draw(st.sampled_from([1, 3, 7])),
        "decoder_hidden_sizes": widths,
        "skip_guidance_sizes": [draw(st.integers(1, width - 1)) for width in widths[:3]],
        "cost_guidance_sizes": [draw(st.integers(1, 6)) for _ in range(3)],
        "decoder_kernel_size": draw(st.sampled_from([1, 3, 9])),
        "decoder_mlp_ratio": draw(st.integers(1, 4)),
        "group_norm_group_size": group_size,
        "num_attention_heads": heads,
        "class_attention_type": draw(st.sampled_from(["linear", "full"])),
        "train_pooling_size": draw(st.integers(1, 4)),
        "inference_pooling_size": draw(st.integers(1, 4)),
        "class_chunk_size": draw(st.none() | st.integers(1, 12)),
    }
