"""Every command and every piece of Python in the README and in docs/ runs.

Each page is followed from top to bottom in a folder of its own, in which the files that it presumes are there:
checkpoints, photos, data sets. They are small, and so is the model: `sed-base` is the tiny one. What would take hours
is cut short by arguments that the test adds (`SHORTENED`); what needs the network is replaced, or only checked.
"""

import configparser
import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import open_clip
import pdoc.__main__
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import EXPORTED_NAMES, make_tiny_config, official_weights
from demo_server import make_space, running_space
from PIL import Image
from raw_copies import (
    write_ade20k_150,
    write_ade20k_847,
    write_coco_stuff,
    write_own_data,
    write_pascal_context_59,
    write_pascal_context_459,
    write_pascal_voc,
)

from sed_hf import SEDForSemanticSegmentation, cli, conversion
from sed_hf.cli.main import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORTENED = {
    "train.py": "--steps 1 --images_per_step 1 --crop_size 64 --num_workers 0 --mixed_precision no"
    " --classes_per_step 5 --gradient_accumulation_steps 1",
    "evaluate.py": "--limit 1",
    "benchmark.py": "--models sed-base --classes 2 --sizes 64 --repeats 1 --decoders fast",
}
SCENE_RECIPES = "--min_classes_per_step 2"


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """Language and code of each block of a page that names its language."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(code: str) -> list[list[str]]:
    """The commands of a block, each as arguments, with those of a line joined by `&&` apart."""
    lines = code.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split("&&")]
    return [words for words in (shlex.split(part, comments=True) for part in parts) if words]


@pytest.fixture
def workplace(
    tmp_path: Path, tiny_hub_folder: Path, tiny_weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with all that the pages presume."""
    for name in ("configs", "docs", "examples", "scripts", "src", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("sed-large", "sed-base"):
        shutil.copytree(tiny_hub_folder, tmp_path / name)
    torch.save({"model": tiny_weights}, tmp_path / "model_final.pth")
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for name in ("photo.jpg", "a.jpg", "b.jpg", "photos/one.jpg", "photos/two.png", "aerial.jpg"):
        pixels = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(tmp_path / name)
    (tmp_path / "my-classes.txt").write_text("sky\ngrass\ndog, puppy\n")
    write_video(tmp_path / "clip.mp4")
    write_data(tmp_path / "data")
    labels = {"kitchen": np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 3}
    write_own_data(tmp_path / "my_data", labels, ["wall", "floor", "table"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_video(path: Path) -> None:
    """A few grey frames."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 80, 60
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((60, 80, 3), 40 * number, dtype=np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_data(folder: Path) -> None:
    """Each benchmark with an image or two."""
    ids = np.arange(1, 65).reshape(8, 8) % 20 + 1
    write_coco_stuff(folder, {"000000000001": ids})
    write_coco_stuff(folder, {f"{number:012}": ids for number in range(2, 6)}, "train")
    write_ade20k_150(folder, {"ADE_val_00000001": ids})
    write_ade20k_847(folder, {"ADE_val_00000001": ids})
    write_pascal_context_59(folder, {"2008_000002": ids})
    write_pascal_context_459(folder, {"2008_000002": ids})
    write_pascal_voc(folder, {"2007_000033": ids})


@pytest.fixture(autouse=True)
def _without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Official checkpoints and the CLIP weights of open_clip are those of the tiny model."""

    def from_open_clip(variant: str, pretrained: str | None = None) -> SEDForSemanticSegmentation:
        assert pretrained is None or (variant, pretrained) in open_clip.list_pretrained()
        return conversion.convert_official_checkpoint(official_weights("tiny", seed=0), make_tiny_config())

    monkeypatch.setattr(conversion, "recognise_variant", lambda official: make_tiny_config())
    monkeypatch.setattr(conversion, "from_open_clip", from_open_clip)
    monkeypatch.setattr("sed_hf.training.setup.from_open_clip", from_open_clip)


class Page:
    """Runs the blocks of a page, one after the other."""

    def __init__(self, workplace: Path, servers: contextlib.ExitStack, fixture: Callable[[str], Any]) -> None:
        self.workplace = workplace
        self.servers = servers  # that commands of the page start
        self.fixture = fixture
        self.address = "http://127.0.0.1:7860"
        self.namespace: dict[str, Any] = {"__name__": "page"}

    def run(self, language: str, code: str) -> None:
        """Run one block."""
        runners: dict[str, Callable[[str], None]] = {
            "bash": self.run_commands,
            "python": self.run_python,
            "yaml": self.write_yaml,
            "json": json.loads,
            "bibtex": lambda code: None,
            "nginx": lambda code: None,
        }
        data = str(self.workplace / "data")
        code = re.sub(r"(?<![\w/])/data\b", data, code).replace(" DATA", " data")
        runners[language](code.replace("http://127.0.0.1:7860", self.address))

    def run_python(self, code: str) -> None:
        """Run Python with the names of the blocks before."""
        if "hf://" in code:
            compile(code, "page", "exec")  # a data set of the user's on the Hub
            return
        exec(compile(code, "page", "exec"), self.namespace)

    def write_yaml(self, code: str) -> None:
        """A file, whose name is the first line's comment."""
        assert isinstance(yaml.safe_load(code), dict)
        (self.workplace / code.splitlines()[0].removeprefix("# ")).write_text(code)

    def run_commands(self, code: str) -> None:
        """Run shell commands, in this process."""
        for words in commands(code):
            self.run_command([word.removeprefix(".venv/bin/") for word in words])

    def run_command(self, words: list[str]) -> None:
        """Run one shell command."""
        program, *arguments = words
        if program == "sed-hf":
            self.run_sed_hf(arguments)
        elif program == "python" and arguments[0].endswith(".py"):
            self.run_script(*arguments)
        elif program == "accelerate":
            self.check_launch(arguments)
        elif program == "pdoc":
            pdoc.__main__.cli(arguments)
            assert Path("outputs/api/sed_hf/modeling_sed.html").is_file()
        elif program == "pip":
            check_extras(arguments)
        else:
            assert (program, arguments[:2]) in [
                ("python3", ["-m", "venv"]),
                ("python", ["-m", "pytest"]),  # which this is
                ("hf", ["upload", "YOU/sed-demo"]),
            ], f"{shlex.join(words)}: this test does not know how to run it"

    def run_sed_hf(self, arguments: list[str]) -> None:
        """`sed-hf`, which replaces the models that are there already."""
        if arguments[0] == "push":
            return  # the Hub: tests/test_hub.py
        if arguments[0] == "demo":
            space = make_space(self.workplace / "space-of-the-page")
            self.address, _ = self.servers.enter_context(running_space(space, self.workplace))
            return
        if arguments[0] == "export":  # once is enough
            parsed = build_parser().parse_args(arguments)
            assert parsed.classes in (None, EXPORTED_NAMES)
            shutil.copytree(self.fixture(f"{parsed.format}_folder"), parsed.out)
            return
        if arguments[0] in ("convert", "init"):
            arguments = [*arguments, "--overwrite"]
        with contextlib.suppress(SystemExit):
            assert cli.main(arguments) == 0, shlex.join(arguments)

    def check_launch(self, arguments: list[str]) -> None:
        """`accelerate launch`, on this process only; its configuration is read."""
        assert arguments[0] == "launch"
        if arguments[1] == "--config_file":
            assert load_config_from_file(arguments[2]).num_processes > 1
            del arguments[1:3]
        self.run_script(*arguments[1:])

    def run_script(self, script: str, *arguments: str) -> None:
        """A script as Python runs it, cut short."""
        words = [*arguments, *shlex.split(SHORTENED.get(Path(script).name, ""))]
        if "configs/scenes_" in " ".join(words):
            words += shlex.split(SCENE_RECIPES)
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


def check_extras(arguments: list[str]) -> None:
    """`pip install '.[extra,...]'` names extras that there are."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    assert arguments[0] == "install"
    extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", arguments[1])
    assert extras, shlex.join(arguments)
    if extras[1]:
        assert set(extras[1].split(",")) <= set(setup["options.extras_require"])


@pytest.fixture
def _environment() -> Iterator[None]:
    """The environment as it was: accelerate leaves variables."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_block_runs(page: Path, workplace: Path, request: pytest.FixtureRequest) -> None:
    with contextlib.ExitStack() as servers:
        follower = Page(workplace, servers, request.getfixturevalue)
        for language, code in code_blocks(page):
            follower.run(language, code)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    anchors = {
        target: {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings(target)}
        for target in PAGES
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors[target], link


def headings(page: Path) -> list[str]:
    """The headings of a page."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)
