"""A demo in the browser: upload a picture, name classes, see the segmentation. Needs the extra `demo`."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from . import SEDForSemanticSegmentation, SEDProcessor
from .class_embeddings import ClassEmbeddingCache, encode_classes
from .data.vocabularies import load_vocabulary, vocabulary_names
from .processing_sed import validate_class_names
from .segmentation import segment_pictures
from .visualization import class_statistics, draw_overlay

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("the demo needs gradio: pip install '.[demo]' in the clone of sed-hf") from error

OWN_CLASSES = "the classes above"
TABLE_HEADERS = ["", "class", "share of the picture", "mean probability"]
CACHED_CLASS_LISTS = 8


def build_demo(model: SEDForSemanticSegmentation, processor: SEDProcessor) -> gr.Blocks:
    """Build the app; its `launch()` serves it.

    Args:
        model: The model, in evaluation mode, on the device that it is to run on.
        processor: Its processor.

    Raises:
        ImportError: gradio is not installed (on import of this module).
    """

    @lru_cache(maxsize=CACHED_CLASS_LISTS)
    def cached_class_embeddings(class_names: tuple[str, ...]) -> torch.Tensor:
        return encode_classes(model, processor, class_names, ClassEmbeddingCache())

    def segment(
        picture: Image.Image | None, class_text: str, vocabulary: str, topk: int
    ) -> tuple[Image.Image, list[list[str]]]:
        if picture is None:
            raise gr.Error("Upload a picture first.")
        try:
            class_names = validate_class_names(
                [line for line in class_text.splitlines() if line.strip()]
                if vocabulary == OWN_CLASSES
                else load_vocabulary(vocabulary)
            )
        except ValueError as error:
            raise gr.Error(str(error)) from error
        pixels = processor.image_processor.to_rgb(picture)
        picture = Image.fromarray(np.moveaxis(pixels.numpy(), 0, -1))
        class_embeddings = cached_class_embeddings(tuple(class_names))
        result = segment_pictures(model, processor, [picture], class_embeddings, topk=topk)[0]
        statistics = class_statistics(result["segmentation"], class_names, probability=result["probability"])
        table = [
            [str(number), entry.name, f"{entry.share:.1%}", f"{entry.mean_probability:.2f}"]
            for number, entry in enumerate(statistics, start=1)
        ]
        return draw_overlay(picture, result["segmentation"], class_names), table

    with gr.Blocks(title="SED") as demo:
        gr.Markdown("# SED: open-vocabulary semantic segmentation")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(type="pil", image_mode=None, label="Picture")
                class_text = gr.Textbox(
                    "sky\ngrass\ndog, puppy", lines=6, label="Classes, one a line; synonyms by comma"
                )
                vocabulary = gr.Dropdown([OWN_CLASSES, *vocabulary_names()], value=OWN_CLASSES, label="Vocabulary")
                topk = gr.Slider(0, 32, value=8, step=1, label="Early rejection: classes kept a pixel (0: all, slower)")
                button = gr.Button("Segment", variant="primary")
            with gr.Column():
                overlay = gr.Image(label="Segmentation", format="png", interactive=False)
                table = gr.Dataframe(headers=TABLE_HEADERS, label="Classes", interactive=False)
        button.click(segment, [picture, class_text, vocabulary, topk], [overlay, table], api_name="segment")
    return demo
