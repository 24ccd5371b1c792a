"""`sed-hf models`: list the authors' weights, or download them."""

import argparse

from ..hub.official import BENCHMARKS, OFFICIAL, official_folder
from .arguments import add_command


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "models",
        run,
        help="list the authors' weights, or download them",
        description="List the authors' weights: names for --model, mean IoU as the authors report it, and what is in"
        "\nthe cache. --model downloads what is not there.",
    )
    parser.add_argument("name", nargs="?", choices=OFFICIAL, metavar="NAME", help="download these weights now")


def run(arguments: argparse.Namespace) -> int:
    """List the authors' weights, or download them."""
    if arguments.name:
        folder = official_folder(OFFICIAL[arguments.name])
        print(f"sed-hf: {arguments.name} is in {folder}")
        return 0
    print("".join(f"{heading:>12}" for heading in ("name", *BENCHMARKS, "in the cache")))
    for name, model in OFFICIAL.items():
        size = sum(file.stat().st_size for file in model.folder.glob("*"))
        cells = (name, *model.scores, f"{size / 1e6:.0f} MB" if size else "no")
        print("".join(f"{cell:>12}" for cell in cells))
    print(f"mean IoU as the authors report it; the cache is {model.folder.parent}")
    return 0
