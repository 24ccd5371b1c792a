"""Open a demo in the browser: upload an image, type class names, see the result.

Examples:
  sed-hf demo
  sed-hf demo --model sed-b --port 8000
  sed-hf demo --model sed-b --host 0.0.0.0
"""

import argparse
from importlib.util import find_spec

from ..terminal import number
from .arguments import DEVICE, MODEL, argument

ARGUMENTS = [
    *(MODEL, *DEVICE),
    argument("--host", metavar="ADDRESS", help="0.0.0.0 lets other computers in; by default 127.0.0.1, only this one"),
    argument("--port", type=number(int, 1, 65535), metavar="N", help="by default the first that is free from 7860"),
    argument("--root-path", metavar="PATH", help="path under which a reverse proxy shows the demo"),
    argument("--share", action="store_true", help="also make a public link through gradio's servers"),
]


def run(arguments: argparse.Namespace) -> int:
    """Serve the demo until it is interrupted."""
    if find_spec("gradio") is None:
        raise ValueError("the demo needs gradio: pip install '.[demo]' in the clone of sed-hf")

    from ..demo import serve_demo

    serve_demo(
        arguments.model,
        arguments.device,
        arguments.dtype,
        host=arguments.host,
        port=arguments.port,
        root_path=arguments.root_path,
        share=arguments.share,
    )
    return 0
