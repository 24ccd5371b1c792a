"""What the properties are tried with: images, class names, label maps, configurations; and how often.

Pixels and weights are drawn from a seed, which is quick; sizes, forms and names are hypothesis' own, so that a failure
shrinks to the smallest of them.
"""

import string
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
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
