"""`transformers.pipeline` for segmentation with free class names."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import Pipeline


class SEDPipeline(Pipeline):
    """Zero-shot image segmentation.

    ```python
    from transformers import pipeline

    segmenter = pipeline("zero-shot-image-segmentation", model=path, trust_remote_code=True)
    segmenter("photo.jpg", candidate_labels=["cat", "dog, puppy", "grass"])
    # [{"label": "cat", "score": 0.93, "mask": <PIL.Image mode=L>}, ...]
    ```

    Class names are encoded once: calls with the labels of the call before reuse their embeddings.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._encoded_labels: tuple[str, ...] = ()
        self._class_embeddings: Tensor | None = None

    def __call__(self, images: Any, candidate_labels: Sequence[str], **kwargs: Any) -> Any:
        """Segment pictures.

        Args:
            images: A picture or a list of pictures: PIL images, paths or URLs.
            candidate_labels: Class names; synonyms of a class are separated by ", ".
            threshold: Pixels whose best probability is lower belong to no class.
            early_rejection_topk: Keep the classes that are among the k best at some pixel; 0 decodes every class.

        Returns:
            For each picture a list of the classes that occur, by area: `label`, `score` (mean probability over its
            pixels) and `mask` (PIL image of mode L, 255 where the class is).
        """
        return super().__call__(images, candidate_labels=candidate_labels, **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels: Sequence[str] | None = None,
        threshold: float | None = None,
        early_rejection_topk: int | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise TypeError(f"unexpected arguments: {', '.join(kwargs)}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: expected a probability from 0 to 1")
        forward = {"candidate_labels": candidate_labels, "early_rejection_topk": early_rejection_topk}
        return {}, forward, {"candidate_labels": candidate_labels, "threshold": threshold}

    def preprocess(self, image: Any) -> dict[str, Any]:
        """Prepare one picture and note its size."""
        image_processor = self.processor.image_processor
        picture = image_processor.to_rgb(image_processor.fetch_images(image))
        pixel_values = self.processor(images=picture, return_tensors="pt")["pixel_values"].to(self.dtype)
        return {"pixel_values": pixel_values, "target_size": tuple(picture.shape[-2:])}

    def _forward(
        self, model_inputs: dict[str, Any], candidate_labels: Sequence[str], early_rejection_topk: int | None
    ) -> dict[str, Any]:
        outputs = self.model(
            pixel_values=model_inputs["pixel_values"],
            class_embeddings=self._encode(candidate_labels),
            early_rejection_topk=early_rejection_topk,
        )
        return {"outputs": outputs, "target_size": model_inputs["target_size"]}

    def _encode(self, candidate_labels: Sequence[str]) -> Tensor:
        if self._class_embeddings is None or self._encoded_labels != tuple(candidate_labels):
            inputs = self.processor(text=candidate_labels, return_tensors="pt").to(self.device)
            self._class_embeddings = self.model.get_class_embeddings(**inputs)
            self._encoded_labels = tuple(candidate_labels)
        return self._class_embeddings

    def postprocess(
        self, model_outputs: dict[str, Any], candidate_labels: Sequence[str], threshold: float | None
    ) -> list[dict[str, Any]]:
        """The classes of one picture, the largest first."""
        result = self.processor.post_process_semantic_segmentation(
            model_outputs["outputs"],
            target_sizes=[model_outputs["target_size"]],
            threshold=threshold,
            ignore_index=-1,
            return_probabilities=True,
        )[0]
        segmentation, probability = result["segmentation"], result["probability"]
        classes, areas = segmentation[segmentation >= 0].unique(return_counts=True)
        return [
            {
                "label": candidate_labels[index],
                "score": probability[segmentation == index].mean().item(),
                "mask": Image.fromarray(((segmentation == index).to(torch.uint8) * 255).cpu().numpy()),
            }
            for index in classes[areas.argsort(descending=True)].tolist()
        ]


__all__ = ["SEDPipeline"]
