"""Every command and every piece of Python in the README and in docs/ runs, and so does every notebook.

Each page is followed from top to bottom in a folder of its own, in which the files that it presumes are there:
checkpoints, photos, data sets. They are small, and so is the model: `sed-base` is the tiny one. What would take hours
is cut short by arguments that the test adds (`SHORTENED`); what needs the network is replaced, or only checked.
"""

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import yaml
from clips import write_clip
from conftest import EXPORTED_NAMES, make_tiny_config, official_weights
from demo_server import running_space
from nbclient import NotebookClient
from PIL import Image
from raw_copies import STEMS, WRITERS, write_coco_stuff, write_own_data

from sed_hf import SEDForSemanticSegmentation, cli, conversion
from sed_hf.cli.main import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORTENED = {
    "train.py": "--steps 1 --images_per_step 1 --crop_size 64 --num_workers 0 --mixed_precision no"
    " --classes_per_step 5 --gradient_accumulation_steps 1",
    "evaluate.py": "--limit 1",
    "benchmark.py": "--models sed-base --classes 2 --sizes 64 --repeats 1 --decoders fast",
}
NOT_RUN = ("python3 -m venv", ". activate", "python -m pytest", "hf upload")


@pytest.fixture
def workplace(
    tmp_path: Path, tiny_hub_folder: Path, tiny_weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder with all that the pages presume; afterwards the environment is as before."""
    for name in ("configs", "docs", "examples", "mkdocs.yml", "scripts", "src", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("sed-large", "sed-base"):
        shutil.copytree(tiny_hub_folder, tmp_path / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "huggingface"))
    for name in ("sed-b", "sed-l"):
        shutil.copytree(tiny_hub_folder, tmp_path / "huggingface/sed_hf/official" / name)
    torch.save({"model": tiny_weights}, tmp_path / "model_final.pth")
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "a.jpg", "b.jpg", "photos/one.jpg", "photos/two.png", "aerial.jpg"):
        Image.effect_noise((80, 60), 99).convert("RGB").save(tmp_path / name)
    (tmp_path / "my-classes.txt").write_text("sky\ngrass\ndog, puppy\n")
    write_clip(tmp_path / "clip.mp4", range(4))
    # Each benchmark, with an image or two, and data of one's own.
    ids, data = np.arange(1, 65).reshape(8, 8) % 20 + 1, tmp_path / "data"
    for name, write in WRITERS.items():
        write(data, {STEMS[name][0]: ids})
    write_coco_stuff(data, {f"{number:012}": ids for number in range(2, 6)}, "train")
    labels = {"kitchen": np.arange(64 * 64).reshape(64, 64) % 3}
    write_own_data(tmp_path / "my_data", labels, ["wall", "floor", "table"])
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Official checkpoints and the CLIP weights of open_clip are those of the tiny model."""

    def from_open_clip(variant: str, pretrained: str | None = None) -> SEDForSemanticSegmentation:
        return conversion.convert_official_checkpoint(official_weights("tiny", seed=0), make_tiny_config())

    monkeypatch.setattr(conversion, "recognise_variant", lambda official: make_tiny_config())
    monkeypatch.setattr(conversion, "from_open_clip", from_open_clip)
    monkeypatch.setattr("sed_hf.training.loop.from_open_clip", from_open_clip)


class Page:
    """Runs the blocks of a page, one after the other."""

    def __init__(self, workplace: Path, servers: contextlib.ExitStack, request: pytest.FixtureRequest) -> None:
        self.workplace = workplace
        self.servers = servers  # that commands of the page start
        self.request = request
        self.address = "http://127.0.0.1:7860"
        self.namespace: dict[str, Any] = {"__name__": "page"}

    def run(self, language: str, code: str) -> None:
        """Run one block."""
        code = re.sub(r"(?<![\w/])/data\b", str(self.workplace / "data"), code)
        code = code.replace(" DATA", " data").replace("http://127.0.0.1:7860", self.address)
        if language == "bash":
            for line in re.split("\n|&&", code.replace("\\\n", " ")):
                words = [word.removeprefix(".venv/bin/") for word in shlex.split(line, comments=True)]
                if words and not shlex.join(words).startswith(NOT_RUN):
                    self.run_command(*words)
        elif language == "python":
            program = compile(code, "page", "exec")
            if "hf://" not in code:  # a data set of the user's on the Hub
                exec(program, self.namespace)
        elif language == "yaml":  # a file, whose name is the first line's comment
            assert isinstance(yaml.safe_load(code), dict)
            (self.workplace / code.splitlines()[0].removeprefix("# ")).write_text(code)
        elif language == "json":
            json.loads(code)
        else:
            assert language in ("bibtex", "nginx")

    def run_command(self, program: str, *arguments: str) -> None:
        """Run one shell command in this process; models that are there already are replaced."""
        if program == "sed-hf":
            self.run_sed_hf(*arguments)
        elif program == "accelerate":  # on this process only
            start = next(index for index, word in enumerate(arguments) if word.endswith(".py"))
            assert all(Path(word).is_file() for word in arguments[2:start])
            self.run_script(*arguments[start:])
        elif program == "python":
            self.run_script(*arguments)
        elif program == "mkdocs":
            import mkdocs.__main__

            mkdocs.__main__.cli(arguments, standalone_mode=False)
            assert Path("outputs/site/api/index.html").is_file()
        else:
            assert program == "pip", f"{program}: this test does not know how to run it"
            extras = re.fullmatch(r"install \.(?:\[(\w+)\])?", " ".join(arguments))
            assert extras, arguments
            assert f"\n{extras[1] or 'test'} =\n" in (ROOT / "setup.cfg").read_text()

    def run_sed_hf(self, command: str, *arguments: str) -> None:
        """`sed-hf`; the demo as a Space, and exports of which one is enough."""
        if command == "demo":
            folder = Path(tempfile.mkdtemp(dir=self.workplace))
            self.address = self.servers.enter_context(running_space(folder)).address
        elif command == "export":
            parsed = build_parser().parse_args([command, *arguments])
            assert parsed.classes in (None, EXPORTED_NAMES)
            shutil.copytree(self.request.getfixturevalue(f"{parsed.format}_folder"), parsed.out)
        else:
            overwrite = ["--overwrite"] if command in ("convert", "init") else []
            try:
                status: Any = cli.main([command, *arguments, *overwrite])
            except SystemExit as end:  # of --help, for one
                status = end.code
            assert status == 0, (command, *arguments)

    def run_script(self, script: str, *arguments: str) -> None:
        """A script as Python runs it, cut short."""
        words = [*arguments, *shlex.split(SHORTENED.get(Path(script).name, ""))]
        if "configs/scenes_" in " ".join(words):
            words += ["--min_classes_per_step", "2"]
        # A page may show several ways to start the same run.
        shutil.rmtree("outputs/sed_convnext_base", ignore_errors=True)
        path, argv = sys.path[:], sys.argv[:]
        sys.path.insert(0, str((ROOT / script).parent))
        sys.argv = [script, *words]
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{script} {shlex.join(words)}: {end.code}")
        finally:
            sys.path[:], sys.argv = path, argv


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_block_runs(page: Path, workplace: Path, request: pytest.FixtureRequest) -> None:
    with contextlib.ExitStack() as servers:
        follower = Page(workplace, servers, request)
        for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
            follower.run(language, code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_holds_no_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()


def test_every_link_of_the_readme_leads_somewhere() -> None:  # mkdocs looks at those of docs/
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
