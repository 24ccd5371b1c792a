"""Mean IoU as a module of the library `evaluate`.

    metric = evaluate.load("src/sed_hf/metrics/evaluate_module.py", class_names=class_names)

Unlike other metrics of that library it keeps no predictions: see [`MeanIoU`], which it wraps.
"""

from typing import Any

import datasets
import evaluate

from sed_hf.metrics import MeanIoU  # absolute, since `evaluate` loads a copy of this file


class MeanIoUMetric(evaluate.Metric):
    """[`MeanIoU`] for `evaluate.load`. Processes are those of `torch.distributed`."""

    def __init__(
        self, class_names: list[str], ignore_index: int = 255, last_class_is_background: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.metric = MeanIoU(class_names, ignore_index, last_class_is_background)
        self.add, self.add_batch = self.metric.add, self.metric.add_batch

    def _info(self) -> evaluate.MetricInfo:
        class_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean IoU, frequency-weighted IoU, mean and pixel accuracy, as Detectron2 defines them.",
            citation="Xie et al.: SED, CVPR 2024",
            features=datasets.Features({"predictions": class_map, "references": class_map}),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float | None]:
        """Count a last batch if there is one, and return the figures of [`MeanIoU.compute`]."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        return self.metric.compute()
