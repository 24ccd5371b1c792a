"""The classes of a training run, as inputs of the model."""

import torch
from torch import Tensor

from .. import SEDForSemanticSegmentation, SEDProcessor
from .data import relabel


class TrainingClasses:
    """Class names, tokenised once, and encoded once if the text encoder is frozen.

    Args:
        names: One string for each of the T classes.
        processor: Tokenises them.
        model: Encodes them, on the device where it is.
    """

    def __init__(self, names: list[str], processor: SEDProcessor, model: SEDForSemanticSegmentation) -> None:
        tokens = processor(text=names, return_tensors="pt").to(model.device)
        self.names = names
        self.input_ids: Tensor = tokens["input_ids"]
        self.class_ids: Tensor = tokens["class_ids"]
        self.class_embeddings: Tensor | None = None
        if model.config.freeze_text_encoder:
            with torch.no_grad():
                self.class_embeddings = model.get_class_embeddings(self.input_ids, self.class_ids)

    def model_inputs(self, vocabulary: Tensor | None = None) -> dict[str, Tensor]:
        """Arguments of the model for all classes, or for those in `vocabulary`, sorted indices."""
        if vocabulary is not None:
            vocabulary = vocabulary.to(self.class_ids.device)
        if self.class_embeddings is not None:
            return {
                "class_embeddings": self.class_embeddings if vocabulary is None else self.class_embeddings[vocabulary]
            }
        if vocabulary is None:
            return {"input_ids": self.input_ids, "class_ids": self.class_ids}
        chosen = torch.isin(self.class_ids, vocabulary)
        class_ids = relabel(self.class_ids[chosen], vocabulary, len(self.names), ignore_index=-1)
        return {"input_ids": self.input_ids[chosen], "class_ids": class_ids}
