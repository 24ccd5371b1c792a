"""Mean IoU: the metric, and a module of the library `evaluate` around it."""

from .mean_iou import MeanIoU

__all__ = ["MeanIoU"]
