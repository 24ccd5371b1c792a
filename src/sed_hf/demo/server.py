"""The demo's server: limits, a folder of its own, and nothing from the internet."""

import os
import signal
import tempfile
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..data.scenes import render_scene, scene_vocabulary
from ..hub.load import load
from .guard import MAX_UPLOAD_BYTES, Guard, UploadFolder
from .page import CSS, Demo, Example, build_page

MAX_WAITING_REQUESTS = 32
MAX_SESSIONS = 64  # of which the latest results are kept
LOOPBACK_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
SHARE_HOST = "*.gradio.live"  # of public links
EXAMPLE_SCENES = {"scene-3": 9, "scene-1": 6, "scene-2": 4}  # files and numbers of the examples/ folder


def serve_demo(
    source: str | None,
    device: str = "auto",
    dtype: str = "float32",
    *,
    host: str | None = None,
    port: int | None = None,
    root_path: str | None = None,
    share: bool = False,
) -> None:
    """Load a model and serve the demo with it until the process is interrupted or terminated.

    Args:
        source: Model folder or name on the Hub; by default the bundled toy model, with its scenes as examples.
        device: "auto" or a torch device.
        dtype: Name of a torch dtype.
        host: Address to listen at; 127.0.0.1 by default, or the environment variable `GRADIO_SERVER_NAME`.
        port: By default the first free one from 7860, or the environment variable `GRADIO_SERVER_PORT`.
        root_path: Path under which a reverse proxy shows the server.
        share: Also make a public link through Gradio's servers.

    Raises:
        OSError: There is no such model, or the port is taken.
        ValueError: There is no such device, or the model is damaged.
    """
    model, processor = load(source, device, dtype)
    # Only the name of a folder: visitors need not know where it lies.
    name = Path(source).resolve().name if source and Path(source).exists() else source or "the bundled toy model"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed then, too
    with tempfile.TemporaryDirectory(prefix="sed-hf-demo-", ignore_cleanup_errors=True) as folder:
        files, listeners = UploadFolder(Path(folder, "served")), Counter[str]()
        # Gradio's own default is a folder that all its apps share, and all serve.
        os.environ["GRADIO_TEMP_DIR"] = str(files.path)
        examples = [] if source else example_scenes(Path(folder))
        page = build_page(Demo(model, processor, name, files, listeners), examples)
        files.keep()  # copies of the examples, which Gradio has made
        Thread(target=files.sweep_forever, daemon=True).start()
        page.queue(max_size=MAX_WAITING_REQUESTS, default_concurrency_limit=1, api_open=False)
        page.launch(
            server_name=host,
            server_port=port,
            root_path=root_path,
            share=share,
            app_kwargs={
                "middleware": [
                    Middleware(TrustedHostMiddleware, allowed_hosts=trusted_hosts(host, share)),
                    Middleware(Guard, files=files, listeners=listeners),
                ]
            },
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            max_file_size=MAX_UPLOAD_BYTES,
            state_session_capacity=MAX_SESSIONS,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            footer_links=["gradio"],
        )


def trusted_hosts(host: str | None, share: bool) -> list[str]:
    """The names by which a server at an address is called.

    At a loopback address only this computer's own: under a name of its own choice a page from elsewhere could otherwise
    have the visitor's browser use the server.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    try:
        is_loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name
        is_loopback = False
    return [*LOOPBACK_HOSTS, host, *([SHARE_HOST] if share else [])] if is_loopback else ["*"]


def example_scenes(folder: Path) -> list[Example]:
    """The generated scenes of the examples/ folder, for the bundled toy model, as files in a folder."""
    class_names = scene_vocabulary()
    examples = []
    for name, index in EXAMPLE_SCENES.items():
        pixels, labels = render_scene(7, index, "test")
        path = folder / f"{name}.png"
        Image.fromarray(pixels).save(path)
        present = sorted(set(labels.flatten().tolist()))
        examples.append(Example(path, [class_names[class_index].split(", ")[0] for class_index in present]))
    return examples
