"""Zero-shot evaluation: mean IoU of a model on the benchmarks and on generated scenes."""

from sed_hf.evaluation.augmentation import MultiScaleFlip
from sed_hf.evaluation.evaluate import evaluate_benchmark
from sed_hf.evaluation.sets import load_evaluation_set
from sed_hf.evaluation.suite import evaluate_suite

__all__ = ["MultiScaleFlip", "evaluate_benchmark", "evaluate_suite", "load_evaluation_set"]
