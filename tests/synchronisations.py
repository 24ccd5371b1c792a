"""Counts what would make a GPU's host wait for a number."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select"}
BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Synchronisations:
    """While open, counts `item`, `nonzero`, `unique`, `tolist`, boolean indexing and the like, by name."""

    def __enter__(self) -> Counter[str]:
        self.counts: Counter[str] = Counter()
        self.modes = [_Operations(self.counts), _Lists(self.counts)]
        for mode in self.modes:
            mode.__enter__()
        return self.counts

    def __exit__(self, *exception: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*exception)


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
        if name in WAITING or (name in BY_INDEX and masks):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _Lists(TorchFunctionMode):
    """`tolist` and `numpy` of a tensor are not operations."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy):
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))
