"""RGB images to labels, and `transformers.pipeline` for segmentation with free class names."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import Pipeline

from .image_processing_sed import NonFiniteLogitsError, check_threshold, to_rgb
from .processing_sed import validate_class_names
from .sliding_window_sed import SlidingWindow, segment_with_sliding_window

VOCABULARIES_IN_MEMORY = 8
EVERYTHING_ELSE = "everything else"


@torch.no_grad()  # not inference_mode, after which FSDP cannot train
def segment_images(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    class_embeddings: Tensor,
    *,
    early_rejection_topk: int | None = None,
    threshold: float | None = None,
    ignore_index: int | None = None,
    sliding_window: SlidingWindow | None = None,
    show_progress: bool = False,
) -> list[dict[str, Tensor]]:
    """The class of every pixel of some images.

    Args:
        model: [`SEDForSemanticSegmentation`].
        processor: [`SEDProcessor`].
        images: In any form that [`to_rgb`] takes; all are one batch.
        class_embeddings: (T, P, D).
        early_rejection_topk: As in the model's `forward`.
        threshold: Pixels whose best probability is lower get `ignore_index`.
        ignore_index: Defaults to that of the image processor.
        sliding_window: How to cut images that are larger than a tile. Images come one by one then, tile by tile.
        show_progress: Show a bar over the tiles of an image.

    Returns:
        For each image `segmentation`, int64 (height, width), and `probability` of that class, float32 (height, width).

    Raises:
        NonFiniteLogitsError: The logits of an image are not finite.
        ValueError: `threshold` is not a probability, or `ignore_index` is also the number of a class.
    """
    ignore_index = processor.image_processor.ignore_index if ignore_index is None else ignore_index
    if early_rejection_topk is None:  # stated, it leaves out the logits of what is rejected
        early_rejection_topk = model.config.early_rejection_topk
    check_threshold(threshold, ignore_index, len(class_embeddings))
    images = [to_rgb(image) for image in images]
    if sliding_window is None:
        return segment_whole(model, processor, images, class_embeddings, early_rejection_topk, threshold, ignore_index)
    results = []
    for index, image in enumerate(images):
        try:
            if max(image.shape[1:]) <= sliding_window.tile_size:
                results += segment_whole(
                    model, processor, [image], class_embeddings, early_rejection_topk, threshold, ignore_index
                )
                continue
            probability, segmentation = segment_with_sliding_window(
                model, processor, image, class_embeddings, sliding_window, early_rejection_topk, show_progress
            )
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(index) from error
        if threshold is not None:
            segmentation = segmentation.masked_fill(probability < threshold, ignore_index)
        results.append({"segmentation": segmentation, "probability": probability})
    return results


def segment_whole(
    model: Any,
    processor: Any,
    images: list[Tensor],
    class_embeddings: Tensor,
    early_rejection_topk: int | None,
    threshold: float | None,
    ignore_index: int,
) -> list[dict[str, Tensor]]:
    """The class of every pixel of some images (3, H, W), each of which the model sees at once."""
    if not images:
        return []
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    outputs = model(
        pixel_values.to(model.device, model.dtype),
        class_embeddings=class_embeddings,
        early_rejection_topk=early_rejection_topk,
    )
    sizes = [image.shape[1:] for image in images]
    return processor.post_process_semantic_segmentation(
        outputs, sizes, threshold, ignore_index, return_probabilities=True
    )


class Segments(list):
    """The classes of an image, the largest first, as the image segmentation pipeline of transformers gives them.

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

    The embeddings of the last vocabularies are kept in memory, so that class names are encoded once.
    """

    _load_processor = True
    _load_image_processor = True  # transformers batches with it
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self._vocabularies: dict[Any, tuple[list[str], Tensor]] = {}
        if places := getattr(model, "hf_device_map", None):  # the first of which transformers takes for the device
            model.hf_device_map = {"": model.device, **places}
        super().__init__(model, *args, **kwargs)

    def __call__(
        self, images: Any, candidate_labels: Sequence[str] | str | os.PathLike | None = None, **kwargs: Any
    ) -> Any:
        """Segment images.

        Args:
            images: An image: PIL image, path, URL, base64, numpy array or tensor. Or several: a list, a generator, a
                torch data set or a column of a `datasets` data set, with `batch_size` at a time.
            candidate_labels: Class names; synonyms of a class are separated by ", ". Or the path of a vocabulary that
                `sed-hf encode` has saved. Can also be given once, to `pipeline(...)`, as can all that follows.
            threshold: Pixels whose best probability is lower belong to no class.
            everything_else: More class names, which compete with yours; the pixels that they win are of the label
                "everything else", whose index comes after those of your labels.
            early_rejection_topk: Keep the classes that are among the k best at some pixel; 0 decodes every class.
            sliding_window: Cut large images into overlapping tiles of so many pixels, or a dict of `tile_size`,
                `overlap` and `global_view`; see [`SlidingWindow`].

        Returns:
            [`Segments`] for one image; a list of them for a list; an iterator over them for everything else.

        Raises:
            NonFiniteLogitsError: The logits of an image are not finite.
            TypeError, ValueError: An argument is missing, unknown or out of range.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        elif "candidate_labels" not in self._forward_params:
            raise TypeError("candidate_labels: expected class names, or the path of a saved vocabulary; got none")
        return super().__call__(as_images(images), **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = {"candidate_labels", "everything_else", "threshold", "early_rejection_topk", "sliding_window"}
        if unknown := set(kwargs) - known:
            raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}; expected {', '.join(sorted(known))}")
        check_threshold(kwargs.get("threshold"))
        for name in ("candidate_labels", "everything_else"):
            if kwargs.get(name) is not None and not is_path(kwargs[name]):
                kwargs[name] = tuple(validate_class_names(kwargs[name], name))
        if "sliding_window" in kwargs:
            kwargs["sliding_window"] = SlidingWindow.of(kwargs["sliding_window"])
        names = ("candidate_labels", "everything_else")
        return {}, kwargs, {name: kwargs[name] for name in names if name in kwargs}

    def preprocess(self, image: Any) -> dict[str, Any]:
        """One image as RGB, and what errors call it; `_forward` makes the batch."""
        rgb = to_rgb(image).numpy()
        is_named = isinstance(image, str | os.PathLike)
        return {"image": [rgb], "name": [f"{image!s:.80}" if is_named else f"image of {rgb.shape[2]} × {rgb.shape[1]}"]}

    def _forward(
        self,
        model_inputs: Mapping[str, Any],
        candidate_labels: Sequence[str],
        everything_else: Sequence[str] | None = None,
        **options: Any,
    ) -> dict[str, list[Tensor]]:
        class_embeddings = self._encode(candidate_labels)[1]
        if everything_else is not None:
            class_embeddings = torch.cat([class_embeddings, self._encode(everything_else)[1]])
        images = [torch.from_numpy(image) for image in flattened(model_inputs["image"])]
        try:
            results = segment_images(self.model, self.processor, images, class_embeddings, ignore_index=-1, **options)
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(error.index, flattened(model_inputs["name"])[error.index]) from error
        return {name: [result[name] for result in results] for name in ("segmentation", "probability")}

    def postprocess(
        self,
        model_outputs: Mapping[str, Any],
        candidate_labels: Sequence[str],
        everything_else: Sequence[str] | None = None,
    ) -> Segments:
        """The classes of one image."""
        class_names = self._encode(candidate_labels)[0]
        # A list of one map, or of a batch its item, to which transformers gives an axis again.
        segmentation, probability = model_outputs["segmentation"][0], model_outputs["probability"][0]
        if everything_else is not None:
            segmentation = segmentation.clamp(max=len(class_names))
            class_names = [*class_names, EVERYTHING_ELSE]
        return Segments(segmentation, probability, class_names)

    def _encode(self, candidate_labels: Any) -> tuple[list[str], Tensor]:
        """Names and embeddings (T, P, D) of a vocabulary."""
        known = self._vocabularies.pop(candidate_labels, None)
        if known is None:
            if is_path(candidate_labels):
                known = self._load_vocabulary(candidate_labels)
            else:
                known = list(candidate_labels), self._encode_names(candidate_labels)
        self._vocabularies[candidate_labels] = known  # the last one used comes last
        for oldest in list(self._vocabularies)[:-VOCABULARIES_IN_MEMORY]:
            self._vocabularies.pop(oldest, None)
        return known

    def _encode_names(self, class_names: Sequence[str]) -> Tensor:
        inputs = self.processor(text=list(class_names), return_tensors="pt").to(self.device)
        with torch.inference_mode():
            return self.model.get_class_embeddings(**inputs)

    def _load_vocabulary(self, path: Any) -> tuple[list[str], Tensor]:
        """Names and embeddings of a saved vocabulary; its first class is encoded to see that it is of this model."""
        with safe_open(path, framework="pt") as file:
            class_names = json.loads((file.metadata() or {}).get("class_names", "null"))
            embeddings = file.get_tensor("class_embeddings").to(self.device, self.model.dtype)
        class_names = validate_class_names(class_names, f"{path}: class_names")
        first = self._encode_names(class_names[:1])
        if embeddings.shape[1:] != first.shape[1:] or (embeddings[0] * first[0]).sum(-1).min() < 0.999:
            raise ValueError(f"{path}: encoded by another model or with other prompt templates; encode it again")
        return class_names, embeddings


def is_path(candidate_labels: Any) -> bool:
    """Whether class names are given as the file that holds them."""
    return isinstance(candidate_labels, os.PathLike) or (
        isinstance(candidate_labels, str) and Path(candidate_labels).suffix == ".safetensors"
    )


def as_images(images: Any) -> Any:
    """Images in a form that transformers knows: one, a list, a generator or a data set."""
    if isinstance(images, tuple):
        return list(images)
    is_stream = isinstance(images, Iterator) or (isinstance(images, Sequence) and not isinstance(images, str | list))
    return (image for image in images) if is_stream else images


def flattened(batch: Sequence[Any]) -> list[Any]:
    """The items of a batch: each comes as a list of one, which a batch of them is a list of."""
    return [item for part in batch for item in part] if isinstance(batch[0], list) else list(batch)


__all__ = ["SEDPipeline", "Segments"]
