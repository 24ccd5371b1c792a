"""RGB images to labels, and `transformers.pipeline` for segmentation with free class names."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import Pipeline

from .image_processing_sed import NonFiniteLogitsError, check_threshold, flattened, to_rgb
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
    """The `segmentation`, int64 (height, width), and `probability`, float32 (height, width), of each image.

    Args:
        model: [`SEDForSemanticSegmentation`].
        processor: [`SEDProcessor`].
        images: In any form that [`to_rgb`] takes; all are one batch, but for a sliding window.
        class_embeddings: (T, P, D).
        early_rejection_topk: As in the model's `forward`.
        threshold: Pixels whose best probability is lower get `ignore_index`, by default the image processor's.
        ignore_index: Label of pixels without a class.
        sliding_window: How to cut images that are larger than a tile.
        show_progress: Show a bar over the tiles of an image.
    """
    ignore_index = processor.image_processor.ignore_index if ignore_index is None else ignore_index
    if early_rejection_topk is None:  # stated, it leaves out the logits of what is rejected
        early_rejection_topk = model.config.early_rejection_topk
    check_threshold(threshold, ignore_index, len(class_embeddings))
    rgbs = [to_rgb(image) for image in images]
    batches = [[rgb] for rgb in rgbs] if sliding_window else [rgbs] if rgbs else []
    options: dict[str, Any] = {"class_embeddings": class_embeddings, "early_rejection_topk": early_rejection_topk}
    results: list[dict[str, Tensor]] = []
    for batch in batches:
        try:
            if sliding_window and max(batch[0].shape[1:]) > sliding_window.tile_size:
                results.append(
                    segment_with_sliding_window(
                        model, processor, batch[0], window=sliding_window, show_progress=show_progress, **options
                    )
                )
                continue
            pixel_values = processor(images=batch, return_tensors="pt")["pixel_values"]
            outputs = model(pixel_values.to(model.device, model.dtype), **options)
            sizes = [rgb.shape[1:] for rgb in batch]
            results += processor.post_process_semantic_segmentation(outputs, sizes, return_probabilities=True)
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(len(results) + error.index) from error
    if threshold is not None:
        for result in results:
            is_lower = result["probability"] < threshold
            result["segmentation"] = result["segmentation"].masked_fill(is_lower, ignore_index)
    return results


class Segments(list):
    """The classes of an image, the largest first, as dicts of `label`, `score` and `mask`, a PIL image of 0 and 255.

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
    """`pipeline("open-vocabulary-segmentation")`, which keeps the embeddings of the last vocabularies in memory."""

    _load_processor = True  # which has all the others
    _load_image_processor = _load_feature_extractor = _load_tokenizer = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self._vocabularies: dict[tuple[str, ...], Tensor] = {}
        if places := getattr(model, "hf_device_map", None):  # the first of which transformers takes for the device
            model.hf_device_map = {"": model.device, **places}
        super().__init__(model, *args, **kwargs)

    def __call__(self, images: Any, candidate_labels: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Segment images.

        Args:
            images: An image: PIL image, path, URL, base64, numpy array or tensor. Or several: a list, a generator, a
                torch data set or a column of a `datasets` data set, with `batch_size` at a time.
            candidate_labels: Class names; synonyms of a class are separated by ", ". Can also be given once, to
                `pipeline(...)`, as can all that follows.
            threshold: Pixels whose best probability is lower belong to no class.
            everything_else: More class names, which compete with yours; the pixels that they win are of the label
                "everything else", whose index comes after those of your labels.
            early_rejection_topk: Keep the classes that are among the k best at some pixel; 0 decodes every class.
            sliding_window: Cut large images into overlapping tiles of so many pixels, or a dict of `tile_size`,
                `overlap` and `global_view`; see [`SlidingWindow`].

        Returns:
            [`Segments`] for one image; a list of them for a list; an iterator over them for everything else.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        elif "candidate_labels" not in self._forward_params:
            raise TypeError("candidate_labels: expected class names, got none")
        if isinstance(images, tuple):
            images = list(images)
        elif isinstance(images, Iterator) or (isinstance(images, Sequence) and not isinstance(images, str | list)):
            images = (image for image in images)  # the only stream that transformers knows besides data sets
        return super().__call__(images, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = ["candidate_labels", "early_rejection_topk", "everything_else", "sliding_window", "threshold"]
        if unknown := sorted(set(kwargs) - set(known)):
            raise TypeError(f"unexpected arguments: {', '.join(unknown)}; expected {', '.join(known)}")
        check_threshold(kwargs.get("threshold"))
        names = [name for name in ("candidate_labels", "everything_else") if kwargs.get(name) is not None]
        for name in names:
            kwargs[name] = tuple(validate_class_names(kwargs[name], name))
        if "sliding_window" in kwargs:
            kwargs["sliding_window"] = SlidingWindow.of(kwargs["sliding_window"])
        return {}, kwargs, {name: kwargs[name] for name in names}

    def preprocess(self, image: Any) -> dict[str, Any]:
        """One image as RGB, and what errors call it; `_forward` makes the batch."""
        rgb = to_rgb(image).numpy()
        is_named = isinstance(image, str | os.PathLike)
        return {"image": [rgb], "name": [str(image)[-80:] if is_named else f"image of {rgb.shape[2]} × {rgb.shape[1]}"]}

    def _forward(
        self, model_inputs: Mapping[str, Any], candidate_labels: Any, everything_else: Any = None, **options: Any
    ) -> dict[str, list[Tensor]]:
        class_embeddings = self._encode(candidate_labels)
        if everything_else is not None:
            class_embeddings = torch.cat([class_embeddings, self._encode(everything_else)])
        images = [torch.from_numpy(image) for image in flattened(model_inputs["image"], 3)]
        try:
            results = segment_images(self.model, self.processor, images, class_embeddings, ignore_index=-1, **options)
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(error.index, flattened(model_inputs["name"], 0)[error.index]) from error
        return {name: [result[name] for result in results] for name in ("segmentation", "probability")}

    def postprocess(
        self, model_outputs: Mapping[str, Any], candidate_labels: Any, everything_else: Any = None
    ) -> Segments:
        """The classes of one image."""
        class_names = candidate_labels
        # A list of one map, or of a batch its item, to which transformers gives an axis again.
        segmentation, probability = model_outputs["segmentation"][0], model_outputs["probability"][0]
        if everything_else is not None:
            segmentation = segmentation.clamp(max=len(class_names))
            class_names = [*class_names, EVERYTHING_ELSE]
        return Segments(segmentation, probability, class_names)

    def _encode(self, class_names: tuple[str, ...]) -> Tensor:
        """The embeddings (T, P, D) of class names."""
        if class_names not in self._vocabularies:
            for oldest in list(self._vocabularies)[: 1 - VOCABULARIES_IN_MEMORY]:
                del self._vocabularies[oldest]
            inputs = self.processor(text=class_names, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                self._vocabularies[class_names] = self.model.get_class_embeddings(**inputs)
        return self._vocabularies[class_names]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model, its code and its processor to a folder that `pipeline` loads."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["SEDPipeline", "Segments"]
