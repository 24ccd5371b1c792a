"""The demo's server: limits, folders of its own, and nothing from the internet."""

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from PIL import Image

from ..data.scenes import render_scene, scene_vocabulary
from ..hub.load import load
from .inputs import MAX_UPLOAD_MEGABYTES
from .page import CSS, Example, build_demo

MAX_WAITING_REQUESTS = 64
MAX_SESSIONS = 200  # Gradio remembers this many visitors
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
    """Load a model and serve the demo with it until the process is interrupted.

    Args:
        source: Model folder or name on the Hub; by default the bundled toy model, with its scenes as examples.
        device: "auto" or a torch device.
        dtype: Name of a torch dtype.
        host, port, root_path, share: As of [`serve`].
    """
    model, processor = load(source, device, dtype)

    def build(folder: Path) -> gr.Blocks:
        if source is None:
            return build_demo(model, processor, "the bundled toy model", example_scenes(folder))
        # Only the name of a folder: visitors need not know where it lies.
        name = Path(source).resolve().name if Path(source).exists() else source
        return build_demo(model, processor, name)

    serve(build, host=host, port=port, root_path=root_path, share=share)


def serve(
    build: Callable[[Path], gr.Blocks],
    *,
    host: str | None = None,
    port: int | None = None,
    root_path: str | None = None,
    share: bool = False,
) -> None:
    """Serve a page until the process is interrupted or terminated.

    Args:
        build: Builds the page; it is given a folder for files that the page offers, which ends with the server. They
            are served as copies, which Gradio renews when it has removed them for their age.
        host: Address to listen at; 127.0.0.1 by default, or the environment variable `GRADIO_SERVER_NAME`.
        port: By default the first free one from 7860, or the environment variable `GRADIO_SERVER_PORT`.
        root_path: Path under which a reverse proxy shows the server.
        share: Also make a public link through Gradio's servers.

    Raises:
        OSError: The port is taken.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed then, too
    with tempfile.TemporaryDirectory(prefix="sed-hf-demo-", ignore_cleanup_errors=True) as folder:
        # Gradio's own default is a folder that all its apps share, and all serve.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "served"))
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(Path(folder, "served", "examples"))
        page = build(Path(folder))
        page.queue(max_size=MAX_WAITING_REQUESTS, default_concurrency_limit=1)
        page.launch(
            server_name=host,
            server_port=port,
            root_path=root_path,
            share=share,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            max_file_size=MAX_UPLOAD_MEGABYTES * 2**20,
            state_session_capacity=MAX_SESSIONS,
            allowed_paths=[],
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            footer_links=["gradio"],
        )


def example_scenes(folder: Path) -> list[Example]:
    """The generated scenes of the examples/ folder, for the model in the box, as files in a folder."""
    class_names = scene_vocabulary()
    examples = []
    for name, index in EXAMPLE_SCENES.items():
        pixels, labels = render_scene(7, index, "test")
        path = folder / f"{name}.png"
        Image.fromarray(pixels).save(path)
        present = sorted(set(labels.flatten().tolist()))
        examples.append(Example(path, [class_names[class_index].split(", ")[0] for class_index in present]))
    return examples
