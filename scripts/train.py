"""Train SED: `accelerate launch scripts/train.py --config configs/sed_convnext_base.yaml --data_dir DATA`."""

import sys
from collections.abc import Sequence

from sed_hf.terminal import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command("train.py", lambda: train(sys.argv[1:] if arguments is None else arguments))


def train(arguments: Sequence[str]) -> int:
    """Train as the arguments say."""
    # The imports take seconds, in which Ctrl-C is answered too.
    from sed_hf.training.loop import train
    from sed_hf.training.recipe import load_recipe

    train(load_recipe(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
