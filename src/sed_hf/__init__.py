"""SED, open-vocabulary semantic segmentation, as a transformers model.

Importing transformers takes seconds, which `sed-hf --help` need not wait for. So the classes are imported at first use,
and register themselves with transformers as soon as that is imported.
"""

import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from .configuration_sed import SEDConfig, SEDTextConfig, SEDVisionConfig
    from .hub.load import load
    from .image_processing_sed import SEDImageProcessor, read_rgb
    from .modeling_sed import SEDForSemanticSegmentation, SEDModel, SEDSemanticSegmentationOutput
    from .pipeline_sed import SEDPipeline
    from .processing_sed import SEDProcessor

_MODULES = {
    "SEDConfig": "configuration_sed",
    "SEDForSemanticSegmentation": "modeling_sed",
    "SEDImageProcessor": "image_processing_sed",
    "SEDModel": "modeling_sed",
    "SEDPipeline": "pipeline_sed",
    "SEDProcessor": "processing_sed",
    "SEDSemanticSegmentationOutput": "modeling_sed",
    "SEDTextConfig": "configuration_sed",
    "SEDVisionConfig": "configuration_sed",
    "load": "hub.load",
    "read_rgb": "image_processing_sed",
}
__all__ = list(_MODULES)


@cache
def _register() -> None:
    """Make transformers' Auto classes and `pipeline` know SED."""
    import transformers
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_sed import CUSTOM_PIPELINES, SEDConfig
    from .image_processing_sed import SEDImageProcessor
    from .modeling_sed import SEDForSemanticSegmentation
    from .pipeline_sed import SEDPipeline
    from .processing_sed import SEDProcessor

    transformers.AutoConfig.register("sed", SEDConfig)
    transformers.AutoModel.register(SEDConfig, SEDForSemanticSegmentation)
    transformers.AutoModelForSemanticSegmentation.register(SEDConfig, SEDForSemanticSegmentation)
    transformers.AutoImageProcessor.register(SEDConfig, image_processor_classes={"torchvision": SEDImageProcessor})
    transformers.AutoProcessor.register(SEDConfig, SEDProcessor)
    for task in CUSTOM_PIPELINES:
        PIPELINE_REGISTRY.register_pipeline(task, SEDPipeline, pt_model=transformers.AutoModelForSemanticSegmentation)

    # Everything that is saved carries its code, and so loads with `trust_remote_code=True` where sed-hf is missing.
    SEDConfig.register_for_auto_class()
    SEDForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
    SEDImageProcessor.register_for_auto_class()
    SEDProcessor.register_for_auto_class()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "load":  # which imports transformers only when it is called
        import_module("transformers")  # which registers, or is imported already
        _register()
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


@when_imported("transformers")
def _register_at_once(transformers: Any) -> None:
    if not any(name.startswith(f"{__name__}.") and name.endswith("_sed") for name in sys.modules):  # half imported
        _register()
