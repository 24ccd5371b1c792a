"""`transformers.pipeline` for segmentation with free class names."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import Pipeline

from .image_processing_sed import to_rgb
from .inference.class_embeddings import ClassEmbeddingCache, encode_classes, load_class_embeddings, text_encoder_sha256
from .processing_sed import validate_class_names
from .sliding_window_sed import SlidingWindow, segment_with_sliding_window

VOCABULARIES_IN_MEMORY = 8
EVERYTHING_ELSE = "everything else"


class Segments(list):
    """The classes of a picture, the largest first, as the image segmentation pipeline of transformers gives them.

    Each is a dict of `label`, `score` (mean probability over its pixels) and `mask` (PIL image of mode L, 255 where the
    class is).

    Attributes:
        label_map: int64 (height, width), the index of each pixel's class in the vocabulary; -1 where it has none.
        probability: float32 (height, width), of that class.
        class_names: The vocabulary.
    """

    def __init__(self, segmentation: Tensor, probability: Tensor, class_names: Sequence[str]) -> None:
        classes, areas = segmentation[segmentation >= 0].unique(return_counts=True)
        super().__init__(
            {
                "label": class_names[index],
                "score": probability[segmentation == index].mean().item(),
                "mask": Image.fromarray(((segmentation == index).to(torch.uint8) * 255).numpy()),
            }
            for index in classes[areas.argsort(descending=True)].tolist()
        )
        self.label_map = segmentation.numpy()
        self.probability = probability.numpy()
        self.class_names = list(class_names)


class SEDPipeline(Pipeline):
    """Open-vocabulary segmentation.

    ```python
    from transformers import pipeline

    segmenter = pipeline("open-vocabulary-segmentation", model=path, trust_remote_code=True)
    segments = segmenter("photo.jpg", candidate_labels=["cat", "dog, puppy", "grass"])
    segments[0]  # {"label": "cat", "score": 0.93, "mask": <PIL.Image mode=L>}
    segments.label_map  # (height, width) index of each pixel's label
    ```

    Class names are encoded once: they are kept in memory, and on disk for other processes.
    """

    _load_processor = True
    _load_image_processor = True  # transformers batches with it
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._vocabularies: OrderedDict[Any, tuple[list[str], Tensor]] = OrderedDict()
        super().__init__(*args, **kwargs)

    def __call__(
        self, images: Any, candidate_labels: Sequence[str] | str | os.PathLike | None = None, **kwargs: Any
    ) -> Any:
        """Segment pictures.

        Args:
            images: A picture: PIL image, path, URL, base64, numpy array or tensor. Or several: a list, a generator, a
                torch data set or a column of a `datasets` data set, with `batch_size` at a time.
            candidate_labels: Class names; synonyms of a class are separated by ", ". Or the path of a vocabulary that
                `sed-hf encode` has saved. Can also be given once, to `pipeline(...)`, as can all that follows.
            threshold: Pixels whose best probability is lower belong to no class.
            everything_else: More class names, which compete with yours; the pixels that they win are of the label
                "everything else", whose index comes after those of your labels.
            early_rejection_topk: Keep the classes that are among the k best at some pixel; 0 decodes every class.
            sliding_window: Cut large pictures into overlapping tiles of so many pixels, or a dict of `tile_size`,
                `overlap` and `global_view`; see [`SlidingWindow`]. `batch_size` then counts pictures, not tiles.

        Returns:
            [`Segments`] for one picture; a list of them for a list; an iterator over them for everything else.

        Raises:
            TypeError, ValueError: An argument is missing, unknown or out of range.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        elif "candidate_labels" not in self._forward_params:
            raise TypeError("candidate_labels: expected class names, or the path of a saved vocabulary; got none")
        return super().__call__(as_pictures(images), **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = {"candidate_labels", "everything_else", "threshold", "early_rejection_topk", "sliding_window"}
        if unknown := set(kwargs) - known:
            raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}; expected {', '.join(sorted(known))}")
        threshold = kwargs.get("threshold")
        if threshold is not None and not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):
            raise ValueError(f"threshold={threshold!r}: expected a probability from 0 to 1")
        for name in ("candidate_labels", "everything_else"):
            if kwargs.get(name) is not None and not is_path(kwargs[name]):
                kwargs[name] = tuple(validate_class_names(kwargs[name], name))
        if "sliding_window" in kwargs:
            kwargs["sliding_window"] = SlidingWindow.of(kwargs["sliding_window"])
        preprocess = {name: kwargs[name] for name in ("sliding_window",) if name in kwargs}
        names = ("candidate_labels", "everything_else")
        postprocess: dict[str, Any] = {name: kwargs[name] for name in names if name in kwargs}
        return preprocess, kwargs, postprocess

    def preprocess(self, image: Any, sliding_window: SlidingWindow | None = None) -> dict[str, Any]:
        """Prepare one picture and note its size; a large one is prepared tile by tile, later."""
        picture = to_rgb(image)
        if sliding_window is not None:
            return {"picture": [picture.numpy()]}
        pixel_values = self.processor(images=picture, return_tensors="pt")["pixel_values"].to(self.dtype)
        return {"pixel_values": pixel_values, "target_size": [tuple(picture.shape[-2:])]}

    def _forward(
        self,
        model_inputs: Mapping[str, Any],
        candidate_labels: Sequence[str],
        everything_else: Sequence[str] | None = None,
        threshold: float | None = None,
        early_rejection_topk: int | None = None,
        sliding_window: SlidingWindow | None = None,
    ) -> dict[str, list[Tensor]]:
        class_embeddings = self._encode(candidate_labels)[1]
        if everything_else is not None:
            class_embeddings = torch.cat([class_embeddings, self._encode(everything_else)[1]])
        if sliding_window is not None:
            results: Any = [
                segment_with_sliding_window(
                    self.model,
                    self.processor,
                    torch.from_numpy(picture),
                    class_embeddings,
                    sliding_window,
                    early_rejection_topk=early_rejection_topk,
                    threshold=threshold,
                    ignore_index=-1,
                )
                for picture in flattened(model_inputs["picture"])
            ]
        else:
            outputs = self.model(
                model_inputs["pixel_values"],
                class_embeddings=class_embeddings,
                early_rejection_topk=early_rejection_topk,
            )
            results = self.processor.post_process_semantic_segmentation(
                outputs,
                target_sizes=flattened(model_inputs["target_size"]),
                threshold=threshold,
                ignore_index=-1,
                return_probabilities=True,
            )
        return {name: [result[name] for result in results] for name in ("segmentation", "probability")}

    def postprocess(
        self,
        model_outputs: Mapping[str, Any],
        candidate_labels: Sequence[str],
        everything_else: Sequence[str] | None = None,
    ) -> Segments:
        """The classes of one picture."""
        class_names = self._encode(candidate_labels)[0]
        # A list of one map, or of a batch its item, to which transformers gives an axis again.
        segmentation, probability = model_outputs["segmentation"][0], model_outputs["probability"][0]
        if everything_else is not None:
            segmentation = segmentation.clamp(max=len(class_names))
            class_names = [*class_names, EVERYTHING_ELSE]
        return Segments(segmentation, probability, class_names)

    def _encode(self, candidate_labels: Sequence[str] | str | os.PathLike) -> tuple[list[str], Tensor]:
        """Names and embeddings (T, P, D) of a vocabulary."""
        known = self._vocabularies.get(candidate_labels)
        if known is None:
            if is_path(candidate_labels):
                encoder = text_encoder_sha256(self.model, self.processor)
                class_names, embeddings = load_class_embeddings(candidate_labels, encoder)  # type: ignore[arg-type]
            else:
                class_names = list(candidate_labels)  # type: ignore[arg-type]
                embeddings = encode_classes(self.model, self.processor, class_names, ClassEmbeddingCache())
            known = class_names, embeddings.to(self.device, self.model.dtype)
        # Threads that share a pipeline do this at once, and may remove each other's; each keeps what it has found.
        self._vocabularies[candidate_labels] = known
        with suppress(KeyError):
            self._vocabularies.move_to_end(candidate_labels)
            if len(self._vocabularies) > VOCABULARIES_IN_MEMORY:
                self._vocabularies.popitem(last=False)
        return known


def is_path(candidate_labels: Any) -> bool:
    """Whether class names are given as the file that holds them."""
    return isinstance(candidate_labels, os.PathLike) or (
        isinstance(candidate_labels, str) and Path(candidate_labels).suffix == ".safetensors"
    )


def as_pictures(images: Any) -> Any:
    """Pictures in a form that transformers knows: one, a list, a generator or a data set."""
    if isinstance(images, tuple):
        return list(images)
    is_stream = isinstance(images, Iterator) or (isinstance(images, Sequence) and not isinstance(images, str | list))
    return (image for image in images) if is_stream else images


def flattened(batch: Sequence[Any]) -> list[Any]:
    """The items of a batch: each comes as a list of one, which a batch of them is a list of."""
    return [item for part in batch for item in part] if isinstance(batch[0], list) else list(batch)


__all__ = ["SEDPipeline", "Segments"]
