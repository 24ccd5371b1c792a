"""Metrics as `evaluate` modules."""

from sed_hf.metrics.mean_iou import MeanIoU

__all__ = ["MeanIoU"]
