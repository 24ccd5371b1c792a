"""The classes that a call of the model is about: those that it brings, or those that the model holds."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchFeature, PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)
CUT = "expected all classes, but they were cut as a batch of images is; hold them with model.set_classes instead"


class ClassInputs(PreTrainedModel):
    """The part of the model that holds class embeddings, and refuses class inputs that are not whole."""

    get_class_embeddings: Any

    @property
    def device(self) -> torch.device:
        """Where inputs belong, also where weights are offloaded."""
        modules = self.modules() if hasattr(self, "_hf_hook") else ()
        hooks = (getattr(module, "_hf_hook", None) for module in modules)
        devices = (getattr(hook, "execution_device", None) for hook in hooks)
        offloaded_to = next((device for device in devices if device is not None), None)
        return super().device if offloaded_to is None else torch.device(offloaded_to)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the text encoder."""
        return self.base_model.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the text encoder."""
        self.base_model.text_encoder.set_input_embeddings(value)

    @torch.inference_mode(False)
    @torch.no_grad()
    def set_classes(self, class_embeddings: Tensor | None = None, *, save: bool = False, **text_inputs: Tensor) -> None:
        """Hold classes, which serve when a call brings none: `set_classes(**processor(text=["cat", "dog, puppy"]))`.

        They move with the model, and get no gradients. `set_classes(None)` forgets them.

        Args:
            class_embeddings: (T, P, D), of [`get_class_embeddings`].
            save: Save them with the weights.
            text_inputs: What the processor makes of class names, instead.
        """
        if text_inputs:
            class_embeddings = self.get_class_embeddings(**BatchFeature(text_inputs).to(self.device))
        if class_embeddings is not None:
            self.check_class_embeddings(class_embeddings)
            class_embeddings = class_embeddings.to(self.device, self.base_model.logit_scale.dtype, copy=True)
        self.config.num_saved_classes = len(class_embeddings) if save and class_embeddings is not None else None
        self.base_model.register_buffer("class_embeddings", class_embeddings, persistent=save)

    @torch.compiler.disable(reason="what is held would be compiled anew for each number of classes")
    def held_classes(self) -> Tensor | None:
        """The class embeddings of `set_classes`."""
        return self.base_model.class_embeddings

    def find_classes(
        self,
        input_ids: Tensor | None,
        class_ids: Tensor | None,
        num_synonyms: Tensor | None,
        class_embeddings: Tensor | None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The class embeddings (T, P, D) of a call."""
        held = self.held_classes()
        if input_ids is None and class_embeddings is None and held is not None:
            if labels is not None and torch.is_grad_enabled() and self.trains_text_encoder():
                logger.warning_once(
                    "the text encoder gets no gradients from held classes: pass input_ids in every call"
                )
            return held
        if (input_ids is None) == (class_embeddings is None):
            ways = "model.set_classes, or in a pipeline the task open-vocabulary-segmentation"
            raise ValueError(f"expected one of input_ids and class_embeddings, or {ways}")
        if getattr(self, "_is_replica", False):
            raise ValueError(f"DataParallel: {CUT}")
        if class_embeddings is None:
            return self.get_class_embeddings(input_ids, class_ids, num_synonyms)
        self.check_class_embeddings(class_embeddings)
        if labels is not None and len(labels) == len(class_embeddings) and is_slice(class_embeddings):
            raise ValueError(f"class_embeddings: {CUT}; got {len(labels)} rows of a larger tensor")
        return class_embeddings

    def check_class_embeddings(self, class_embeddings: Tensor) -> None:
        """Refuse what is not (T, P, D)."""
        shape, expected = tuple(class_embeddings.shape), (len(self.config.prompt_templates), self.config.projection_dim)
        if len(shape) != 3 or shape[1:] != expected or not shape[0]:
            expectation = f"(classes, {expected[0]} prompt templates, {expected[1]} channels)"
            raise ValueError(f"class_embeddings: expected {expectation}, got {shape}")

    def check_tokens(self, input_ids: Tensor, num_synonyms: Tensor | None) -> None:
        """Refuse what is not (S, P, L), or not of all S synonyms."""
        shape, num_templates = tuple(input_ids.shape), len(self.config.prompt_templates)
        if len(shape) != 3 or shape[1] != num_templates:
            raise ValueError(f"input_ids: expected (synonyms, {num_templates} prompt templates, tokens), got {shape}")
        if not shape[0] or (num_synonyms is not None and (num_synonyms != shape[0]).any()):
            raise ValueError(f"input_ids: {CUT}; got {shape[0]} synonyms")

    def trains_text_encoder(self) -> bool:
        """Whether the text encoder has parameters to train, which brings a warning if it was to be frozen."""
        if not any(parameter.requires_grad for parameter in self.base_model.text_encoder.parameters()):
            return False
        if self.config.freeze_text_encoder:
            logger.warning_once(
                "freeze_text_encoder=True, but adapters or other parameters of the text encoder are to be trained:"
                " load the model with freeze_text_encoder=False, or leave them out"
            )
        return True


def is_slice(tensor: Tensor) -> bool:
    """Whether a tensor is a part of one with more rows."""
    if torch.compiler.is_compiling():
        return False
    num_rows = len(tensor)
    return tensor.untyped_storage().nbytes() >= tensor.nbytes // num_rows * (num_rows + 1)
