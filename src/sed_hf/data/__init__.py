"""Data that SED is trained, evaluated and used with."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .vocabularies import load_vocabulary, vocabulary_names

if TYPE_CHECKING:
    from .benchmarks import benchmark_info, load_benchmark


def __getattr__(name: str) -> Any:
    if name not in ("benchmark_info", "load_benchmark"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".benchmarks", __name__), name)


__all__ = ["benchmark_info", "load_benchmark", "load_vocabulary", "vocabulary_names"]
