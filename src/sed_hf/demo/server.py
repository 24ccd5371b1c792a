"""The demo's server: limits, a folder of its own, and nothing from the internet."""

import os
import re
import signal
import tempfile
from collections import Counter
from pathlib import Path

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..data.scenes import render_scene, scene_vocabulary
from ..hub.load import load
from ..visualization import first_synonym
from .guard import MAX_UPLOAD_BYTES, Guard, UploadFolder
from .page import OWN_CLASSES, Demo, build_page

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
        root_path: Path under which a reverse proxy shows the server.
        share: Also make a public link through Gradio's servers.
    """
    model, processor = load(source, device, dtype)
    # Only the name of a folder: visitors need not know where it lies.
    known_as = Path(source).resolve().name if source and Path(source).exists() else source
    model.name_or_path = known_as or "the bundled toy model"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed then, too
    with tempfile.TemporaryDirectory(prefix="sed-hf-demo-", ignore_cleanup_errors=True) as folder:
        files, listeners = UploadFolder(Path(folder, "served")), Counter[str]()
        # Gradio's own default is a folder that all its apps share, and all serve.
        os.environ["GRADIO_TEMP_DIR"] = str(files.path)
        examples = [] if source else example_scenes(Path(folder))
        page = build_page(Demo(model, processor, files, listeners), examples)
        files.kept = {str(path) for path in files.path.rglob("*")}  # copies of the examples, which Gradio has made
        page.queue(max_size=MAX_WAITING_REQUESTS, default_concurrency_limit=1, api_open=False)
        trusted = Middleware(TrustedHostMiddleware, allowed_hosts=trusted_hosts(host, share))
        page.launch(
            server_name=host,
            server_port=port,
            root_path=root_path,
            share=share,
            app_kwargs={"middleware": [trusted, Middleware(Guard, files=files, listeners=listeners)]},
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=Path(__file__).with_name("page.css"),
            js=Path(__file__).with_name("page.js").read_text(),
            max_file_size=MAX_UPLOAD_BYTES,
            state_session_capacity=MAX_SESSIONS,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            footer_links=["gradio"],
        )


def trusted_hosts(host: str | None, share: bool) -> list[str]:
    """The names by which a server is called: on loopback its own, as other websites could use it by another."""
    host = host or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    if not re.fullmatch(r"localhost|127(\.\d+){3}|::1", host):
        return ["*"]
    return [*LOOPBACK_HOSTS, host, *([SHARE_HOST] if share else [])]


def example_scenes(folder: Path) -> list[list[str]]:
    """The generated scenes of the examples/ folder, for the bundled toy model: image, vocabulary, class names."""
    class_names = [first_synonym(name) for name in scene_vocabulary()]
    examples = []
    for name, index in EXAMPLE_SCENES.items():
        pixels, labels = render_scene(7, index, "test")
        Image.fromarray(pixels).save(folder / f"{name}.png")
        present = [class_names[index] for index in sorted(set(labels.flatten().tolist()))]
        examples.append([str(folder / f"{name}.png"), OWN_CLASSES, "\n".join(present)])
    return examples
