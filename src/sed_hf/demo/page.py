"""The page of the demo: its parts, and what happens when a visitor uses them."""

import logging
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from .. import SEDForSemanticSegmentation, SEDProcessor
from ..data.vocabularies import vocabulary_names
from ..inference.class_embeddings import ClassEmbeddingCache, encode_classes
from ..inference.segmenter import Segmenter
from ..processing_sed import SYNONYM_SEPARATOR
from ..visualization import class_colors
from .inputs import (
    MAX_CLASS_NAMES,
    MAX_UPLOAD_MEGABYTES,
    OWN_CLASSES,
    InputError,
    max_upload_pixels,
    read_class_names,
    read_upload,
)
from .results import Result, Results

logger = logging.getLogger(__name__)

CACHED_CLASS_LISTS = 4
MAX_TOPK = 32
SECONDS_BETWEEN_CLEANUPS = 60
SECONDS_FILES_ARE_KEPT = 3600

TITLE = "SED: open-vocabulary semantic segmentation"
EXAMPLE_CLASSES = ["sky", "tree", "grass", "dog, puppy", "person"]
CLICK_A_REGION = "Click a region to read its class and probability."
RESULT_IS_GONE = "This result is no longer kept here. Please press Segment again."
OUT_OF_MEMORY = (
    "There is not enough memory for this picture with so many classes. Please take fewer classes, or early rejection."
)
FAILED = "Something went wrong on the server, whose log says what. Please try another picture or other classes."

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


@dataclass(frozen=True)
class Example:
    """A picture that the page offers, and the class names to go with it."""

    picture: Path
    class_names: Sequence[str]


class Demo:
    """What the page's controls do. Every method takes and returns the values of controls.

    Args:
        model: In evaluation mode, on the device where it is to run.
        processor: Its processor.
        model_name: For the page and the summaries.
    """

    def __init__(self, model: SEDForSemanticSegmentation, processor: SEDProcessor, model_name: str) -> None:
        self.model = model
        self.processor = processor
        self.model_name = model_name
        self.results = Results()
        self.class_embeddings = lru_cache(maxsize=CACHED_CLASS_LISTS)(self._encode)
        # Gradio would call from ever other threads, for each of which torch and malloc set memory of its own aside.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="segment")

    def segment(
        self, path: str | None, vocabulary: str, class_text: str, topk: int, threshold: float, last_key: str | None
    ) -> tuple:
        """Segment the uploaded picture, and show the result."""
        if path is None:
            raise refusal("Please drop a picture first.")
        try:
            class_names = read_class_names(class_text, vocabulary)
            result = self._worker.submit(self._segment, Path(path), class_names, int(topk)).result()
        except InputError as error:
            raise refusal(str(error)) from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            logger.exception("out of memory")
            raise refusal(OUT_OF_MEMORY) from error
        except Exception as error:  # whatever it is, the visitor is told in a sentence
            logger.exception("segmenting failed")
            raise refusal(FAILED) from error
        if len(class_names) == 1 and SYNONYM_SEPARATOR in class_names[0]:
            gr.Info("That is one class with several synonyms. For several classes, type each on a line of its own.")
        self.results.remove(last_key)
        return self.results.add(result), *self._show(result, threshold, result.listed), CLICK_A_REGION

    def change_threshold(self, key: str | None, threshold: float, shown: list[int]) -> tuple:
        """Show the same result with another threshold."""
        if key is None:  # the threshold of the first picture
            return tuple(gr.skip() for _ in range(5))
        return self._show(self._result(key), threshold, shown)

    def show_classes(self, key: str | None, threshold: float, shown: list[int]) -> str:
        """Show these classes of the same result, and hide the others."""
        result = self._result(key)
        return str(result.write_overlay(threshold, set(result.listed) - set(shown), new_folder()))

    def read_region(self, key: str | None, threshold: float, event: gr.SelectData) -> str:
        """Say what there is where the overlay was clicked."""
        result = self._result(key)
        x, y = event.index  # pixels of the overlay
        region = result.region_at(x / result.view.width, y / result.view.height, threshold)
        name = f"<b>{escape(region.class_name)}</b>"
        if region.statistics is None:
            return f"No class here: the best one, {name}, has a probability of only {region.probability:.2f}."
        mean, share = region.statistics.mean_probability, region.statistics.share
        return (
            f"{name}: probability {region.probability:.2f} here and {mean:.2f} on average, {share:.1%} of the picture."
        )

    def check_picture(self, path: str | None) -> None:
        """Tell at once what is wrong with an uploaded picture."""
        if path is None:
            return
        try:
            read_upload(Path(path), self.processor)
        except InputError as error:
            raise refusal(str(error)) from error

    def _segment(self, path: Path, class_names: list[str], topk: int) -> Result:
        picture = read_upload(path, self.processor)
        class_embeddings = self.class_embeddings(tuple(class_names))
        [maps] = Segmenter(self.model, self.processor, class_names, class_embeddings, topk=topk)([picture])
        return Result(path.name, picture, maps["segmentation"], maps["probability"], class_names, self.model_name)

    def _encode(self, class_names: tuple[str, ...]) -> torch.Tensor:
        return encode_classes(self.model, self.processor, class_names, ClassEmbeddingCache(), show_progress=False)

    def _result(self, key: str | None) -> Result:
        result = self.results.get(key)
        if result is None:
            raise refusal(RESULT_IS_GONE)
        return result

    def _show(self, result: Result, threshold: float, shown: Sequence[int]) -> tuple:
        """Overlay, colours of the legend, legend, label map and summary."""
        folder = new_folder()
        overlay = result.write_overlay(threshold, set(result.listed) - set(shown), folder)
        labels, summary = result.write_downloads(threshold, folder)
        choices = legend_choices(result, threshold)
        return (
            str(overlay),
            legend_colors(result),
            gr.update(choices=choices, value=list(shown)),
            gr.update(value=str(labels), interactive=True),
            gr.update(value=str(summary), interactive=True),
        )


def new_folder() -> Path:
    """A folder of which Gradio removes the files after a while."""
    folder = Path(gr.utils.get_upload_folder(), uuid.uuid4().hex)
    folder.mkdir(parents=True)
    return folder


def refusal(message: str) -> gr.Error:
    """An error for the page, which takes it for HTML."""
    return gr.Error(escape(message, quote=False), print_exception=False)


def legend_choices(result: Result, threshold: float) -> list[tuple[str, int]]:
    """For each listed class the line in the legend, and its index: number, first synonym, share, mean probability."""
    statistics = {entry.index: entry for entry in result.statistics(threshold)}
    choices = []
    for number, index in enumerate(result.listed, start=1):
        name = result.class_names[index].split(SYNONYM_SEPARATOR)[0]
        entry = statistics.get(index)
        values = "0%" if entry is None else f"{entry.share:.1%} · {entry.mean_probability:.2f}"
        choices.append((f"{number}  {name} · {values}", index))
    return choices


def legend_colors(result: Result) -> str:
    """A style sheet that gives each line of the legend the colour of its class."""
    colors = class_colors(result.class_names)[result.listed].tolist()
    rules = [
        f"#shown label:has(input[name='{index}']) {{--class-color: rgb({red} {green} {blue})}}"
        for index, (red, green, blue) in zip(result.listed, colors, strict=True)
    ]
    return f"<style>{' '.join(rules)}</style>"


def build_demo(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    model_name: str,
    examples: Sequence[Example] = (),
) -> gr.Blocks:
    """Build the page; [`serve`] serves it.

    Args:
        model: The model, in evaluation mode, on the device where it is to run.
        processor: Its processor.
        model_name: How page and summaries call it.
        examples: Pictures to offer, with their class names; those of the first are typed in at the beginning.
    """
    demo = Demo(model, processor, model_name)
    class_names = examples[0].class_names if examples else EXAMPLE_CLASSES
    with gr.Blocks(
        title="SED",
        analytics_enabled=False,
        delete_cache=(SECONDS_BETWEEN_CLEANUPS, SECONDS_FILES_ARE_KEPT),
    ) as page:
        key = gr.State(None)
        gr.Markdown(
            f"# {TITLE}\nDrop a picture of at most {MAX_UPLOAD_MEGABYTES} MB and {max_upload_pixels() / 1e6:g}"
            f" megapixels, name classes, press **Segment**. Model: {model_name}."
        )
        with gr.Row():
            with gr.Column(min_width=320):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    height=320,
                    elem_id="picture",
                )
                # Gradio would open the file, whatever it is, and answer a bad one without a word of explanation.
                picture.preprocess = uploaded_path  # type: ignore[method-assign]
                if examples:
                    offered = gr.Dataset(
                        label="Examples",
                        elem_id="examples",
                        components=[gr.Image(type="filepath", visible=False)],
                        samples=[[str(example.picture)] for example in examples],
                        type="index",
                    )
                vocabulary = gr.Dropdown(
                    [OWN_CLASSES, *vocabulary_names()], value=OWN_CLASSES, label="Classes", elem_id="vocabulary"
                )
                class_text = gr.Textbox(
                    "\n".join(class_names),
                    label=f"One class a line, synonyms after a comma; at most {MAX_CLASS_NAMES:,} names",
                    lines=6,
                    max_lines=12,
                    elem_id="classes",
                )
                topk = gr.Slider(
                    0,
                    MAX_TOPK,
                    value=0,
                    step=1,
                    label="Early rejection (top-k)",
                    info="Drops classes that are nowhere among the k best: faster with many classes. 0 keeps all.",
                )
                button = gr.Button("Segment", variant="primary", elem_id="segment")
            with gr.Column(min_width=320):
                overlay = gr.Image(
                    label="Segmentation",
                    show_label=False,  # it would cover a corner of the picture
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="overlay",
                )
                region = gr.HTML(CLICK_A_REGION, elem_id="region")
                threshold = gr.Slider(
                    0,
                    1,
                    value=0,
                    step=0.01,
                    label="Threshold",
                    info="Pixels whose probability is lower get no class.",
                    elem_id="threshold",
                )
                colors = gr.HTML(elem_id="colors")
                shown = gr.CheckboxGroup(
                    [],
                    label="Classes found; untick to hide",
                    info="Number, name, share of the picture, mean probability",
                    show_select_all=True,
                    elem_id="shown",
                )
                with gr.Row():
                    labels_button = gr.DownloadButton("Label map (PNG)", interactive=False, elem_id="labels")
                    summary_button = gr.DownloadButton("Summary (JSON)", interactive=False, elem_id="summary")

        result_parts = [overlay, colors, shown, labels_button, summary_button]
        button.click(
            demo.segment,
            [picture, vocabulary, class_text, topk, threshold, key],
            [key, *result_parts, region],
            api_name="segment",
            show_progress_on=overlay,
        )
        listen: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        picture.upload(demo.check_picture, picture, None, **listen)
        threshold.release(demo.change_threshold, [key, threshold, shown], result_parts, **listen)
        shown.input(demo.show_classes, [key, threshold, shown], overlay, **listen)
        overlay.select(demo.read_region, [key, threshold], region, **listen)
        vocabulary.input(typed_classes_are_used, vocabulary, class_text, **listen)
        if examples:
            offered.click(take_example(examples), offered, [picture, vocabulary, class_text], **listen)
    return page


def uploaded_path(payload: object) -> str | None:
    """The path of an uploaded file, which Gradio has checked to be one."""
    return getattr(payload, "path", None)


def typed_classes_are_used(vocabulary: str) -> object:
    """Show the text box where it counts."""
    return gr.update(visible=vocabulary == OWN_CLASSES)


def take_example(examples: Sequence[Example]) -> Callable[[int], tuple]:
    """What a click on one of the examples puts into the page."""

    def take(index: int) -> tuple:
        example = examples[index]
        return str(example.picture), OWN_CLASSES, gr.update(value="\n".join(example.class_names), visible=True)

    return take
