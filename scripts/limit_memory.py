"""Run `sed-hf segment` in address spaces of many sizes: `python scripts/limit_memory.py --most 6000`.

Each run is to end with its result, or with one line that says why not. Prints how the runs of neighbouring sizes ended.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

SEGMENT = [sys.executable, "-c", "from sed_hf.cli import main; raise SystemExit(main())", "segment"]


def main() -> int:
    """Run all sizes; the exit status is 1 if some run crashed or did not end."""
    arguments = parse_arguments()
    sizes = range(arguments.least, arguments.most + 1, arguments.step)
    endings = [(size, how_it_ends(size, arguments)) for size in tqdm(sizes, unit="run")]
    for ending, runs in groupby(endings, key=lambda run: run[1]):
        limits = [size for size, _ in runs]
        print(f"{limits[0]} to {limits[-1]} MiB, {len(limits)} runs: {ending}")
    return int(any(ending.startswith("BUG") for _, ending in endings))


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--least", type=int, default=500, metavar="MIB", help="smallest address space (default: 500)")
    parser.add_argument("--most", type=int, default=6000, metavar="MIB", help="largest (default: 6000)")
    parser.add_argument("--step", type=int, default=100, metavar="MIB", help="(default: 100)")
    parser.add_argument("--picture", default="examples/scene-3.png", metavar="FILE")
    parser.add_argument("--model", metavar="DIR", help="(default: the model in the box)")
    parser.add_argument("--vocabulary", default="ade20k_150", metavar="NAME_OR_FILE")
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS", help="of a run (default: 120)")
    return parser.parse_args()


def how_it_ends(mebibytes: int, arguments: argparse.Namespace) -> str:
    """Segment a picture in an address space of a size, and say how it ended."""
    model = ["--model", arguments.model] if arguments.model else []
    with tempfile.TemporaryDirectory() as output:
        command = [*SEGMENT, arguments.picture, "--vocabulary", arguments.vocabulary, *model, "--output", output]
        try:
            ended = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=arguments.timeout,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (mebibytes * 2**20,) * 2),
            )
        except subprocess.TimeoutExpired:
            return f"BUG: not at an end after {arguments.timeout:.0f} s"
        written = [path.name for path in Path(output).iterdir()]
    return name_ending(ended.returncode, ended.stderr, written)


def name_ending(status: int, messages: str, written: list[str]) -> str:
    """What the status, the messages and the written files of a run come to."""
    if status == 0 and written:
        return "the result, after one warning" if "memory ran out while decoding" in messages else "the result"
    errors = [line for line in messages.splitlines() if line.startswith("sed-hf: error: ")]
    if status != 2 or len(errors) != 1 or "Traceback" in messages or written:
        return f"BUG: status {status}, files {written}, {messages[-300:]!r}"
    kinds = ("address space of this process", "while the model was loaded", "even with one class decoded at a time")
    return "refused: " + next((f"“{kind}”" for kind in kinds if kind in errors[0]), errors[0][:200])


if __name__ == "__main__":
    raise SystemExit(main())
