"""Kill the commands at random moments, and see whether the next run puts everything right.

    python scripts/interrupt.py --output outputs/interrupt

Each of the commands segment, convert, prepare, train and evaluate runs undisturbed at first. Then it runs again and
again in a fresh folder, and is killed at a random moment by SIGINT, SIGTERM or SIGKILL: half of the moments are drawn
from the time that it takes, half right after it has made a new file. Checked is that

* it ends soon, with one line, with the status of the signal, and with all of its processes (not so of SIGKILL);
* a file under its final name is the one of the undisturbed run, and nothing temporary is left (not so of SIGKILL);
* the documented second command then ends with the results of the undisturbed run, bit by bit, and with nothing else.

Kills that `interrupt.json` in the output folder holds are not repeated, so that an interrupted sweep goes on. Most
commands run in a fork of a process that has imported their libraries, so that the moments fall into their work; every
fifth is the real program, most of whose time goes into the imports. Needs Linux, and the extras `train` and `video`.
"""

import argparse
import gc
import hashlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from sed_hf.files import written_at_once
from sed_hf.interruption import interruptible

SCRIPTS = Path(__file__).resolve().parent
TESTS = SCRIPTS.parent / "tests"
# Python searches a script's own folder first, where evaluate.py would hide the library `evaluate`.
sys.path.remove(str(SCRIPTS))

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
REAL_EVERY = 5  # one kill in so many is of the real program
MAX_SECONDS_TO_EXIT = 10.0  # a second on an idle machine, most of it Python's own end
MAX_SECONDS_OF_ORPHANS = 20.0  # of processes that find out by themselves that the one above them was killed
MAX_SECONDS_OF_A_RUN = 300.0
EMBEDDING_TOLERANCE = 1e-6
WRITTEN_BY_LIBRARIES = ("events.out.tfevents", "hparams.yml", ".lock")  # in part of their names: not compared


# Commands ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
        program: "sed-hf" or the name of a script.
        arguments: Of the first run, in the folder that [`write_inputs`] has filled.
        second: Further arguments of the run that follows.
        catalogue: Further arguments of a run that leaves all files that a killed one may have.
        old_output: Folder of the inputs that is at the place of the output, for every other kill.
    """

    program: str
    arguments: Sequence[str]
    second: Sequence[str] = ()
    catalogue: Sequence[str] = ()
    old_output: str | None = None

    def run(self, more: Sequence[str]) -> int:
        """Run in this process, and return the exit status."""
        if self.program == "sed-hf":
            from sed_hf.cli import main

            return main([*self.arguments, *more])
        sys.argv = [self.program, *self.arguments, *more]
        sys.path.insert(0, str(SCRIPTS))
        runpy.run_path(str(SCRIPTS / self.program), run_name="__main__")
        return 0

    def real(self, more: Sequence[str]) -> list[str]:
        """The command line of the real program."""
        code = "import sys; from sed_hf.cli import main; sys.exit(main())"  # what pip makes of the entry point
        program = ["-c", code] if self.program == "sed-hf" else [str(SCRIPTS / self.program)]
        return [sys.executable, *program, *self.arguments, *more]


CLASSES = ("sky", "sea", "rock", "sand", "boat")
EVALUATED = ("--benchmarks", "custom", "--data-dir", "own", "--num-workers", "1", "--save-predictions")
COMMANDS = {
    "segment": Command(
        "sed-hf",
        ("segment", "pictures", "--model", "model", "--device", "cpu", "--output", "out", "--classes", *CLASSES),
    ),
    "convert": Command(
        "sed-hf",
        ("convert", "official.pth", "out", "--config", "official.json", "--overwrite"),
        old_output="model",
    ),
    "prepare": Command(
        "prepare_dataset.py",
        ("ade20k_150", "--data-dir", "raw", "--output", "out"),
    ),
    "prepare in 2 processes": Command(
        "prepare_dataset.py",
        ("ade20k_150", "--data-dir", "raw", "--output", "out", "--num-proc", "2"),
    ),
    "train": Command(
        "train.py",
        ("--config", "recipe.yaml"),
        second=("--resume",),
        catalogue=("--keep_checkpoints", "100"),
    ),
    "evaluate": Command(
        "evaluate.py",
        ("--model", "model", *EVALUATED, "--output", "out"),
    ),
}
RECIPE = """
output_dir: out
model: model
dataset: scenes
num_workers: 1
shortest_edge: null
crop_size: 64
steps: 10
images_per_step: 2
classes_per_step: 10
learning_rate: 3.0e-3
log_every: 3
checkpoint_every: 2
evaluate_every: 8
evaluate_on: scenes
evaluate_images: 2
"""


def write_inputs(folder: Path) -> None:
    """Write small inputs of all commands: a seeded model, pictures, a video, a checkpoint, raw data and a recipe."""
    import numpy as np
    import torch
    from PIL import Image

    from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
    from sed_hf.conversion import build_clip_tokenizer
    from sed_hf.data.scenes import render_scene
    from sed_hf.hub import save_hub_folder

    sys.path[:0] = [str(TESTS), str(TESTS / "reference")]
    from raw_copies import write_ade20k_150, write_own_data
    from seeded_weights import seeded_state_dict

    torch.manual_seed(0)
    templates = ["{}", "a {}."]
    config = SEDConfig(
        projection_dim=16,
        prompt_templates=templates,
        vision_config={"model_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "ls_init_value": 0.5}},
        text_config={"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
        decoder_hidden_sizes=[16, 16, 16, 16],
        skip_guidance_sizes=[8, 8, 8],
        cost_guidance_sizes=[8, 8, 8],
    )
    image_processor = SEDImageProcessor(do_resize=False, input_size={"height": 64, "width": 64})
    processor = SEDProcessor(image_processor, build_clip_tokenizer(), templates)
    save_hub_folder(SEDForSemanticSegmentation(config), processor, folder / "model")

    (folder / "pictures").mkdir()
    for index in range(12):
        Image.fromarray(render_scene(0, index, "test")[0]).save(folder / "pictures" / f"{index:02d}.png")
    write_video(folder / "pictures" / "clip.mp4", [render_scene(1, index, "test")[0] for index in range(12)])

    shapes = json.loads((TESTS / "reference" / "state_dict_shapes.json").read_text())["tiny"]
    weights = {name: torch.from_numpy(array) for name, array in seeded_state_dict(shapes, 0).items()}
    torch.save({"model": weights}, folder / "official.pth")
    official = SEDConfig(
        projection_dim=64,
        vision_config={
            "architecture": "convnext_large",
            "model_args": {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]},
            "projection": "mlp",
        },
        text_config={"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 2},
    )
    official.to_json_file(folder / "official.json")

    labels = np.random.default_rng(0).integers(0, 151, (1100, 8, 8))
    write_ade20k_150(folder / "raw", {f"ADE_val_{index:08d}": label for index, label in enumerate(labels, 1)})
    own = np.random.default_rng(1).integers(0, len(CLASSES), (120, 48, 64), dtype=np.uint8)
    write_own_data(folder / "own", {f"{index:03d}": label for index, label in enumerate(own)}, list(CLASSES))
    (folder / "recipe.yaml").write_text(RECIPE)


def write_video(path: Path, frames: Sequence[Any]) -> None:
    """Write RGB frames (H, W, 3) as an MP4 file of 12 frames a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


# Processes -----------------------------------------------------------------------------------------------------------


class Nursery:
    """A process that has imported the libraries, and forks one that runs a command whenever it is asked to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--nursery"],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, name: str, more: Sequence[str], folder: Path, log: Path) -> "Running":
        """Start a command in a folder, with its output in a log."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([name, list(more), str(folder), str(log)]), file=self.process.stdin, flush=True)
        pid = int(self.process.stdout.readline())
        return Running(pid, lambda: self._status(self.process.stdout))

    @staticmethod
    def _status(pipe: IO[str] | None) -> int | None:
        assert pipe is not None
        return int(pipe.readline()) if select.select([pipe], [], [], 0)[0] else None


def tend_nursery() -> int:
    """Be the process that forks: write the number of each process, and later its status."""
    import datasets
    import torch
    from huggingface_hub import constants

    import sed_hf.class_embeddings
    import sed_hf.cli
    import sed_hf.conversion
    import sed_hf.data.prepare
    import sed_hf.evaluation.suite
    import sed_hf.pipeline_sed
    import sed_hf.training.loop
    import sed_hf.video
    import sed_hf.visualization  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # or each fork would copy all of the libraries' objects when it ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of this sweep's own terminal
    for line in sys.stdin:
        name, more, folder, log = json.loads(line)
        pid = os.fork()
        if pid:
            with suppress(BrokenPipeError):  # the sweep itself was interrupted
                print(pid, flush=True)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.environ.update(environment(Path(folder)))
        tempfile.tempdir = None
        constants.HF_HOME = os.environ["HF_HOME"]
        datasets.config.HF_DATASETS_CACHE = Path(os.environ["HF_HOME"], "datasets")
        return COMMANDS[name].run(more)
    return 0


def environment(folder: Path) -> dict[str, str]:
    """What a command is told by environment variables: caches of its own."""
    return {"HF_HOME": str(folder / "cache"), "TMPDIR": str(folder / "temporary"), "HF_HUB_OFFLINE": "1"}


def start_real(name: str, more: Sequence[str], folder: Path, log: Path) -> "Running":
    """Start the real program of a command, as [`Nursery.start`] does."""
    with log.open("w") as output:
        process = subprocess.Popen(
            COMMANDS[name].real(more),
            cwd=folder,
            env={**os.environ, **environment(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            # Started by `nohup ... &`, this sweep would hand on that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    return Running(process.pid, process.poll)


@dataclass
class Running:
    """A command that runs, as the leader of a session.

    Attributes:
        pid: Its process and session.
        poll: Returns its status, or `None` while it runs.
        status: Its status, once it has ended.
    """

    pid: int
    poll: Callable[[], int | None]
    status: int | None = None
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.start

    def has_ended(self) -> bool:
        if self.status is None:
            self.status = self.poll()
        return self.status is not None

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, or for so many seconds."""
        return wait_until(self.has_ended, seconds)

    def kill(self, number: signal.Signals, whole_group: bool) -> None:
        """Send a signal to its process, or to all of its group, as a terminal does."""
        with suppress(ProcessLookupError):
            (os.killpg if whole_group else os.kill)(self.pid, number)

    def processes(self) -> list[int]:
        """All processes of the session that live."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state not in "ZX":
                    found.append(int(path.parent.name))
        return found


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is so, or for so many seconds, and return whether it is."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# Files ---------------------------------------------------------------------------------------------------------------


def files_in(folder: Path, *names: str) -> Iterator[str]:
    """The files of outputs and caches in the folder of a run, with the folders that are temporary."""
    hidden = [path.name for path in folder.glob(".*")]  # where an output that is one folder is written
    yield from hidden
    for name in (*(names or ("out", "cache", "temporary")), *hidden):
        for parent, folders, files in os.walk(folder / name):
            for found in [*files, *(found for found in folders if is_temporary(found))]:
                if not any(part in found for part in WRITTEN_BY_LIBRARIES):
                    yield os.path.relpath(os.path.join(parent, found), folder)


def is_temporary(path: str) -> bool:
    """Whether a file is known by its name as one that is not complete."""
    return any(part.startswith(".") for part in Path(path).parts) or ".partial." in path or path[:5] == "tempo"


def snapshot(folder: Path) -> dict[str, str]:
    """A hash of what is in each file, but for times and speeds."""
    return {name: fingerprint(folder / name) for name in sorted(files_in(folder)) if not is_temporary(name)}


def fingerprint(path: Path) -> str:
    if path.name == "log.jsonl":
        return "\n".join(log_lines(path))
    if is_embedding(path):
        return "a class embedding"  # which embeddings_of compares
    content = path.read_bytes()
    if path.name == "README.md":
        content = b"\n".join(line for line in content.splitlines() if b"images_per_second" not in line)
    return hashlib.sha256(content).hexdigest()


def is_embedding(path: Path) -> bool:
    """Whether a file is a class embedding in the cache."""
    return path.suffix == ".safetensors" and "class_embeddings" in path.parts


def embeddings_of(folder: Path) -> dict[str, Any]:
    """The class embeddings in the cache of a run.

    They are compared with a tolerance: their last bits depend on which others are encoded with them.
    """
    from safetensors.numpy import load_file

    found = filter(is_embedding, (folder / "cache").rglob("*.safetensors"))
    return {path.name: load_file(path)["class_embedding"] for path in found}


def log_lines(path: Path) -> list[str]:
    """The lines of a training log without the speed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [json.dumps({key: value for key, value in line.items() if key != "images_per_second"}) for line in lines]


def is_half(path: Path, name: str, expected: str | None) -> bool:
    """Whether a file under its final name is not complete: none of the undisturbed run, and none that loads."""
    if path.name == "log.jsonl":
        return expected is None or not expected.startswith("\n".join(log_lines(path)))
    if name.endswith(".progress.safetensors"):
        from safetensors.numpy import load_file

        load_file(path)
        return False
    return fingerprint(path) != expected


# Kills ---------------------------------------------------------------------------------------------------------------


@dataclass
class Undisturbed:
    """The undisturbed run of a command.

    Attributes:
        seconds: How long it takes, in a fork and as the real program.
        num_events: How many times it makes a file.
        results: [`snapshot`] in the end.
        embeddings: [`embeddings_of`] its cache.
        catalogue: All that a killed run may have under final names.
    """

    seconds: dict[str, float]
    num_events: int
    results: dict[str, str]
    embeddings: dict[str, Any]
    catalogue: dict[str, str]


@dataclass
class Kill:
    """One kill, and what came of it.

    Attributes:
        signal: Its name.
        moment: The second, or the number of the file after which it was sent.
        stage: What the command was at.
        status: Exit status of the killed command.
        seconds_to_exit: From the signal to the end.
        problems: What was not as it should be.
    """

    command: str
    index: int
    signal: str
    whole_group: bool
    real: bool
    moment: str
    stage: str = ""
    status: int | None = None
    seconds_to_exit: float = 0.0
    problems: list[str] = field(default_factory=list)


class Sweep:
    """Kills commands in folders below `work`, where the inputs are."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.seed = seed
        self.nursery = Nursery()
        self.undisturbed: dict[str, Undisturbed] = {}

    def fresh_folder(self, old_output: str | None = None) -> Path:
        """A folder with links to the inputs, and perhaps an old output."""
        folder = self.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for entry in (self.work / "inputs").iterdir():
            (folder / entry.name).symlink_to(entry)
        (folder / "temporary").mkdir()
        if old_output is not None:
            shutil.copytree(self.work / "inputs" / old_output, folder / "out")
        return folder

    def run(self, name: str, more: Sequence[str] = (), folder: Path | None = None) -> tuple[Path, float, int]:
        """Run a command to its end: its folder, the seconds that took, and how many files it made."""
        folder = folder or self.fresh_folder()
        log = self.work / "log.txt"
        running = self.nursery.start(name, more, folder, log)
        events = Events(folder)
        while not running.has_ended():
            events.look()
            if running.seconds > MAX_SECONDS_OF_A_RUN:
                running.kill(signal.SIGKILL, True)
        if running.status:
            raise RuntimeError(f"{name}: status {running.status}\n{log.read_text()[-3000:]}")
        return folder, running.seconds, events.count

    def run_undisturbed(self, name: str) -> Undisturbed:
        """Run a command undisturbed, as is needed to judge the others."""
        catalogue = snapshot(self.run(name, COMMANDS[name].catalogue)[0])
        folder, seconds, num_events = self.run(name)
        results, embeddings = snapshot(folder), embeddings_of(folder)
        folder = self.fresh_folder()
        running = start_real(name, (), folder, self.work / "log.txt")
        running.wait(MAX_SECONDS_OF_A_RUN)
        if snapshot(folder) != results:
            raise RuntimeError(f"{name}: two undisturbed runs differ in {differences(snapshot(folder), results)}")
        seconds_of = {"fork": seconds, "real": running.seconds}
        return Undisturbed(seconds_of, num_events, results, embeddings, {**catalogue, **results})

    def kill(self, name: str, index: int) -> Kill:
        """Kill a command, judge what it leaves, and run the second command."""
        if name not in self.undisturbed:
            self.undisturbed[name] = self.run_undisturbed(name)
        undisturbed, command = self.undisturbed[name], COMMANDS[name]
        chance = random.Random(f"{self.seed} {name} {index}")
        number = SIGNALS[index % len(SIGNALS)]
        real = index % REAL_EVERY == REAL_EVERY - 1
        whole_group = number == signal.SIGINT or chance.random() < 0.5
        after_event = chance.randint(1, undisturbed.num_events) if not real and chance.random() < 0.5 else None
        at_second = chance.uniform(0, undisturbed.seconds["real" if real else "fork"])
        moment = f"{at_second:.2f} s" if after_event is None else f"file {after_event} of {undisturbed.num_events}"
        kill = Kill(name, index, number.name, whole_group, real, moment)

        old_output = command.old_output if index % 2 else None
        folder, log = self.fresh_folder(old_output), self.work / "log.txt"
        old = snapshot(folder)
        running = (start_real if real else self.nursery.start)(name, (), folder, log)
        events = Events(folder)
        while not running.has_ended():
            events.look()
            if running.seconds >= at_second if after_event is None else events.count >= after_event:
                break
        kill.stage = stage(folder, undisturbed, running)
        sent = time.monotonic()
        running.kill(number, whole_group)
        if not running.wait(30 * MAX_SECONDS_TO_EXIT):
            kill.problems.append("does not end")
            running.kill(signal.SIGKILL, True)
            running.wait(MAX_SECONDS_TO_EXIT)
        kill.seconds_to_exit, kill.status = round(time.monotonic() - sent, 2), running.status
        kill.problems += problems_of_end(kill, running, log.read_text(errors="replace"))
        kill.problems += problems_of_files(kill, folder, undisturbed, old)
        try:
            self.run(name, command.second, folder)
        except RuntimeError as error:
            kill.problems.append(f"the second run failed: {error}")
        else:
            if differing := differences(snapshot(folder), undisturbed.results):
                kill.problems.append(f"the second run ends with other results: {differing}")
            for name_of_class, embedding in embeddings_of(folder).items():
                if abs(embedding - undisturbed.embeddings[name_of_class]).max() > EMBEDDING_TOLERANCE:
                    kill.problems.append(f"the embedding {name_of_class} differs")
            if left := [found for found in files_in(folder) if is_temporary(found) and is_ours(found)]:
                kill.problems.append(f"the second run leaves {left}")
        return kill


class Events:
    """Counts the files that come into being, in the outputs of a command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = set(files_in(folder, "out"))
        self.count = 0

    def look(self) -> None:
        """Take notice of new files, and rest a little."""
        present = set(files_in(self.folder, "out"))
        self.count += len(present - self.seen)
        self.seen = present
        time.sleep(0.001)


def stage(folder: Path, undisturbed: Undisturbed, running: Running) -> str:
    """What a command is at."""
    if running.has_ended():
        return "after its end"
    present = list(files_in(folder / "."))
    if any(is_temporary(name) and is_ours(name) for name in present):
        return "writing a file"
    complete = [name for name in present if name in undisturbed.catalogue]
    return "between files" if complete else "before the first file"


def is_ours(name: str) -> bool:
    """Whether a temporary file is one of sed-hf; libraries have theirs in the folder for temporary files."""
    return not name.startswith("temporary")


def problems_of_end(kill: Kill, running: Running, output: str) -> list[str]:
    """Whether a killed command has ended as it should."""
    problems = []
    number = signal.Signals[kill.signal]
    limit = MAX_SECONDS_OF_ORPHANS if number == signal.SIGKILL else MAX_SECONDS_TO_EXIT
    if not wait_until(lambda: not running.processes(), limit):
        problems.append(f"{len(running.processes())} of its processes live on")
        running.kill(signal.SIGKILL, True)
    if number == signal.SIGKILL or kill.stage == "after its end":
        return problems
    if kill.seconds_to_exit > MAX_SECONDS_TO_EXIT:
        problems.append(f"took {kill.seconds_to_exit} s to end")
    if running.status not in (0, 128 + number, -number):
        problems.append(f"status {running.status}")
    if "Traceback" in output:
        problems.append(f"traceback: {output[-2000:]}")
    ends = (": interrupted", ": terminated")
    if running.status == 128 + number and not any(end in line for line in output.splitlines() for end in ends):
        problems.append(f"no line says so: {output[-300:]}")
    return problems


def problems_of_files(kill: Kill, folder: Path, undisturbed: Undisturbed, old: dict[str, str]) -> list[str]:
    """Whether a killed command has left files as it should."""
    found = list(files_in(folder))
    problems = []
    complete = [name for name in found if not is_temporary(name)]
    is_old = {name: fingerprint(folder / name) for name in complete} == old
    half = [name for name in complete if is_half(folder / name, name, undisturbed.catalogue.get(name))]
    if half and not is_old:
        problems.append(f"half a file: {half}")
    if old and not complete:
        problems.append("the old output is gone, and the new one not there")
    left = [name for name in found if is_temporary(name) and is_ours(name) and ".partial." not in name]
    if left and kill.signal != "SIGKILL":
        problems.append(f"left {left}")
    return problems


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """The files that are not the same."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


# Report --------------------------------------------------------------------------------------------------------------


def to_markdown(kills: Sequence[Kill]) -> str:
    """A table of the kills by command."""
    lines = [
        "| command | kills | SIGINT, SIGTERM, SIGKILL | before the first file | writing a file | between files"
        " | after its end | real program | slowest end (s) | problems |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(kill.command for kill in kills):
        own = [kill for kill in kills if kill.command == name]
        signals, stages = Counter(kill.signal for kill in own), Counter(kill.stage for kill in own)
        slowest = max((kill.seconds_to_exit for kill in own if kill.signal != "SIGKILL"), default=0)
        cells = [
            name,
            len(own),
            ", ".join(str(signals[number.name]) for number in SIGNALS),
            *(stages[at] for at in ("before the first file", "writing a file", "between files", "after its end")),
            sum(kill.real for kill in own),
            f"{slowest:.1f}",
            sum(bool(kill.problems) for kill in own),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="of each command (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/interrupt"), metavar="DIR")
    return parser.parse_args()


def main() -> int:
    """Run the sweep; the status is 1 if a kill shows a problem."""
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = arguments.output / "interrupt.json"
    done = json.loads(report.read_text()) if report.exists() else {"seed": arguments.seed, "kills": []}
    if done["seed"] != arguments.seed:
        raise SystemExit(f"error: {report} is of --seed {done['seed']}")
    kills = [Kill(**kill) for kill in done["kills"]]
    known = {(kill.command, kill.index) for kill in kills}
    todo = [(name, index) for index in range(arguments.kills) for name in arguments.commands]
    todo = [entry for entry in todo if entry not in known]
    with tempfile.TemporaryDirectory(prefix="sed-hf-interrupt-") as work:
        if todo:
            (Path(work) / "inputs").mkdir()
            write_inputs(Path(work) / "inputs")
        sweep = Sweep(Path(work), arguments.seed)
        for name, index in tqdm(todo, unit="kill"):
            kill = sweep.kill(name, index)
            if kill.problems:
                tqdm.write(f"{kill.command} {kill.index} ({kill.signal}, {kill.stage}): " + "; ".join(kill.problems))
            kills.append(kill)
            with written_at_once(report) as path:
                path.write_text(json.dumps({**done, "kills": [asdict(kill) for kill in kills]}, indent=1) + "\n")
    with written_at_once(arguments.output / "interrupt.md") as path:
        path.write_text(to_markdown(kills))
    print(to_markdown(kills))
    return 1 if any(kill.problems for kill in kills) else 0


if __name__ == "__main__":
    if "--nursery" in sys.argv:
        sys.exit(tend_nursery())
    with interruptible("interrupt.py", "the same command goes on where it stopped"):
        sys.exit(main())
