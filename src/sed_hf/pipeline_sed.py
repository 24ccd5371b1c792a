"""RGB images to labels, and `transformers.pipeline` for segmentation with free class names."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import Pipeline

from .image_processing_sed import NonFiniteLogitsError, check_threshold, flattened, to_rgb
from .modeling_sed import SEDForSemanticSegmentation
from .processing_sed import SEDProcessor, validate_class_names
from .sliding_window_sed import SlidingWindow, segment_with_sliding_window

VOCABULARIES_IN_MEMORY = 8
EVERYTHING_ELSE = "everything else"


def unused_label(num_classes: int) -> int:
    """The label of pixels without a class: 255 if the label map has 8 bits, 65535 if it has 16."""
    if num_classes > 65535:
        raise ValueError(f"expected at most 65535 classes, which is what a label map can hold, got {num_classes}")
    return 255 if num_classes <= 255 else 65535


@dataclass(eq=False)
class Segmenter:
    """Segments images with one model and one vocabulary.

    Attributes:
        model: In evaluation mode.
        processor: Its processor.
        class_names: The names of T classes; synonyms are separated by ", ".
        class_embeddings: Theirs, (T, P, D).
        topk: Early rejection: keep the classes that are among the k best at some pixel; 0 keeps all. By default the
            model's own setting.
        threshold: Pixels whose best probability is lower belong to no class.
        sliding_window: How to cut images that are larger than a tile.
        everything_else: Embeddings of more names, which compete with `class_names`; together they are one more class.
        ignore_index: Label of pixels that belong to no class. By default, with a threshold, [`unused_label`].
    """

    model: SEDForSemanticSegmentation
    processor: SEDProcessor
    class_names: Sequence[str]
    class_embeddings: Tensor
    topk: int | None = None
    threshold: float | None = None
    sliding_window: SlidingWindow | None = None
    everything_else: Tensor | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.class_embeddings):
            given = f"{len(self.class_names)} class names for {len(self.class_embeddings)} class embeddings"
            raise ValueError(f"expected as many class names as class embeddings, got {given}")
        if self.everything_else is not None:
            self.class_names = [*self.class_names, EVERYTHING_ELSE]
            self.class_embeddings = torch.cat([self.class_embeddings, self.everything_else])
        if self.threshold is not None:
            if self.ignore_index is None:
                self.ignore_index = unused_label(len(self.class_names))
            check_threshold(self.threshold, self.ignore_index, len(self.class_names))
        if self.topk is None:  # stated, it leaves out the logits of what is rejected
            self.topk = self.model.config.early_rejection_topk

    @torch.no_grad()  # not inference_mode, after which FSDP cannot train
    def __call__(self, images: Any, show_progress: bool = False) -> list[dict[str, NDArray[Any]]]:
        """Segment images of any sizes in one batch; with a sliding window each by itself.

        Args:
            images: One or several, in any form that [`to_rgb`] takes.
            show_progress: Show a bar over the tiles of an image.

        Returns:
            For each image `segmentation`, int64 (height, width), and `probability`, float32 (height, width).

        Raises:
            NonFiniteLogitsError: The model gives values that are not numbers for an image.
        """
        rgbs, window = [to_rgb(image) for image in flattened(images, 3)], self.sliding_window
        batches = [[rgb] for rgb in rgbs] if window else [rgbs] if rgbs else []
        results: list[dict[str, NDArray[Any]]] = []
        for batch in batches:
            try:
                if window and max(batch[0].shape[1:]) > window.tile_size:
                    results += self._arrays([segment_with_sliding_window(self._look, batch[0], window, show_progress)])
                else:
                    results += self.post_process(self._look(batch), [rgb.shape[1:] for rgb in batch])
            except NonFiniteLogitsError as error:
                raise NonFiniteLogitsError(len(results) + error.index) from error
        return results

    def _look(self, rgbs: Sequence[Tensor]) -> Any:
        return self.forward(self.processor(images=rgbs, return_tensors="pt")["pixel_values"])

    @torch.no_grad()
    def forward(self, pixel_values: Sequence[Tensor]) -> Any:
        """The model's outputs for images that the image processor has prepared, each (3, H, W), to post-process."""
        if len({values.shape for values in pixel_values}) > 1:
            raise ValueError("images of different sizes without do_input_resize: use a batch size of 1")
        batch = torch.stack(list(pixel_values)).to(self.model.device, self.model.dtype)
        return self.model(batch, class_embeddings=self.class_embeddings, early_rejection_topk=self.topk)

    def post_process(self, outputs: Any, sizes: Sequence[Sequence[int]]) -> list[dict[str, NDArray[Any]]]:
        """What a call returns, from the outputs of `forward` and the (height, width) of each image."""
        post_process: Any = self.processor.post_process_semantic_segmentation
        return self._arrays(post_process(outputs, sizes, return_probabilities=True))

    def _arrays(self, results: Sequence[dict[str, Tensor]]) -> list[dict[str, NDArray[Any]]]:
        arrays = []
        for result in results:
            segmentation, probability = result["segmentation"].cpu().numpy(), result["probability"].cpu().numpy()
            segmentation = segmentation.clip(max=len(self.class_names) - 1)  # of everything else, all are the last
            if self.threshold is not None:
                segmentation[probability < self.threshold] = self.ignore_index
            arrays.append({"segmentation": segmentation, "probability": probability})
        return arrays


class Segments(list):
    """The classes of an image, the largest first, as dicts of `label`, `score` and `mask`, a PIL image of 0 and 255.

    Attributes:
        label_map: int64 (height, width), the index of each pixel's class in the vocabulary; -1 where it has none.
        probability: float32 (height, width), of that class.
        class_names: The vocabulary.
    """

    def __init__(self, segmentation: NDArray[Any], probability: NDArray[Any], class_names: Sequence[str]) -> None:
        classes, areas = np.unique(segmentation[segmentation >= 0], return_counts=True)
        super().__init__(
            {
                "label": class_names[index],
                "score": probability[segmentation == index].mean().item(),
                "mask": Image.fromarray((segmentation == index).astype(np.uint8) * 255),
            }
            for index in classes[np.argsort(-areas)].tolist()
        )
        self.label_map = segmentation
        self.probability = probability
        self.class_names = list(class_names)


class SEDPipeline(Pipeline):
    """`pipeline("open-vocabulary-segmentation")`, which keeps the embeddings of the last vocabularies in memory."""

    _load_processor = True  # which has all the others
    _load_image_processor = _load_feature_extractor = _load_tokenizer = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        parts = ("feature_extractor", "image_processor", "tokenizer")
        if given := [name for name in parts if kwargs.get(name) is not None]:
            raise TypeError(f"{', '.join(given)}: pass processor=, which holds image processor and tokenizer")
        self._vocabularies: dict[tuple[str, ...], Tensor] = {}
        if places := getattr(model, "hf_device_map", None):  # the first of which transformers takes for the device
            model.hf_device_map = {"": model.device, **places}
        super().__init__(model, *args, **kwargs)

    def __call__(self, images: Any, candidate_labels: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Segment images.

        Args:
            images: An image: PIL image, which counts as its pixels, path, URL, base64, numpy array or tensor. Or
                several: a list, a generator, a torch data set or a column of a `datasets` data set, with `batch_size`
                at a time.
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
        self,
        model_inputs: Mapping[str, Any],
        candidate_labels: Any,
        everything_else: Any = None,
        early_rejection_topk: int | None = None,
        **options: Any,
    ) -> dict[str, list[NDArray[Any]]]:
        vocabulary = (candidate_labels, self._encode(candidate_labels))
        others = None if everything_else is None else self._encode(everything_else)
        options |= {"topk": early_rejection_topk, "everything_else": others, "ignore_index": -1}
        self.model.eval()  # which `Trainer` leaves in training mode
        segmenter = Segmenter(self.model, self.processor, *vocabulary, **options)
        images = [torch.from_numpy(image) for image in flattened(model_inputs["image"], 3)]
        try:
            results = segmenter(images)
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(error.index, flattened(model_inputs["name"], 0)[error.index]) from error
        return {name: [result[name] for result in results] for name in ("segmentation", "probability")}

    def postprocess(
        self, model_outputs: Mapping[str, Any], candidate_labels: Any, everything_else: Any = None
    ) -> Segments:
        """The classes of one image."""
        class_names = [*candidate_labels, *([] if everything_else is None else [EVERYTHING_ELSE])]
        # A list of one map, or of a batch its item, to which transformers gives an axis again.
        return Segments(model_outputs["segmentation"][0], model_outputs["probability"][0], class_names)

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


__all__ = ["SEDPipeline", "Segmenter", "Segments"]
