"""The classes of a training run, as inputs of the model."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor

from .. import SEDForSemanticSegmentation, SEDProcessor


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


def present_classes(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Sorted indices of the classes that occur in the labels of any process; all processes must call this."""
    occurs = torch.zeros(num_classes + 1, device=labels.device)
    occurs[labels.masked_fill(labels == ignore_index, num_classes)] = 1
    return reduce(occurs[:num_classes], "sum").nonzero().flatten()


def sample_vocabulary(present: Tensor, num_classes: int, sizes: tuple[int, int], seed: Sequence[int]) -> Tensor:
    """The classes that occur and random others: sorted indices.

    Args:
        present: Indices of the classes that occur, see [`present_classes`].
        num_classes: The number of classes to draw from.
        sizes: The least and the greatest size of the vocabulary. Its logarithm is drawn uniformly, so that few and many
            classes are equally common. More are returned where more occur.
        seed: Determines the draw.
    """
    rng = np.random.default_rng(list(seed))
    least, greatest = sizes
    size = least if least == greatest else round(least * (greatest / least) ** rng.random())
    present = present.cpu()
    others = np.setdiff1d(np.arange(num_classes), present.numpy())
    chosen = rng.permutation(others)[: max(0, size - len(present))]
    return torch.cat([present, torch.from_numpy(chosen)]).sort().values


def relabel(labels: Tensor, vocabulary: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels as positions in a vocabulary that holds all of them; ignored pixels stay ignored."""
    position = torch.full((num_classes,), ignore_index, device=labels.device)
    position[vocabulary.to(labels.device)] = torch.arange(len(vocabulary), device=labels.device)
    ignored = labels == ignore_index
    return position[labels.masked_fill(ignored, 0)].masked_fill(ignored, ignore_index)
