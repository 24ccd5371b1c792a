"""Cases run in processes of their own, with a deadline, a limit of memory, and folders that are looked through."""

import faulthandler
import logging
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import datasets
import torch
from huggingface_hub import constants

from sed_hf.image_files import MAX_PIXELS_VARIABLE

from .mutations import Case, mutate_case
from .readers import READERS, InvalidResultError, Reader

DEADLINE_SECONDS = 60.0
MAX_PIXELS = 4_000_000  # a picture at the limit takes time and memory; at a lower limit it takes less
MAX_GROWTH_BYTES = 768 * 2**20
ADDRESS_SPACE_BYTES = 3 * 2**30  # beyond what the process has at its start
MAX_MESSAGE_CHARACTERS = 2_000


@dataclass
class Verdict:
    """What became of a case.

    Attributes:
        kind: `"result"`; the name of the exception that refused it; or of a bug, beginning with `"BUG: "`.
        detail: The message, or the traceback of a bug.
        seconds: What it took.
        growth_bytes: By how much the process's resident memory grew at its peak.
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0
    growth_bytes: int = 0

    @property
    def is_bug(self) -> bool:
        """Whether the product must be mended."""
        return self.kind.startswith("BUG: ")


def make_case(reader: Reader, seed: int, index: int) -> Case:
    """The case of this number."""
    return mutate_case(reader.samples(), reader.is_target, Random(f"{seed}/{reader.name}/{index}"))


def run_case(reader: Reader, case: Case, work: Path) -> Verdict:
    """Read one case in this process, and judge what happens.

    Args:
        reader: What reads it.
        case: The input.
        work: A folder of this process alone; the working directory and `TMPDIR` are the folders `cwd` and `tmp` in it.
    """
    folder = work / "input"
    shutil.rmtree(folder, ignore_errors=True)
    lay_out(case, folder)
    before = listing(folder)
    start, memory = time.perf_counter(), _reset_peak()
    try:
        reader.read(folder)
        verdict = Verdict("result")
    except InvalidResultError as error:
        verdict = Verdict("BUG: invalid result", trace(error))
    except Exception as error:
        verdict = judge_refusal(reader, error, folder, case)
    except BaseException as error:  # such as SystemExit
        verdict = Verdict(f"BUG: {type(error).__name__}", trace(error))
    verdict.seconds, verdict.growth_bytes = time.perf_counter() - start, max(0, _peak() - memory)
    if verdict.growth_bytes > MAX_GROWTH_BYTES:
        verdict = Verdict("BUG: memory", verdict.detail, verdict.seconds, verdict.growth_bytes)
    left = [name for place in ("cwd", "tmp") for name in listing(work / place)]
    if any("EXECUTED" in name for name in left):
        verdict = Verdict("BUG: executed data", verdict.detail, verdict.seconds, verdict.growth_bytes)
    left += [
        name for name in sorted(listing(folder) - before) if not reader.writes or not name.startswith(reader.writes)
    ]
    if left:
        for place in ("cwd", "tmp"):
            _empty(work / place)
        if "executed" not in verdict.kind:
            verdict = Verdict("BUG: left a file", f"{left}\n{verdict.detail}", verdict.seconds, verdict.growth_bytes)
    return verdict


def judge_refusal(reader: Reader, error: Exception, folder: Path, case: Case) -> Verdict:
    """Whether an exception is one that users get as one clear message: of a documented type, and naming the input."""
    message = str(error)
    if not isinstance(error, reader.refusals):
        return Verdict(f"BUG: {type(error).__name__}", trace(error))
    names = {str(folder), *reader.arguments}
    for path in (*case.files, *case.special):
        names.add(path.rpartition("/")[2])
    if not message.strip():
        return Verdict("BUG: no message", trace(error))
    if not any(name in message for name in names):
        return Verdict("BUG: message names no input", trace(error))
    if len(message) > MAX_MESSAGE_CHARACTERS or "Traceback" in message:
        return Verdict("BUG: message too long", f"{len(message)} characters\n{trace(error)}")
    return Verdict(type(error).__name__, message)


def trace(error: BaseException) -> str:
    """The last calls before an error, and what caused it."""
    return "".join(traceback.format_exception(error, limit=-12))[-6_000:]


def lay_out(case: Case, folder: Path) -> None:
    """Write the files of a case."""
    folder.mkdir(parents=True)
    for name, data in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for name, kind in case.special.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(kind.removeprefix("link "))


def listing(folder: Path) -> set[str]:
    """The relative paths of everything below a folder."""
    found: set[str] = set()
    for parent, folders, files in os.walk(folder):
        found.update(os.path.relpath(os.path.join(parent, name), folder) for name in (*folders, *files))
    return found


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    os.chdir(folder.parent / "cwd")


def _reset_peak() -> int:
    """Make the kernel forget the peak of this process's memory, and return what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _peak() -> int:
    return _memory("VmHWM")


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def prepare_process(work: Path) -> None:
    """Put this process where a case can do no harm unseen: empty folders, little memory, no terminal."""
    for name in ("cwd", "tmp"):
        (work / name).mkdir(parents=True, exist_ok=True)
    os.chdir(work / "cwd")
    os.environ[MAX_PIXELS_VARIABLE] = str(MAX_PIXELS)
    constants.HF_HUB_OFFLINE, constants.HF_HOME = True, str(work / "home")  # what would download fails at once
    datasets.config.HF_DATASETS_CACHE = work / "home" / "datasets"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    faulthandler.disable()  # a crash is reported by the exit code
    tempfile.tempdir = os.environ["TMPDIR"] = str(work / "tmp")
    silence = os.open(os.devnull, os.O_WRONLY)
    endless, _ = os.pipe()  # whoever asks the user waits for ever, and is found out
    os.dup2(endless, 0)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    limit = _memory("VmSize") + ADDRESS_SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve_cases(connection: Connection, work: Path, seed: int) -> None:
    """Run the cases that come in, in a process of its own, until it is ended."""
    prepare_process(work)
    while True:
        try:
            name, index = connection.recv()
        except EOFError:
            return
        reader = READERS[name]
        connection.send(run_case(reader, make_case(reader, seed, index), work))


def run_in_own_process(reader: Reader, case: Case, work: Path, deadline: float = DEADLINE_SECONDS) -> Verdict:
    """Run one case in a process of its own, which need not be among [`READERS`]."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run() -> None:
        prepare_process(work)
        theirs.send(run_case(reader, case, work))

    process = context.Process(target=run, daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(deadline):
            return Verdict("BUG: hang", f"no end after {deadline} s", deadline)
        return ours.recv()
    except EOFError:
        process.join()
        return Verdict("BUG: crash", f"exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


@dataclass
class Worker:
    """A process, and the case that it runs: its reader, number and start."""

    process: BaseProcess
    connection: Connection
    work: Path
    case: tuple[str, int] | None = None
    start: float = 0.0


def run_cases(
    cases: Iterator[tuple[str, int]], seed: int, num_workers: int, deadline: float = DEADLINE_SECONDS
) -> Iterator[tuple[str, int, Verdict]]:
    """Run cases, known by reader and number, and give the verdict of each as it comes.

    A process that dies, or takes longer than the deadline, is replaced.
    """
    context = multiprocessing.get_context("fork")  # which shares the samples, and all that is imported
    root = Path(tempfile.mkdtemp(prefix="sed-hf-fuzz-"))
    workers: list[Worker] = []

    def start_worker(place: int) -> Worker:
        ours, theirs = context.Pipe()
        work = root / str(place)
        process = context.Process(target=serve_cases, args=(theirs, work, seed), daemon=True)
        process.start()
        theirs.close()
        return Worker(process, ours, work)

    def give(worker: Worker) -> None:
        worker.case = next(cases, None)
        worker.start = time.monotonic()
        if worker.case is not None:
            worker.connection.send(worker.case)

    try:
        for place in range(num_workers):
            workers.append(start_worker(place))
            give(workers[-1])
        while any(worker.case for worker in workers):
            busy = [worker for worker in workers if worker.case]
            ready = wait([worker.connection for worker in busy], timeout=1.0)
            for place, worker in enumerate(workers):
                if worker.case is None:
                    continue
                seconds = time.monotonic() - worker.start
                verdict = None
                if worker.connection in ready:
                    try:
                        verdict = worker.connection.recv()
                    except EOFError:
                        worker.process.join()
                        verdict = Verdict("BUG: crash", f"exit code {worker.process.exitcode}", seconds)
                elif seconds > deadline:
                    verdict = Verdict("BUG: hang", f"no end after {deadline} s", seconds)
                if verdict is None:
                    continue
                yield (*worker.case, verdict)
                if verdict.kind in ("BUG: crash", "BUG: hang"):
                    worker.process.kill()
                    worker.process.join()
                    shutil.rmtree(worker.work, ignore_errors=True)
                    workers[place] = worker = start_worker(place)
                give(worker)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
        shutil.rmtree(root, ignore_errors=True)
