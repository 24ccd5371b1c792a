"""Fuzz every reader of sed-hf: `python scripts/fuzz.py --cases 100000 --output outputs/fuzz`.

Valid files are changed by their bytes and by their structure; each must end in a valid result or in one clear error: an
exception that the commands print as one message, which names the file or the argument. Whatever else happens is a bug:
other exceptions, a crash, a hang, too much memory, a file left behind, data that is executed. Each bug's input is
written to OUTPUT/bugs, and `--reproduce FILE` runs it again.
"""

import argparse
import base64
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# In place of this folder, where evaluate.py would hide the library `evaluate`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm  # noqa: E402

from scripts.fuzzing.mutations import Case  # noqa: E402
from scripts.fuzzing.readers import READERS, planned_cases  # noqa: E402
from scripts.fuzzing.workers import Verdict, make_case, run_cases, run_in_own_process  # noqa: E402

SECONDS_BETWEEN_REPORTS = 30


@dataclass
class Tally:
    """What became of the cases of one reader."""

    kinds: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    largest_growth_bytes: int = 0

    def add(self, verdict: Verdict) -> None:
        self.kinds[verdict.kind] += 1
        self.slowest_seconds = max(self.slowest_seconds, verdict.seconds)
        self.largest_growth_bytes = max(self.largest_growth_bytes, verdict.growth_bytes)

    def summary(self) -> dict[str, object]:
        bugs = {kind: count for kind, count in self.kinds.items() if kind.startswith("BUG: ")}
        refusals = {kind: count for kind, count in self.kinds.items() if kind != "result" and kind not in bugs}
        return {
            "cases": self.kinds.total(),
            "results": self.kinds["result"],
            "refusals": refusals,
            "bugs": bugs,
            "slowest_seconds": round(self.slowest_seconds, 3),
            "largest_growth_mib": round(self.largest_growth_bytes / 2**20, 1),
        }


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", nargs="+", choices=READERS, metavar="NAME", help=f"of: {'; '.join(READERS)}")
    parser.add_argument("--cases", type=int, default=100_000, metavar="N", help="of all readers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/fuzz"), metavar="DIR")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="run one saved case, and print its end")
    return parser.parse_args(argv)


def fuzz(readers: list[str], cases: int, seed: int, workers: int, output: Path) -> dict[str, Tally]:
    """Run the cases; the report is written every now and then, and at the end, also of an interrupted run."""
    plan = list(planned_cases([READERS[name] for name in readers], cases))
    tallies = {reader.name: Tally() for reader, _ in plan}
    for reader, _ in plan:
        reader.samples()  # before processes are forked, which share them
    total = sum(count for _, count in plan)
    start = time.time()

    def numbered() -> Iterator[tuple[str, int]]:
        for reader, count in plan:
            for index in range(count):
                yield reader.name, index

    written = start
    try:
        with tqdm(total=total, unit="case") as bar:
            for name, index, verdict in run_cases(numbered(), seed, workers):
                tallies[name].add(verdict)
                if verdict.is_bug:
                    save_bug(output / "bugs", name, seed, index, verdict)
                bar.set_description(name, refresh=False)
                bar.update()
                if time.time() > written + SECONDS_BETWEEN_REPORTS:
                    written = time.time()
                    write_report(output, tallies, seed, written - start)
    except KeyboardInterrupt:
        print("interrupted: the report is of the cases so far", file=sys.stderr)
    finally:
        write_report(output, tallies, seed, time.time() - start)
    return tallies


def write_report(output: Path, tallies: dict[str, Tally], seed: int, seconds: float) -> None:
    """Write report.json and report.md."""
    output.mkdir(parents=True, exist_ok=True)
    summaries = {name: tally.summary() for name, tally in tallies.items()}
    report = {"seed": seed, "seconds": round(seconds, 1), "readers": summaries}
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (output / "report.md").write_text(markdown_table(tallies))


def markdown_table(tallies: dict[str, Tally]) -> str:
    """The report for people."""
    lines = [
        "| reader | cases | results | refused | bugs | slowest (s) | most memory (MiB) |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    totals = [0, 0, 0, 0]
    for name, tally in tallies.items():
        bugs = sum(count for kind, count in tally.kinds.items() if kind.startswith("BUG: "))
        counts = [tally.kinds.total(), tally.kinds["result"], tally.kinds.total() - tally.kinds["result"] - bugs, bugs]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        cells = [name, *(f"{count:,}" for count in counts)]
        cells += [f"{tally.slowest_seconds:.2f}", f"{tally.largest_growth_bytes / 2**20:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    slowest = max(tally.slowest_seconds for tally in tallies.values())
    growth = max(tally.largest_growth_bytes for tally in tallies.values()) / 2**20
    cells = ["all", *(f"{count:,}" for count in totals), f"{slowest:.2f}", f"{growth:.0f}"]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"]) + "\n"


def save_bug(folder: Path, name: str, seed: int, index: int, verdict: Verdict) -> None:
    """Write the input of a bug, with what happened."""
    case = make_case(READERS[name], seed, index)
    content = {
        "reader": name,
        "kind": verdict.kind,
        "detail": verdict.detail,
        "files": {path: base64.b64encode(data).decode() for path, data in case.files.items()},
        "special": case.special,
    }
    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(letter if letter.isalnum() else "-" for letter in f"{name} {seed} {index}")
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=2) + "\n")


def load_bug(path: Path) -> tuple[str, Case]:
    """The reader and the case of a file of [`save_bug`]."""
    content = json.loads(path.read_text())
    files = {name: base64.b64decode(data) for name, data in content["files"].items()}
    return content["reader"], Case(files, content["special"])


def reproduce(path: Path) -> None:
    """Run a saved case, in a process of its own, and print how it ends."""
    name, case = load_bug(path)
    READERS[name].samples()
    with tempfile.TemporaryDirectory() as work:
        verdict = run_in_own_process(READERS[name], case, Path(work))
    print(f"{verdict.kind}\n{verdict.detail}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.reproduce:
        reproduce(arguments.reproduce)
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has it ignored, as behind `nohup ... &`
        signal.signal(number, signal.default_int_handler)
    readers = arguments.readers or list(READERS)
    tallies = fuzz(readers, arguments.cases, arguments.seed, arguments.workers, arguments.output)
    print(markdown_table(tallies))
    bugs = Counter({f"{name}: {kind}": n for name, tally in tallies.items() for kind, n in tally.kinds.items()})
    found = {kind: count for kind, count in bugs.items() if "BUG: " in kind}
    for kind, count in sorted(found.items()):
        print(f"{count:6} {kind}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
