"""`sed-hf demo`: open a demo in the browser."""

import argparse
from importlib.util import find_spec

from ..argument_types import port_number
from .arguments import add_command, add_model_arguments, choose_model

EPILOG = """\
examples:
  sed-hf demo
  sed-hf demo --model sed-base --port 8000
  sed-hf demo --model sed-base --host 0.0.0.0
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "demo",
        run,
        help="open a demo in the browser",
        description="Open a demo in the browser: upload an image, type class names, see the result.",
        epilog=EPILOG,
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help="address to listen at; 0.0.0.0 lets other computers in (default: 127.0.0.1, only this computer)",
    )
    parser.add_argument("--port", type=port_number, metavar="N", help="port (default: the first free from 7860)")
    parser.add_argument("--root-path", metavar="PATH", help="path under which a reverse proxy shows the demo")
    parser.add_argument("--share", action="store_true", help="also make a public link through gradio's servers")


def run(arguments: argparse.Namespace) -> int:
    """Serve the demo until it is interrupted."""
    choose_model(arguments.model)
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
