"""Makes transformers' Auto classes know SED; importing this module does it."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor

from .configuration_sed import SEDConfig
from .image_processing_sed import SEDImageProcessor
from .modeling_sed import SEDForSemanticSegmentation
from .processing_sed import SEDProcessor

AutoConfig.register("sed", SEDConfig)
AutoModel.register(SEDConfig, SEDForSemanticSegmentation)
AutoModelForSemanticSegmentation.register(SEDConfig, SEDForSemanticSegmentation)
AutoImageProcessor.register(SEDConfig, image_processor_classes={"torchvision": SEDImageProcessor})
AutoProcessor.register(SEDConfig, SEDProcessor)

# Everything that is saved carries its code, so that it loads with `trust_remote_code=True` where sed-hf is missing.
SEDConfig.register_for_auto_class()
SEDForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
SEDImageProcessor.register_for_auto_class()
SEDProcessor.register_for_auto_class()
