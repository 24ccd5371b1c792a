"""Metrics as `evaluate` modules."""

from .mean_iou import MeanIoU

__all__ = ["MeanIoU"]
