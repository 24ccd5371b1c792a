"""SED, open-vocabulary semantic segmentation, as a transformers model.

The classes are imported at first use, and register themselves with transformers' Auto classes then: importing
transformers takes seconds, which `sed-hf --help` need not wait for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_sed import SEDConfig, SEDTextConfig, SEDVisionConfig
    from .image_processing_sed import SEDImageProcessor
    from .modeling_sed import SEDForSemanticSegmentation, SEDSemanticSegmentationOutput
    from .pipeline_sed import SEDPipeline
    from .processing_sed import SEDProcessor

_MODULES = {
    "SEDConfig": "configuration_sed",
    "SEDForSemanticSegmentation": "modeling_sed",
    "SEDImageProcessor": "image_processing_sed",
    "SEDPipeline": "pipeline_sed",
    "SEDProcessor": "processing_sed",
    "SEDSemanticSegmentationOutput": "modeling_sed",
    "SEDTextConfig": "configuration_sed",
    "SEDVisionConfig": "configuration_sed",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(".auto", __name__)
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


__all__ = [
    "SEDConfig",
    "SEDForSemanticSegmentation",
    "SEDImageProcessor",
    "SEDPipeline",
    "SEDProcessor",
    "SEDSemanticSegmentationOutput",
    "SEDTextConfig",
    "SEDVisionConfig",
]
