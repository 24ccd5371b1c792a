"""List the authors' weights, or download them.

The list has names for --model, the mean IoU that the authors report, and what is in the cache;
--model downloads what is not there.

Examples:
  sed-hf models
  sed-hf models sed-b
"""

import argparse

from ..hub.official import BENCHMARKS, OFFICIAL, official_folder
from .arguments import argument

ARGUMENTS = [argument("name", nargs="?", choices=OFFICIAL, metavar="[NAME]", help="download these weights now")]


def run(arguments: argparse.Namespace) -> int:
    """List the authors' weights, or download them."""
    if arguments.name:
        folder = official_folder(OFFICIAL[arguments.name])
        print(f"sed-hf: {arguments.name} is in {folder}")
        return 0
    print("".join(f"{heading:>13}" for heading in ("name", *BENCHMARKS, "in the cache")))
    for name, model in OFFICIAL.items():
        size = sum(file.stat().st_size for file in model.folder.glob("*"))
        cells = (name, *model.scores, f"{size / 1e6:.0f} MB" if size else "no")
        print("".join(f"{cell:>13}" for cell in cells))
    print(f"mean IoU as the authors report it; the cache is {model.folder.parent}")
    return 0
