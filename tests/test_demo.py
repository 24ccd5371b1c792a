from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.data.vocabularies import load_vocabulary

gradio = pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def segment(tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor) -> Callable:
    """What the demo's button calls."""
    from sed_hf.demo import build_demo

    demo = build_demo(tiny_model, tiny_processor)
    [function] = [function.fn for function in demo.fns.values() if function.api_name == "segment"]
    assert function is not None
    return function


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


@pytest.mark.parametrize("topk", [0, 1])
def test_demo_returns_an_overlay_and_a_table_of_the_classes(segment: Callable, photo: Image.Image, topk: int) -> None:
    overlay, table = segment(photo, "sky\n\ndog, puppy\n", "the classes above", topk)
    assert overlay.width >= photo.width
    assert {row[1] for row in table} <= {"sky", "dog, puppy"}


def test_demo_takes_a_built_in_vocabulary(segment: Callable, photo: Image.Image) -> None:
    _, table = segment(photo, "", "pascal_voc_20", 1)
    assert {row[1] for row in table} <= set(load_vocabulary("pascal_voc_20"))


def test_demo_asks_for_a_picture(segment: Callable) -> None:
    with pytest.raises(gradio.Error, match="Upload a picture first"):
        segment(None, "sky", "the classes above", 0)


@pytest.mark.parametrize(("text", "message"), [("", "at least one class name"), ("sky\nsky", "same class name")])
def test_demo_says_what_is_wrong_with_the_classes(
    segment: Callable, photo: Image.Image, text: str, message: str
) -> None:
    with pytest.raises(gradio.Error, match=message):
        segment(photo, text, "the classes above", 0)
