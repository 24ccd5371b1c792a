"""Mean IoU as a module of the library `evaluate`.

    metric = evaluate.load("src/sed_hf/metrics/evaluate_module.py", class_names=class_names)

Unlike other metrics of that library it keeps no predictions: see [`MeanIoU`], which it wraps.
"""

from typing import Any

import datasets
import evaluate

from .mean_iou import MeanIoU

_INPUTS_DESCRIPTION = """
predictions: (height, width) class indices of each image: arrays, tensors, PIL images or lists, of any sizes.
references: (height, width) class indices or the ignored index.
"""


class MeanIoUMetric(evaluate.Metric):
    """Mean IoU for `evaluate.load`.

    Args:
        class_names, ignore_index, last_class_is_background: As for [`MeanIoU`].
        **kwargs: What `evaluate.load` passes to every metric. `num_process` stays 1: processes are those of
            `torch.distributed`, whose counts are summed.

    Raises:
        ValueError: A class name is repeated, or `num_process` is set.
    """

    def __init__(
        self,
        class_names: list[str],
        ignore_index: int = 255,
        last_class_is_background: bool = False,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("num_process", 1) != 1:
            raise ValueError("num_process: expected 1, since processes are those of torch.distributed")
        super().__init__(**kwargs)
        self.metric = MeanIoU(class_names, ignore_index, last_class_is_background)

    def _info(self) -> evaluate.MetricInfo:
        class_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean IoU, frequency-weighted IoU, mean and pixel accuracy, as Detectron2 defines them.",
            citation="Xie et al.: SED, CVPR 2024",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": class_map, "references": class_map}),
            reference_urls=["https://arxiv.org/abs/2311.15537"],
        )

    def add(self, *, prediction: Any, reference: Any, **kwargs: Any) -> None:
        """Count one image."""
        self.metric.add(prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions: Any, references: Any, **kwargs: Any) -> None:
        """Count several images."""
        self.metric.add_batch(predictions=predictions, references=references, **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float | None]:
        """Count a last batch if there is one, and return the figures in percent, of [`MeanIoU.compute`]."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        return self.metric.compute()
