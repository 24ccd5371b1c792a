"""A demo in the browser: drop an image, name classes, see and download the segmentation. Needs the extra `demo`."""

from .server import serve_demo

__all__ = ["serve_demo"]
