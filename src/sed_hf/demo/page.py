"""The page of the demo: its parts, and what happens when a visitor uses them."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch
from torch.overrides import TorchFunctionMode

from .. import SEDForSemanticSegmentation, SEDProcessor
from ..data.vocabularies import vocabulary_names
from ..image_processing_sed import NonFiniteLogitsError
from ..inference.class_embeddings import ClassEmbeddingCache, encode_classes
from ..inference.segmenter import Segmenter
from ..processing_sed import SYNONYM_SEPARATOR
from .guard import MAX_UPLOAD_BYTES, UploadFolder
from .inputs import MAX_CLASS_NAMES, OWN_CLASSES, InputError, max_upload_pixels, read_class_names, read_upload
from .results import Result

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 2  # visitors whose images are segmented; the others wait
MAX_TYPED_CACHE_BYTES = 2**28
MAX_TOPK = 32
EXAMPLE_CLASSES = ["sky", "tree", "grass", "dog, puppy", "person"]

CLICK_A_REGION = "Click a region to read its class and probability."
NO_RESULT = "There is no result here, or it is no longer kept. Please press Segment."
TOO_LONG = (
    "This takes longer than the {} seconds that each visitor has. Please take fewer classes, or early rejection. Names"
    " that have been encoded are kept: the next try gets further."
)
NOT_FINITE = "The model gives values that are not finite for this image. The server should run it in float32."
OUT_OF_MEMORY = (
    "There is not enough memory for this image with so many classes. Please take fewer classes, or early rejection."
)
FAILED = "Something went wrong on the server, whose log says what. Please try another image or other classes."

# The colours of the legend are a style sheet in an element of their own. A refusal is shown in a corner of the page;
# Gradio would also hide the last result behind the word "Error".
CSS = """
.gradio-container {max-width: 1280px !important}
#overlay:not(:has(img)) {min-height: 240px}
#overlay img {cursor: crosshair}
#region {min-height: 1.6em}
#colors {display: none}
[data-testid="status-tracker"]:has(.error) {display: none !important}
#shown .wrap {display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 6px}
#shown .wrap label {
    border-left: 1.1em solid var(--class-color, transparent); margin: 0;
    font-size: 0.9em; font-variant-numeric: tabular-nums;
}
#shown .wrap label span {overflow-wrap: anywhere}
@media (max-width: 640px) {.gradio-container {padding: 8px !important} h1 {font-size: 1.4em !important}}
"""


class Example(NamedTuple):
    """An image that the page offers, and the class names to go with it."""

    image: Path
    class_names: Sequence[str]


class StoppedError(Exception):
    """The work has been ended; the message says why."""


class BeforeEachOperation(TorchFunctionMode):
    """While it is active in a thread, torch calls `check` there before each operation; an error of it ends the work."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self.check = check

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        self.check()
        return func(*args, **(kwargs or {}))


class Demo:
    """What the page's controls do. Methods take and return the values of controls.

    Args:
        model: In evaluation mode, on the device where it is to run.
        processor: Its processor.
        model_name: For the page and the summaries.
        files: The folder of uploads and results.
        listeners: Over how many connections each session waits for an answer.
        max_seconds: In which an image is to be segmented.
        seconds_to_listen: In which a program asks for the answer to what it has sent.
    """

    def __init__(
        self,
        model: SEDForSemanticSegmentation,
        processor: SEDProcessor,
        model_name: str,
        files: UploadFolder,
        listeners: Counter[str],
        max_seconds: float = 60,
        seconds_to_listen: float = 3,
    ) -> None:
        self.model = model
        self.processor = processor
        self.model_name = model_name
        self.files = files
        self.listeners = listeners
        self.max_seconds = max_seconds
        self.seconds_to_listen = seconds_to_listen
        # What visitors type does not go to the cache of the user who runs the server.
        self._typed = ClassEmbeddingCache(files.path.parent / "class_embeddings", MAX_TYPED_CACHE_BYTES)
        self._encode = lru_cache(maxsize=MAX_AT_ONCE)(self._encode_classes)
        # Gradio would call from ever other threads, for each of which torch and malloc set memory of its own aside.
        self._workers = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="segment")

    def segment(
        self,
        path: str | None,
        vocabulary: str,
        class_text: str,
        topk: int,
        threshold: float,
        request: gr.Request | None = None,
    ) -> tuple[Any, ...]:
        """Segment the uploaded image, and show the result."""
        if path is None:
            raise refusal("Please drop an image first.")
        session = request.session_hash if request else None
        try:
            class_names = tuple(read_class_names(class_text, vocabulary))
            is_typed = vocabulary == OWN_CLASSES
            result = self._workers.submit(self._segment, Path(path), class_names, is_typed, int(topk), session).result()
        except (InputError, StoppedError) as error:
            raise refusal(str(error)) from error
        except NonFiniteLogitsError as error:
            raise refusal(NOT_FINITE) from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise refusal(OUT_OF_MEMORY) from error
        except Exception as error:  # of any kind: the visitor is told in a sentence
            logger.exception("segmenting failed")
            raise refusal(FAILED) from error
        if len(class_names) == 1 and SYNONYM_SEPARATOR in class_names[0]:
            gr.Info("That is one class with several synonyms. For several classes, type each on a line of its own.")
        return result, *self.change_threshold(result, threshold), CLICK_A_REGION

    def change_threshold(self, result: Result | None, threshold: float) -> tuple[Any, ...]:
        """Overlay, colours of the legend, legend, label map and summary with this threshold."""
        if result is None:  # the threshold of the first image
            return tuple(gr.skip() for _ in range(5))
        result.threshold = threshold
        folder = self.files.new_folder()
        labels, summary = result.write_downloads(folder)
        shown = [index for index in result.listed if index not in result.hidden]
        return (
            result.write_overlay(folder),
            result.legend_colors(),
            gr.update(choices=result.legend(), value=shown),
            gr.update(value=labels, interactive=True),
            gr.update(value=summary, interactive=True),
        )

    def show_classes(self, result: Result | None, shown: list[int]) -> str:
        """Show these classes of the same result, and hide the others."""
        result = existing(result)
        result.hidden = [index for index in result.listed if index not in shown]
        return result.write_overlay(self.files.new_folder())

    def read_region(self, result: Result | None, event: gr.SelectData) -> str:
        """Say what there is where the overlay was clicked."""
        return existing(result).describe(event.index)

    def check_image(self, path: str | None) -> None:
        """Tell at once what is wrong with an uploaded image."""
        try:
            if path:
                read_upload(Path(path))
        except InputError as error:
            raise refusal(str(error)) from error

    def _segment(
        self, path: Path, class_names: tuple[str, ...], is_typed: bool, topk: int, session: str | None
    ) -> Result:
        start = time.monotonic()

        def check() -> None:
            seconds = time.monotonic() - start
            if seconds > self.max_seconds:
                raise StoppedError(TOO_LONG.format(self.max_seconds))
            if seconds > self.seconds_to_listen and session and not self.listeners[session]:
                raise StoppedError("The visitor has gone.")

        image = read_upload(path)
        with BeforeEachOperation(check):
            class_embeddings = self._encode(class_names, is_typed)
            [maps] = Segmenter(self.model, self.processor, class_names, class_embeddings, topk=topk)([image])
        labels = maps["segmentation"].astype("uint16")
        return Result(path.name, self.model_name, class_names, image, labels, maps["probability"])

    def _encode_classes(self, class_names: tuple[str, ...], is_typed: bool) -> torch.Tensor:
        cache = self._typed if is_typed else ClassEmbeddingCache()
        return encode_classes(self.model, self.processor, class_names, cache, show_progress=False)


def existing(result: Result | None) -> Result:
    """The result, if there is one."""
    if result is None:
        raise refusal(NO_RESULT)
    return result


def refusal(message: str) -> gr.Error:
    """An error for the page, which takes it for HTML."""
    return gr.Error(escape(message, quote=False), print_exception=False)


def build_page(demo: Demo, examples: Sequence[Example] = ()) -> gr.Blocks:
    """Build the page.

    Args:
        demo: What its controls do.
        examples: Images to offer, with their class names; those of the first are typed in at the beginning.
    """
    quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    with gr.Blocks(title="SED", analytics_enabled=False) as page:
        gr.Markdown(
            "# SED: open-vocabulary semantic segmentation\n"
            f"Drop an image of at most {MAX_UPLOAD_BYTES >> 20} MB and {max_upload_pixels() / 1e6:g} megapixels, name"
            f" classes, press **Segment**. Model: {demo.model_name}."
        )
        result = gr.State(None)
        with gr.Row():
            with gr.Column(min_width=320):
                image, vocabulary, class_text, topk = add_inputs(examples)
                button = gr.Button("Segment", variant="primary", elem_id="segment")
            with gr.Column(min_width=320):
                overlay, region, threshold, colors, shown, labels, summary = add_outputs()
        parts = [overlay, colors, shown, labels, summary]

        button.click(
            demo.segment,
            [image, vocabulary, class_text, topk, threshold],
            [result, *parts, region],
            api_name="segment",
            show_progress_on=overlay,
            concurrency_limit=MAX_AT_ONCE,
        )
        image.upload(demo.check_image, image, None, **quietly)
        vocabulary.input(lambda name: gr.update(visible=name == OWN_CLASSES), vocabulary, class_text, **quietly)
        threshold.release(demo.change_threshold, [result, threshold], parts, **quietly)
        shown.input(demo.show_classes, [result, shown], overlay, **quietly)
        overlay.select(demo.read_region, result, region, **quietly)
    return page


def add_inputs(examples: Sequence[Example]) -> tuple[Any, ...]:
    """Add the left column: image, vocabulary, class names, top-k, and examples of them."""
    image = gr.Image(
        label="Image", type="filepath", sources=["upload", "webcam", "clipboard"], height=240, elem_id="image"
    )
    # Gradio would open the file, whatever its format, and answer a bad one without a word of explanation.
    image.preprocess = lambda payload: payload and payload.path  # type: ignore
    if examples:
        offered = gr.Dataset(
            label="Examples",
            components=[gr.Image(type="filepath", visible=False)],
            samples=[[str(example.image)] for example in examples],
            type="index",
            elem_id="examples",
        )
    vocabulary = gr.Dropdown([OWN_CLASSES, *vocabulary_names()], value=OWN_CLASSES, label="Classes")
    class_text = gr.Textbox(
        "\n".join(examples[0].class_names if examples else EXAMPLE_CLASSES),
        label=f"One class a line, synonyms after a comma; at most {MAX_CLASS_NAMES:,} names",
        lines=4,
        max_lines=8,
        elem_id="classes",
    )
    topk = gr.Slider(
        0,
        MAX_TOPK,
        step=1,
        label="Early rejection (top-k)",
        info="Drops classes that are nowhere among the k best: faster with many classes. 0 keeps all.",
    )

    def take(index: int) -> tuple[Any, ...]:
        names = "\n".join(examples[index].class_names)
        return str(examples[index].image), OWN_CLASSES, gr.update(value=names, visible=True)

    if examples:
        offered.click(take, offered, [image, vocabulary, class_text], api_visibility="private", show_progress="minimal")
    return image, vocabulary, class_text, topk


def add_outputs() -> tuple[Any, ...]:
    """Add the right column: overlay, what a click tells, threshold, colours of the legend, legend, downloads."""
    overlay = gr.Image(
        show_label=False,  # it would cover a corner of the image
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id="overlay",
    )
    region = gr.HTML(CLICK_A_REGION, elem_id="region")
    info = "Pixels whose probability is lower get no class."
    threshold = gr.Slider(0, 1, step=0.01, label="Threshold", info=info, elem_id="threshold")
    colors = gr.HTML(elem_id="colors")
    info = "Number, name, share of the image, mean probability"
    label = "Classes found; untick to hide"
    shown = gr.CheckboxGroup([], label=label, info=info, show_select_all=True, elem_id="shown")
    with gr.Row():
        labels = gr.DownloadButton("Label map (PNG)", interactive=False, elem_id="labels")
        summary = gr.DownloadButton("Summary (JSON)", interactive=False, elem_id="summary")
    return overlay, region, threshold, colors, shown, labels, summary
