"""Zero-shot evaluation: mean IoU of a model on the benchmarks and on generated scenes."""

from .augmentation import MultiScaleFlip
from .evaluate import evaluate_benchmark
from .report import evaluate_suite
from .sets import load_evaluation_set

__all__ = ["MultiScaleFlip", "evaluate_benchmark", "evaluate_suite", "load_evaluation_set"]
