"""A demo in the browser: drop an image, name classes, see and download the segmentation. Needs the extra `demo`."""

try:
    import gradio  # noqa: F401
except ImportError as error:
    raise ImportError("the demo needs gradio: pip install '.[demo]' in the clone of sed-hf") from error

from .server import serve_demo

__all__ = ["serve_demo"]
