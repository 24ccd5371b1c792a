"""The page of the demo: its parts, and what happens when a visitor uses them."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from .. import SEDForSemanticSegmentation, SEDProcessor
from ..chunking_sed import is_out_of_memory
from ..data.vocabularies import load_vocabulary, vocabulary_names
from ..image_processing_sed import NonFiniteLogitsError, read_rgb
from ..inference.class_embeddings import ClassEmbeddingCache, encode_classes, text_encoder_sha256
from ..inference.segmenter import Segmenter, unused_label
from ..inference.writers import write_results
from ..processing_sed import SYNONYM_SEPARATOR, validate_class_names
from ..terminal import OUT_OF_MEMORY
from ..visualization import class_colors, class_statistics, display_size, first_synonym
from .guard import UploadFolder, sweep

logger = logging.getLogger(__name__)

MAX_PIXELS = 25_000_000  # of an uploaded image
MAX_IMAGE_SIZE = 1024  # pixels a side; larger images are made smaller
MAX_CLASS_NAMES = 1000  # that are typed, synonyms included
MAX_NAME_CHARACTERS = 200
MAX_AT_ONCE = 2  # visitors whose images are segmented; the others wait
MAX_SHOWN = 40  # classes, the largest
MAX_TYPED_CACHE_BYTES = 2**28  # of embeddings, before the next names are encoded
# Those that browsers and cameras make. Pillow reads more, some of them by starting other programs.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
OWN_CLASSES = "the classes typed below"
TOO_LONG = (
    "This takes more than {} seconds. Try again, since encoded names are kept; or fewer classes, or early rejection."
)
FAILED = "Something went wrong on the server, whose log says what. Please try another image or other classes."


class Watch(TorchFunctionMode):
    """Ends the work in a thread, at torch's next operation, when time is up or nobody waits for it any longer."""

    def __init__(self, demo: "Demo", session: str) -> None:
        super().__init__()
        self.demo, self.session, self.start = demo, session, time.monotonic()

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        seconds = time.monotonic() - self.start
        if seconds > self.demo.max_seconds:
            raise refusal(TOO_LONG.format(self.demo.max_seconds))
        if seconds > self.demo.seconds_to_listen and not self.demo.listeners[self.session]:
            raise refusal("The visitor has gone.")
        return func(*args, **(kwargs or {}))


@dataclass
class Demo:
    """What the page's controls do. Methods take and return the values of controls."""

    model: SEDForSemanticSegmentation
    processor: SEDProcessor
    files: UploadFolder
    listeners: Counter[str]  # over how many connections each session waits for an answer
    max_seconds: float = 60  # for an image
    seconds_to_listen: float = 3  # in which a program asks for its answer

    def __post_init__(self) -> None:
        # What visitors type does not go to the cache of the user who runs the server.
        self._typed = ClassEmbeddingCache(self.files.path.parent / "class_embeddings")
        self._encode = lru_cache(maxsize=MAX_AT_ONCE)(self._encode_classes)
        self._encoder = text_encoder_sha256(self.model, self.processor)
        # In Gradio's own threads, which are ever others, torch and malloc would each time set memory aside.
        self._workers = ThreadPoolExecutor(MAX_AT_ONCE)

    def segment(
        self, path: str | None, vocabulary: str, class_text: str, topk: int, threshold: float, request: gr.Request
    ) -> tuple[Any, ...]:
        """Segment the uploaded image, and show the result."""
        if path is None:
            raise refusal("Please drop an image first.")
        is_typed = vocabulary == OWN_CLASSES
        class_names = read_class_names(class_text) if is_typed else load_vocabulary(vocabulary)
        if len(class_names) == 1 and SYNONYM_SEPARATOR in class_names[0]:
            gr.Info("That is one class with several synonyms. For several classes, type each on a line of its own.")
        watch = Watch(self, request.session_hash or "")
        try:
            result = self._workers.submit(self._segment, path, class_names, is_typed, int(topk), watch).result()
        except gr.Error:
            raise
        except NonFiniteLogitsError as error:
            raise refusal(str(error)) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise refusal(OUT_OF_MEMORY) from error
            logger.exception("segmenting failed")
            raise refusal(FAILED) from error
        return result, *self.show(result, threshold)

    def show(self, result: tuple[Any, ...] | None, threshold: float) -> tuple[Any, ...]:
        """Show a result with a threshold: classes, comparison, and the files of `sed-hf segment`."""
        if result is None:  # the threshold of the first image
            return tuple(gr.skip() for _ in range(5))
        name, class_names, image, labels, probability = result
        ignore_index = unused_label(len(class_names))
        labels = np.where(probability < threshold, ignore_index, labels)
        masks, colors = [], {}
        palette = class_colors(class_names)
        statistics = class_statistics(labels, class_names, probability=probability, ignore_index=ignore_index)
        for entry in statistics[:MAX_SHOWN]:
            label = f"{first_synonym(entry.name)} · {entry.share:.1%} · {entry.mean_probability:.2f}"
            masks.append((np.where(labels == entry.index, 0.3 + 0.4 * probability, 0), label))  # read by page.js
            colors[label] = f"#{palette[entry.index].tobytes().hex()}"
        self.files.sweep()
        stem = Path(mkdtemp(dir=self.files.path), Path(name).stem)
        paths = [stem.with_name(stem.name + ending) for ending in ("_labels.png", "_overlay.jpg", ".json")]
        maps = {"segmentation": labels, "probability": probability}
        ignored = ignore_index if threshold else None
        write_results(paths, Path(name), image, maps, class_names, ignored, self.model.name_or_path)
        size = display_size(image.size)
        regions = Image.open(paths[1]).crop((0, 0, *size))  # of the overlay, without its legend
        return (
            gr.update(value=(np.asarray(image), masks), color_map=colors),
            (image.resize(size), regions),
            *(gr.update(value=str(path), interactive=True) for path in paths),
        )

    def _segment(self, path: str, class_names: list[str], is_typed: bool, topk: int, watch: Watch) -> tuple[Any, ...]:
        """File name, class names, image; class index and probability of each pixel, before any threshold."""
        image = read_image(path)
        with watch:
            class_embeddings = self._encode(tuple(class_names), is_typed)
            [maps] = Segmenter(self.model, self.processor, class_names, class_embeddings, topk=topk)([image])
        return Path(path).name, class_names, image, maps["segmentation"].astype("uint16"), maps["probability"]

    def _encode_classes(self, class_names: tuple[str, ...], is_typed: bool) -> torch.Tensor:
        if is_typed:
            sweep(self._typed.directory, MAX_TYPED_CACHE_BYTES)
        cache = self._typed if is_typed else ClassEmbeddingCache()
        return encode_classes(self.model, self.processor, class_names, cache, False, self._encoder)


def refusal(message: str) -> gr.Error:
    """An error for the page, which takes it for HTML."""
    return gr.Error(escape(message, quote=False), print_exception=False)


def read_image(path: str) -> Image.Image:
    """An uploaded image as RGB, the right way up, with at most `MAX_IMAGE_SIZE` pixels a side."""
    try:
        image = read_rgb(path, IMAGE_FORMATS, MAX_PIXELS)
    except (OSError, ValueError) as error:
        raise refusal(str(error).replace(path, Path(path).name)) from error
    image.thumbnail((MAX_IMAGE_SIZE, MAX_IMAGE_SIZE))
    return image


def read_class_names(text: str) -> list[str]:
    """The class names in a text, one a line, without empty lines."""
    class_names = [line for line in text.splitlines() if line.strip()]
    synonyms = SYNONYM_SEPARATOR.join(class_names).split(SYNONYM_SEPARATOR)
    if len(synonyms) > MAX_CLASS_NAMES or max(map(len, synonyms)) > MAX_NAME_CHARACTERS:
        limits = f"{MAX_CLASS_NAMES:,} names of {MAX_NAME_CHARACTERS} characters"
        raise refusal(f"There are {len(synonyms):,} names, synonyms included. At most {limits} are taken here.")
    try:
        return validate_class_names(class_names, "classes")
    except ValueError as error:
        raise refusal(str(error)) from error


def build_page(demo: Demo, examples: list[list[str]]) -> gr.Blocks:
    """Build the page; an example is the path of an image, `OWN_CLASSES`, and class names, one a line."""
    with gr.Blocks(title="SED", analytics_enabled=False) as page, gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown(
                f"## Open-vocabulary segmentation\nDrop an image, name classes. Model: {demo.model.name_or_path}."
            )
            image = gr.Image(label="Image", type="filepath", height=240, elem_id="image")
            # Gradio would open the file in any format, and answer a bad one without a word of explanation.
            image.preprocess = lambda payload: payload and payload.path  # type: ignore
            vocabulary = gr.Dropdown([OWN_CLASSES, *vocabulary_names()], label="Classes")
            typed = examples[0][2] if examples else "sky\ntree\ngrass\ndog, puppy\nperson"
            label = "One class a line, synonyms after a comma"
            class_text = gr.Textbox(typed, label=label, lines=4, max_lines=4, elem_id="classes")
            button = gr.Button("Segment", variant="primary", elem_id="segment")
            inputs = [image, vocabulary, class_text]
            if examples:
                gr.Examples(examples, inputs, visible_columns=[0], elem_id="examples", api_visibility="private")
            info = "Drops classes that are nowhere among the k best. 0 keeps all."
            best = demo.model.config.early_rejection_topk or 0
            topk = gr.Slider(0, max(32, best), best, step=1, label="Early rejection (top-k)", info=info)
        with gr.Column(min_width=320):
            with gr.Tab("Classes"):
                overlay = gr.AnnotatedImage(show_label=False, height="clamp(360px, 42vw, 540px)", elem_id="overlay")
            with gr.Tab("Compare"):
                compare = gr.ImageSlider(show_label=False, interactive=False, max_height=540, elem_id="compare")
            gr.HTML('<span id="pointed">Point at the image: class · share of the image · probability</span>')
            info = "Pixels with a lower probability get no class."
            threshold = gr.Slider(0, 1, step=0.01, label="Threshold", info=info, elem_id="threshold")
            with gr.Row():
                labels = gr.DownloadButton("Label map", interactive=False, size="sm", elem_id="labels")
                figure = gr.DownloadButton("Overlay", interactive=False, size="sm", elem_id="figure")
                summary = gr.DownloadButton("Summary", interactive=False, size="sm", elem_id="summary")
        result = gr.State()
        outputs = [overlay, compare, labels, figure, summary]

        press: dict[str, Any] = {"api_name": "segment", "show_progress_on": overlay, "concurrency_limit": MAX_AT_ONCE}
        done = button.click(demo.segment, [*inputs, topk, threshold], [result, *outputs], **press)
        done.success(None, js="() => document.querySelector('#overlay').scrollIntoView({block: 'nearest'})")
        quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        threshold.release(demo.show, [result, threshold], outputs, **quietly)
        vocabulary.change(lambda name: gr.Textbox(visible=name == OWN_CLASSES), vocabulary, class_text, **quietly)
    return page
