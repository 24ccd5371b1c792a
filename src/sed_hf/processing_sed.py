"""Images and class names to the inputs of [`SEDForSemanticSegmentation`]."""

import html
import re
import unicodedata
from collections.abc import Sequence
from textwrap import shorten
from typing import Any, TypedDict

import numpy as np
from torch import Tensor
from transformers import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

from .configuration_sed import OPENAI_IMAGENET_TEMPLATES
from .image_processing_sed import SEDImageProcessorKwargs

try:
    import ftfy  # open_clip cleans text with it, and brings it
except ImportError:
    ftfy = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

SYNONYM_SEPARATOR = ", "
STRAIGHT_QUOTES = str.maketrans({"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"'})


class SEDTextKwargs(TypedDict, total=False):
    """Arguments for class names."""

    padding: bool | str  # `True` and "longest" to the longest prompt, "max_length" to `max_length`
    max_length: int | None  # longer prompts are truncated; by default, and at most, CLIP's 77 tokens
    return_tensors: str | None  # "pt", "np", or `None` for lists


class SEDProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Arguments for class names, for images, and for both (`common_kwargs`)."""

    text_kwargs: SEDTextKwargs
    images_kwargs: SEDImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": "longest"}, "common_kwargs": {"return_tensors": "pt"}}


class SEDProcessor(ProcessorMixin):
    """Image processor, CLIP tokenizer and prompt templates in one.

    Args:
        image_processor (`SEDImageProcessor`): Prepares the images.
        tokenizer (`CLIPTokenizer`): Tokenises the prompts.
        prompt_templates (`list[str]`): The templates of the model's configuration. Defaults to OpenAI's 80.
    """

    valid_processor_kwargs = SEDProcessorKwargs

    def __init__(self, image_processor: Any, tokenizer: Any, prompt_templates: Sequence[str] | None = None) -> None:
        super().__init__(image_processor, tokenizer)
        templates = prompt_templates or OPENAI_IMAGENET_TEMPLATES
        if isinstance(templates, str) or not isinstance(templates, Sequence):
            raise TypeError(f"prompt_templates: expected a list of strings, got {templates!r:.80}")
        for index, template in enumerate(templates):
            if not isinstance(template, str) or template.count("{}") != 1:
                expected = "expected text with exactly one {}"
                raise ValueError(f"prompt_templates[{index}]: {expected}, got {template!r:.80}")
        self.prompt_templates = list(templates)
        self.auto_map = {"AutoProcessor": "processing_sed.SEDProcessor"}  # which transformers adds when it saves

    def __call__(
        self,
        images: ImageInput | None = None,
        text: Sequence[str] | None = None,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[SEDProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images, class names, or both.

        Args:
            images: Images; see [`SEDImageProcessor`].
            text: One string for each class. Synonyms are separated by ", ".
            segmentation_maps: A label map for each image, when training.
            **kwargs: Arguments of the image processor, and those of [`SEDTextKwargs`].

        Returns:
            `pixel_values` (B, 3, H, W) and `labels` for the images; for the classes `input_ids` (S, P, L), of S
            synonyms in P templates, `class_ids` (S,), the class of each synonym, and `num_synonyms` (S,), in each row
            S, by which the model knows whether something has cut them.
        """
        known = {*SEDTextKwargs.__annotations__, *SEDImageProcessorKwargs.__annotations__}
        if unknown := set(kwargs) - known - {"text_kwargs", "images_kwargs", "common_kwargs"}:
            raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")
        if images is None and (text is None or segmentation_maps is not None):
            expected = "images, text or both" if text is None else "images for segmentation_maps"
            raise ValueError(f"expected {expected}")
        kwargs = self._merge_kwargs(SEDProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        return_tensors = kwargs["text_kwargs"].pop("return_tensors")
        data: dict[str, Any] = {}
        if text is not None:
            data.update(self._tokenize_classes(validate_class_names(text), **kwargs["text_kwargs"]))
        if images is not None:
            data.update(self.image_processor(images, segmentation_maps, **kwargs["images_kwargs"]))
        return BatchFeature(data, tensor_type=return_tensors)

    def _tokenize_classes(
        self, class_names: list[str], padding: bool | str, max_length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Tokens of every synonym of every class in every template."""
        if padding not in (True, "longest", "max_length"):
            raise ValueError(f"padding={padding!r}: expected 'longest' or 'max_length'")
        synonyms, class_ids = [], []
        for class_id, name in enumerate(class_names):
            for synonym in synonyms_of(name):
                synonyms.append(synonym)
                class_ids.append(class_id)
        prompts = [template.replace("{}", synonym) for synonym in synonyms for template in self.prompt_templates]
        tokens = self.tokenizer(prompts, split_special_tokens=True, verbose=False)["input_ids"]

        num_templates = len(self.prompt_templates)
        width = max_length or self.tokenizer.model_max_length
        max_length = min(width, self.tokenizer.model_max_length)
        if too_long := {index // num_templates for index, prompt in enumerate(tokens) if len(prompt) > max_length}:
            names = ", ".join(repr(shorten(synonyms[index], 60, placeholder="…")) for index in sorted(too_long))
            logger.warning(f"Class names truncated to {max_length} tokens in at least one template: {names}")
        # The end-of-text token stays last: CLIP reads the embedding there.
        tokens = [prompt if len(prompt) <= max_length else [*prompt[: max_length - 1], prompt[-1]] for prompt in tokens]
        input_ids = np.zeros((len(prompts), width if padding == "max_length" else max(map(len, tokens))), np.int64)
        for row, prompt in zip(input_ids, tokens, strict=True):
            row[: len(prompt)] = prompt
        return {
            "input_ids": input_ids.reshape(len(synonyms), num_templates, -1),
            "class_ids": np.array(class_ids),
            "num_synonyms": np.full(len(synonyms), len(synonyms)),
        }

    def post_process_semantic_segmentation(
        self, outputs: Any, *args: Any, **kwargs: Any
    ) -> list[Tensor] | list[dict[str, Tensor]] | list[BatchFeature]:
        """See [`SEDImageProcessor.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(outputs, *args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that the processor makes."""
        return ["pixel_values", "input_ids", "class_ids", "num_synonyms"]


def validate_class_names(text: Any, argument: str = "text") -> list[str]:
    """The class names, without surrounding spaces and a trailing comma; refused if one is empty or named twice.

    Args:
        text: Class names.
        argument: What errors call them.
    """
    if isinstance(text, str | bytes) or not isinstance(text, Sequence):
        names = [name.strip() for name in text.split(",")] if isinstance(text, str) else []
        advice = f"; write {names!r:.80}" if names else ""
        raise TypeError(f"{argument}: expected a list of class names, got {type(text).__name__} {text!r:.80}{advice}")
    if not text:
        raise ValueError(f"{argument}: expected at least one class name, got an empty list")
    first_index: dict[tuple[str, ...], int] = {}
    for index, name in enumerate(text):
        if not isinstance(name, str):
            raise TypeError(f"{argument}[{index}]: expected a string, got {type(name).__name__} {name!r:.80}")
        if re.search("[\ud800-\udfff]", name):  # half a surrogate pair, which nothing can write
            raise ValueError(f"{argument}[{index}]: expected Unicode text, got {name!r:.80}")
        if not all(synonyms_of(name)):
            expected = "expected a class name, or several separated by ', '"
            raise ValueError(f"{argument}[{index}]: {expected}; got {name!r:.80}")
        if SYNONYM_SEPARATOR not in name and "," in name:
            logger.warning(f"{argument}[{index}]: {name!r} is one name; synonyms are separated by a comma and a space")
        same = first_index.setdefault(synonyms_of(name), index)
        if same != index:
            other = f"{argument}[{same}]={text[same]!r:.80}"
            raise ValueError(f"{argument}[{index}]: {name!r:.80} is the same class name as {other}")
    return [without_comma(name) for name in text]


def without_comma(name: str) -> str:
    """A name without the spaces around it and the comma that a list on a command line has left at its end."""
    return name.strip().rstrip(",").strip()


def synonyms_of(class_name: str) -> tuple[str, ...]:
    """The synonyms of a class, each as it is tokenised."""
    return tuple(clean_text(synonym) for synonym in without_comma(class_name).split(SYNONYM_SEPARATOR))


def clean_text(text: str) -> str:
    """Text as open_clip cleans it before it tokenises: Unicode, entities, spaces and case."""
    text = html.unescape(html.unescape(fix_unicode(text) if ftfy is None else ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def fix_unicode(text: str) -> str:
    """What class names need of ftfy, where that is not installed: all but the repair of broken encodings."""
    # Other widths of letters, and ligatures; then control characters that are no spaces, and byte order marks.
    text = re.sub("[\u3000\uff01-\uffee\ufb00-\ufb06]", lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = re.sub("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]", "", html.unescape(text))
    return unicodedata.normalize("NFC", text.translate(STRAIGHT_QUOTES))


__all__ = ["SEDProcessor"]
