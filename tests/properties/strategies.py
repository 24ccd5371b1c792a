"""What the properties are tried with, and how often.

Pixels and weights are drawn from a seed, which is quick; sizes, forms and names are hypothesis' own, so that a failure
shrinks to the smallest of them.
"""

import string

import torch
from hypothesis import settings
from hypothesis import strategies as st
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
# Lists of different class names of any characters, some with synonyms.
vocabularies = st.lists(class_names, min_size=1, max_size=6, unique_by=clean_text)
