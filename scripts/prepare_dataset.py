"""Write a benchmark, or data of your own, as Parquet files; see docs/data.md.

    python scripts/prepare_dataset.py ade20k_150 --data-dir /data --output /data/ade20k_150 --num-proc 8

After an interruption, the same command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

from sed_hf.data.benchmarks import BENCHMARKS, OWN_DATA
from sed_hf.data.prepare import prepare_benchmark, push_to_hub, splits_of
from sed_hf.terminal import run_command


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*BENCHMARKS, OWN_DATA], metavar="NAME", help="one of: %(choices)s")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="RAW", help="the unpacked download")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write to")
    parser.add_argument("--split", help="train or val (default: val; both of own data)")
    parser.add_argument("--num-proc", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload to this data set repository, private if new")
    return parser.parse_args()


def main() -> int:
    """Prepare, and upload if asked to; return the exit status."""
    arguments = parse_arguments()
    for split in splits_of(arguments.name, arguments.data_dir, arguments.split):
        prepare_benchmark(arguments.name, arguments.data_dir, arguments.output, split, num_proc=arguments.num_proc)
    print(f"{arguments.output} is complete")
    if arguments.push_to_hub:
        print(f"uploaded: {push_to_hub(arguments.output, arguments.push_to_hub)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("prepare_dataset.py", main))
